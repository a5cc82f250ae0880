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

// Turn `count` scores into e^(score * scale - highest) where `seen`, 0 elsewhere and up to whole lanes. Gives what
// they are to be multiplied with, so that their sum is 1.
inline float weigh(float* row, const bool* seen, int64_t count, float scale) {
  const Lanes nothing = Lanes{} - std::numeric_limits<float>::infinity();
  Lanes highest = nothing, total = {};
  const auto hide = [&](int64_t i, Bytes allowed) __attribute__((always_inline)) {
    const Lanes score = __builtin_convertvector(allowed, Whole) != 0 ? load(row + i) * scale : nothing;
    highest = score > highest ? score : highest;
    store(row + i, score);
  };
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) hide(i, *reinterpret_cast<const Bytes*>(seen + i));
  if (i < count) {
    Bytes allowed = {};
    std::memcpy(&allowed, seen + i, count - i);
    hide(i, allowed);
  }
  float top = highest[0];
  for (int l = 1; l < LANES; l++) top = std::max(top, highest[l]);
  for (i = 0; i < count; i += LANES) {
    const Lanes weight = exponential(load(row + i) - top);
    total += weight;
    store(row + i, weight);
  }
  const float sum = sums<1>(&total)[0];
  return sum > 0 ? 1.0f / sum : 0.0f;
}

// y[m] += weights[m] * values for M rows, some slots and C vectors of columns.
template <int M, int C, class T>
void mix(const float* weights, int64_t step, const T* v, int64_t v_step, int64_t slots, float* y, int64_t y_step) {
  Lanes total[M][C];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) total[m][c] = load(y + m * y_step + c * LANES);
  }
  const auto weight = [&](int m) __attribute__((always_inline)) { return weights[m * step] - Lanes{}; };
  for (int64_t s = 0; s < slots; s++, v += v_step, weights++) {
    if constexpr (M <= C) {  // the weights stay in registers, the values pass by
      Lanes all[M];
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
        all[m] = weight(m);
        KEEP(all[m]);
      }
#pragma GCC unroll 16
      for (int c = 0; c < C; c++) {
        Lanes value = load(v + c * LANES);
        KEEP(value);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) total[m][c] = fused(value, all[m], total[m][c]);
      }
    } else {
      Lanes values[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; c++) {
        values[c] = load(v + c * LANES);
        KEEP(values[c]);
      }
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
        Lanes one = weight(m);
        KEEP(one);
#pragma GCC unroll 16
        for (int c = 0; c < C; c++) total[m][c] = fused(values[c], one, total[m][c]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) store(y + m * y_step + c * LANES, total[m][c]);
  }
}

// Columns from `first` on of M rows: as many at a time as there are registers for, then fewer, then the last few.
template <int M, int C, class T>
void mix_columns(const float* weights, int64_t step, const Head<T>& h, const T* v, int64_t slots, float* y, int64_t y_step,
                 int64_t first = 0) {
  for (; first + C * LANES <= h.v_dim; first += C * LANES) {
    mix<M, C>(weights, step, v + first, h.v_step, slots, y + first, y_step);
  }
  if constexpr (C > 1) return mix_columns<M, C / 2>(weights, step, h, v, slots, y, y_step, first);
  const int64_t left = h.v_dim - first;
  for (int m = 0; m < M && left > 0; m++) {
    Lanes total = load_some(y + m * y_step + first, left);
    for (int64_t s = 0; s < slots; s++) {
      total = fused(load_some(v + s * h.v_step + first, left), weights[m * step + s] - Lanes{}, total);
    }
    store_some(y + m * y_step + first, total, left);
  }
}

// All rows from `m` on, M at a time.
template <int M, class T>
void mix_rows(const float* weights, int64_t step, const Head<T>& h, const T* v, int64_t slots, const Rows& a, int64_t m = 0) {
  constexpr int most = (REGISTERS == 16 ? 12 : 24) / M, C = most >= 8 ? 8 : most >= 4 ? 4 : 2;
  for (; m + M <= a.rows; m += M) {
    mix_columns<M, C>(weights + m * step, step, h, v, slots, a.y + m * a.y_step, a.y_step);
  }
  if constexpr (M > 1) mix_rows<M - 1>(weights, step, h, v, slots, a, m);
}

constexpr int64_t SLOTS = 64;  // whose values stay near while all rows pass

template <class T>
void attend(const Rows& a, const Head<T>& h, const bool* const* seen, float scale) {
  const int64_t step = whole_lanes(h.slots) + 16;  // a line more, lest all rows fall into one set of a cache
  static thread_local std::vector<float> weights, shares;
  weights.resize(a.rows * step);
  shares.resize(a.rows);
  product(Rows{a.x, a.rows, h.dim, a.x_step, weights.data(), step}, h.k, h.k_step, 0, h.slots);
  for (int64_t m = 0; m < a.rows; m++) {
    shares[m] = weigh(weights.data() + m * step, seen[m], h.slots, scale);
    std::fill_n(a.y + m * a.y_step, h.v_dim, 0.0f);
  }
  for (int64_t s = 0; s < h.slots; s += SLOTS) {
    mix_rows<MOST_ROWS>(weights.data() + s, step, h, h.v + s * h.v_step, std::min(SLOTS, h.slots - s), a);
  }
  for (int64_t m = 0; m < a.rows; m++) {
    for (int64_t i = 0; i < h.v_dim; i++) a.y[m * a.y_step + i] *= shares[m];
  }
}

}  // namespace kernels
