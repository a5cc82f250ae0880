// Attention of a few queries over keys and values that lie in a cache: those of one head are read once for all
// the queries that share it (the heads of its group, times the rows). What a query gets depends neither on the
// queries beside it nor on the slots that it doesn't see.
#pragma once

#include <limits>

#include "products.h"

namespace kernels {

// e^x for x <= 0, to about the last place: 2^n times a polynomial of the rest; 0 below 2^-125.
INLINE Lanes exponential(Lanes x) {
  const auto all = [](float one) { return Lanes{} + one; };
  const Lanes n = fused(x, all(1.44269504f), all(12582912.0f)) - 12582912.0f;  // rounded to a whole number
  const Lanes r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
  Lanes p = all(1.9875691500e-4f);
  p = fused(p, r, all(1.3981999507e-3f));
  p = fused(p, r, all(8.3334519073e-3f));
  p = fused(p, r, all(4.1665795894e-2f));
  p = fused(p, r, all(1.6666665459e-1f));
  p = fused(p, r, all(0.5f));
  p = fused(p, r, all(1.0f));
  p = fused(p, r, all(1.0f));
  const Whole bits = (__builtin_convertvector(n, Whole) + 127) << 23;
  return x > -87.0f ? p * (Lanes)bits : Lanes{};
}

// Softmax of `count` scores times `scale` where `seen`; 0 elsewhere, and up to whole lanes.
inline void softmax(float* row, const bool* seen, int64_t count, float scale) {
  const Lanes nothing = Lanes{} - std::numeric_limits<float>::infinity();
  Lanes highest = nothing, total = {};
  for (int64_t i = 0; i < count; i += LANES) {
    Bytes allowed = {};
    std::memcpy(&allowed, seen + i, std::min<int64_t>(LANES, count - i));
    const Lanes score = __builtin_convertvector(allowed, Whole) != 0 ? load(row + i) * scale : nothing;
    highest = score > highest ? score : highest;
    store(row + i, score);
  }
  float top = highest[0];
  for (int l = 1; l < LANES; l++) top = std::max(top, highest[l]);
  for (int64_t i = 0; i < count; i += LANES) {
    const Lanes weight = exponential(load(row + i) - top);
    total += weight;
    store(row + i, weight);
  }
  const float sum = sums<1>(&total)[0], inverse = sum > 0 ? 1.0f / sum : 0.0f;
  for (int64_t i = 0; i < count; i += LANES) store(row + i, load(row + i) * inverse);
}

// y[m] = weights[m] · v for M rows and C vectors of columns from `first` on, or fewer columns than a vector.
template <int M, int C, class T>
void mix(const float* weights, int64_t step, const Head<T>& h, int64_t first, float* y, int64_t y_step) {
  const int64_t width = std::min<int64_t>(C * LANES, h.v_dim - first);
  Lanes total[M][C] = {};
  for (int64_t s = 0; s < h.slots; s++) {
    const T* from = h.v + s * h.v_step + first;
    Lanes values[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) values[c] = width < LANES ? load_some(from, width) : load(from + c * LANES);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      const Lanes weight = Lanes{} + weights[m * step + s];
#pragma GCC unroll 16
      for (int c = 0; c < C; c++) total[m][c] = fused(values[c], weight, total[m][c]);
    }
  }
  for (int m = 0; m < M; m++) {
    for (int c = 0; c < C; c++) store_some(y + m * y_step + first + c * LANES, total[m][c], std::min<int64_t>(LANES, width));
  }
}

// The same for all rows from `m` on, and all columns.
template <int M, class T>
void mix_all(const float* weights, int64_t step, const Head<T>& h, const Rows& a, int64_t m = 0) {
  constexpr int C = 4;
  for (; m + M <= a.rows; m += M) {
    float* y = a.y + m * a.y_step;
    int64_t first = 0;
    for (; first + C * LANES <= h.v_dim; first += C * LANES) mix<M, C>(weights + m * step, step, h, first, y, a.y_step);
    for (; first < h.v_dim; first += LANES) mix<M, 1>(weights + m * step, step, h, first, y, a.y_step);
  }
  if constexpr (M > 1) mix_all<M / 2>(weights, step, h, a, m);
}

template <class T>
void attend(const Rows& a, const Head<T>& h, const bool* const* seen, float scale) {
  const int64_t step = whole_lanes(h.slots);
  static thread_local std::vector<float> weights;
  weights.resize(a.rows * step);
  product(Rows{a.x, a.rows, h.dim, a.x_step, weights.data(), step}, h.k, h.k_step, 0, h.slots);
  for (int64_t m = 0; m < a.rows; m++) softmax(weights.data() + m * step, seen[m], h.slots, scale);
  mix_all<PANEL_ROWS>(weights.data(), step, h, a);
}

}  // namespace kernels
