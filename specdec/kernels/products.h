// Products of rows with weights [out, in], summed in float32: each weight is read once, in the order in which
// it lies, and used for all rows. (General products first copy a matrix into a layout of their own, which for a
// few rows costs more than the product.) An output is summed in the same order whatever goes with it: a row's
// result depends neither on how many rows there are nor on its place.
#pragma once

#include "kernels.h"

namespace kernels {

// How many outputs share the loads of M rows: as many totals as there are registers for, beside the operands.
constexpr int outputs_at_once(int m) {
  const int most = (REGISTERS == 16 ? 12 : 24) / m;
  const int some = most >= 8 ? 8 : most >= 4 ? 4 : most >= 3 ? 3 : 2;
  return some < LANES ? some : LANES;
}

// One step of a tile: LANES numbers of M rows and R outputs; of the weights the first `left`.
template <int M, int R, class W>
INLINE void step(Lanes (&total)[M][R], const float* x, int64_t x_step, const W* w, int64_t w_step, int64_t left) {
  const auto weights = [&](int r) { return left < LANES ? load_some(w + r * w_step, left) : load(w + r * w_step); };
  if constexpr (M <= R) {  // the rows stay in registers, the weights pass by
    Lanes rows[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      rows[m] = load(x + m * x_step);
      KEEP(rows[m]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      Lanes weight = weights(r);
      KEEP(weight);
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) total[m][r] = fused(weight, rows[m], total[m][r]);
    }
  } else {
    Lanes weight[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      weight[r] = weights(r);
      KEEP(weight[r]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      Lanes row = load(x + m * x_step);
      KEEP(row);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) total[m][r] = fused(weight[r], row, total[m][r]);
    }
  }
}

// y[m, r] = x[m] · w[r] for M rows and R outputs. The rows are padded with zeros to whole lanes. Weights that
// come from memory are asked for ahead.
template <int M, int R, bool ahead, class W>
void tile(const float* x, int64_t x_step, const W* w, int64_t w_step, int64_t in, float* y, int64_t y_step) {
  constexpr int64_t line = 64 / sizeof(W);  // numbers in a line of the processor's cache
  constexpr int padded = R == 3 ? 4 : R;
  Lanes total[M][R] = {};
  int64_t i = 0;
  for (; i + line <= in; i += line) {
#pragma GCC unroll 16
    for (int r = 0; ahead && r < R; r++) __builtin_prefetch(w + (r + 2 * R) * w_step + i);  // after the next outputs
#pragma GCC unroll 16
    for (int64_t j = 0; j < line; j += LANES) step<M, R>(total, x + i + j, x_step, w + i + j, w_step, LANES);
  }
  for (; i < in; i += LANES) step<M, R>(total, x + i, x_step, w + i, w_step, in - i);
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
    Lanes v[padded] = {};
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) v[r] = total[m][r];
    const Lanes products = sums<padded>(v);
    std::memcpy(y + m * y_step, &products, R * sizeof(float));
  }
}

// Outputs begin .. end of M rows.
template <int M, class W>
void product_of_few(const Rows& a, const W* w, int64_t w_step, int64_t begin, int64_t end) {
  constexpr int R = outputs_at_once(M);
  int64_t n = begin;
  for (; n + R <= end; n += R) tile<M, R, true>(a.x, a.x_step, w + n * w_step, w_step, a.in, a.y + n, a.y_step);
  for (; n < end; n++) tile<M, 1, true>(a.x, a.x_step, w + n * w_step, w_step, a.in, a.y + n, a.y_step);
}

template <int M, class W>
void dispatch_rows(const Rows& a, const W* w, int64_t w_step, int64_t begin, int64_t end) {
  if (a.rows == M) return product_of_few<M>(a, w, w_step, begin, end);
  if constexpr (M > 1) dispatch_rows<M - 1>(a, w, w_step, begin, end);
}

// A panel: weights of a few outputs, widened to float32 once and then used for many rows.
constexpr int PANEL = 4, PANEL_ROWS = REGISTERS == 16 ? 3 : 6;
constexpr int64_t NEAR = 1 << 18;  // bytes of rows that stay near while the panels pass: half a level-2 cache

// Outputs n .. n + R of all rows, M at a time.
template <int M, int R>
void product_of_panel(const Rows& a, const float* panel, int64_t step, int64_t n, int64_t m = 0) {
  for (; m + M <= a.rows; m += M) {
    tile<M, R, false>(a.x + m * a.x_step, a.x_step, panel, step, a.in, a.y + m * a.y_step + n, a.y_step);
  }
  if constexpr (M > 1) product_of_panel<M - 1, R>(a, panel, step, n, m);
}

// Outputs begin .. end of any number of rows, by panels. `widen(n, panel)` writes the weights of output n.
template <class Widen>
void product_by_panels(const Rows& a, int64_t begin, int64_t end, const Widen& widen) {
  const int64_t step = whole_lanes(a.in), near = std::max<int64_t>(PANEL_ROWS, NEAR / 4 / a.x_step);
  static thread_local std::vector<float> panel;
  panel.assign(PANEL * step, 0.0f);
  for (int64_t m = 0; m < a.rows; m += near) {
    const Rows some{a.x + m * a.x_step, std::min(near, a.rows - m), a.in, a.x_step, a.y + m * a.y_step, a.y_step};
    int64_t n = begin;
    for (; n + PANEL <= end; n += PANEL) {
      for (int r = 0; r < PANEL; r++) widen(n + r, panel.data() + r * step);
      product_of_panel<PANEL_ROWS, PANEL>(some, panel.data(), step, n);
    }
    for (; n < end; n++) {
      widen(n, panel.data());
      product_of_panel<PANEL_ROWS, 1>(some, panel.data(), step, n);
    }
  }
}

constexpr int64_t CHUNK = 32;  // outputs whose weights stay near until the second half of the rows has used them

// Outputs begin .. end of any number of rows with weights `w_step` from one output to the next.
template <class W>
void product(const Rows& a, const W* w, int64_t w_step, int64_t begin, int64_t end) {
  if (a.rows <= MOST_ROWS) return dispatch_rows<MOST_ROWS>(a, w, w_step, begin, end);
  if (a.rows <= 2 * MOST_ROWS) {
    const int64_t half = (a.rows + 1) / 2;
    const Rows first{a.x, half, a.in, a.x_step, a.y, a.y_step};
    const Rows second{a.x + half * a.x_step, a.rows - half, a.in, a.x_step, a.y + half * a.y_step, a.y_step};
    for (int64_t n = begin; n < end; n += CHUNK) {
      dispatch_rows<MOST_ROWS>(first, w, w_step, n, std::min(n + CHUNK, end));
      dispatch_rows<MOST_ROWS>(second, w, w_step, n, std::min(n + CHUNK, end));
    }
    return;
  }
  product_by_panels(a, begin, end, [&](int64_t n, float* panel) { convert(w + n * w_step, panel, a.in); });
}

}  // namespace kernels
