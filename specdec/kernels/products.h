// Products of rows with weights [out, in], summed in float32: each weight is read once, in the order in which
// it lies, and used for all rows. (General products first copy a matrix into a layout of their own, which for a
// few rows costs more than the product.) An output is summed in the same order whatever goes with it: a row's
// result depends neither on how many rows there are nor on its place.
#pragma once

#include <bit>
#include <type_traits>

#include "kernels.h"

namespace kernels {

// Rows and weights are taken PAIR numbers at a time, in two vectors. Of weights in bfloat16 those are the numbers at
// even places and those at odd ones: a shift and a mask widen them so, where in order it takes twice as much.
constexpr int64_t PAIR = 2 * LANES;

inline int64_t whole_pairs(int64_t count) { return (count + PAIR - 1) / PAIR * PAIR; }

template <int PART, class W>
INLINE Lanes part(const W* from) {
  return load(from + PART * LANES);
}

template <int PART>
INLINE Lanes part(const BFloat16* from) {
  const Bits both = *reinterpret_cast<const Bits*>(from);
  return (Lanes)(PART == 0 ? both << 16 : both & 0xffff0000u);
}

template <int FIRST, int... L>
INLINE Lanes every_other(Lanes a, Lanes b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, (2 * L + FIRST)...);
}

// `count` numbers in float32, in the order in which weights of type W are taken, and zeros up to a whole pair.
template <class W, class From>
void arrange(const From* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += PAIR) {
    From last[PAIR] = {};
    if (i + PAIR > count) std::memcpy(last, from + i, (count - i) * sizeof(From));
    const From* some = i + PAIR > count ? last : from + i;
    if constexpr (std::is_same_v<W, BFloat16> && !std::is_same_v<From, BFloat16>) {
      constexpr auto lanes = std::make_integer_sequence<int, LANES>();
      const Lanes a = load(some), b = load(some + LANES);
      store(to + i, every_other<0>(a, b, lanes));
      store(to + i + LANES, every_other<1>(a, b, lanes));
    } else if constexpr (std::is_same_v<W, From>) {
      store(to + i, part<0>(some));
      store(to + i + LANES, part<1>(some));
    } else {
      store(to + i, load(some));
      store(to + i + LANES, load(some + LANES));
    }
  }
}

// How many outputs share the loads of M rows: as many totals as there are registers for, beside the operands. (Of
// the first three numbers each was the fastest where it was measured, on AVX2.)
constexpr int outputs_at_once(int m) {
  const int few[] = {6, 5, 4, 2}, many[] = {8, 8, 8, 6, 3};
  const int most = REGISTERS == 16 ? few[std::min(m, 4) - 1] : many[std::min(m, 5) - 1];
  return std::min(most, LANES);
}

// One step of a tile: a vector of M rows and R outputs.
template <int PART, int M, int R, class W>
INLINE void step(Lanes (&total)[M][R], const float* x, int64_t x_step, const W* w, int64_t w_step) {
  x += PART * LANES;
  if constexpr (M <= R) {  // the rows stay in registers, the weights pass by
    Lanes rows[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      rows[m] = load(x + m * x_step);
      KEEP(rows[m]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      Lanes weight = part<PART>(w + r * w_step);
      KEEP(weight);
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) total[m][r] = fused(weight, rows[m], total[m][r]);
    }
  } else {
    Lanes weight[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      weight[r] = part<PART>(w + r * w_step);
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

// Two steps: PAIR numbers of each.
template <int M, int R, class W>
INLINE void pair(Lanes (&total)[M][R], const float* x, int64_t x_step, const W* w, int64_t w_step) {
  step<0, M, R>(total, x, x_step, w, w_step);
  step<1, M, R>(total, x, x_step, w, w_step);
}

// The last `count` numbers, fewer than a pair. (Apart, so that a tile's totals stay in registers.)
template <int M, int R, class W>
__attribute__((noinline, cold)) void rest(Lanes (&total)[M][R], const float* x, int64_t x_step, const W* w, int64_t w_step,
                                          int64_t count) {
  W last[R][PAIR] = {};
  for (int r = 0; r < R; r++) std::memcpy(last[r], w + r * w_step, count * sizeof(W));
  pair<M, R>(total, x, x_step, last[0], PAIR);
}

constexpr int64_t LINE = 64;  // bytes of the processor's cache

// How far ahead of its place each of R streams is asked for, in bytes.
constexpr int64_t ahead(int R) { return R > 2 ? 512 : 1024; }

// y[m, r * apart] = x[m] · w[r] for M rows and R outputs, the rows arranged for W.
template <int M, int R, class W>
INLINE void tile(const float* x, int64_t x_step, const W* w, int64_t w_step, int64_t in, float* y, int64_t y_step,
                 int64_t apart) {
  constexpr int64_t turn = std::max<int64_t>(LINE / sizeof(W), PAIR);
  const int64_t pairs = in / PAIR * PAIR;
  Lanes total[M][R] = {};
  int64_t i = 0;
  for (; i + turn <= pairs; i += turn) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) __builtin_prefetch(reinterpret_cast<const char*>(w + r * w_step + i) + ahead(R));
#pragma GCC unroll 16
    for (int64_t j = 0; j < turn; j += PAIR) pair<M, R>(total, x + i + j, x_step, w + i + j, w_step);
  }
  for (; i < pairs; i += PAIR) pair<M, R>(total, x + i, x_step, w + i, w_step);
  if (pairs < in) {
    Lanes copy[M][R];
#pragma GCC unroll 32
    for (int t = 0; t < M * R; t++) copy[t / R][t % R] = total[t / R][t % R];
    rest<M, R>(copy, x + pairs, x_step, w + pairs, w_step, in - pairs);
#pragma GCC unroll 32
    for (int t = 0; t < M * R; t++) total[t / R][t % R] = copy[t / R][t % R];
  }
  constexpr int padded = std::bit_ceil(unsigned(R));
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
    Lanes v[padded] = {};
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) v[r] = total[m][r];
    const Lanes products = sums<padded>(v);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) y[m * y_step + r * apart] = products[r];
  }
}

constexpr int64_t CHUNK = 16;  // tiles whose weights stay near until the second half of the rows has used them

// Of M rows from `row` on the outputs n, n + apart, … for each n of begin .. end.
template <int M, int R, class W>
void tiles(const Rows& a, int64_t row, const W* w, int64_t w_step, int64_t begin, int64_t end, int64_t apart) {
  if constexpr (M > 0) {
    const float* x = a.x + row * a.x_step;
    float* y = a.y + row * a.y_step;
    for (int64_t n = begin; n < end; n++) {
      tile<M, R>(x, a.x_step, w + n * w_step, apart * w_step, a.in, y + n, a.y_step, apart);
    }
  }
}

// Outputs begin .. end of M rows and N more, R at a time, which lie far apart: each is the next of a stream of its
// own. Memory delivers several streams at once; neighbours share its pages, and come half as fast.
template <int M, int N, class W>
void product_of_few(const Rows& a, const W* w, int64_t w_step, int64_t begin, int64_t end) {
  constexpr int R = outputs_at_once(M);
  const int64_t each = (end - begin) / R, last = begin + each;
  for (int64_t n = begin; n < last; n += CHUNK) {
    tiles<M, R>(a, 0, w, w_step, n, std::min(n + CHUNK, last), each);
    tiles<N, R>(a, M, w, w_step, n, std::min(n + CHUNK, last), each);
  }
  tiles<M, 1>(a, 0, w, w_step, begin + each * R, end, 1);
  tiles<N, 1>(a, M, w, w_step, begin + each * R, end, 1);
}

// Up to twice as many rows as share a load of weights.
template <int T, class W>
void dispatch_rows(const Rows& a, const W* w, int64_t w_step, int64_t begin, int64_t end) {
  constexpr int M = T <= MOST_ROWS ? T : (T + 1) / 2;
  if (a.rows == T) return product_of_few<M, T - M>(a, w, w_step, begin, end);
  if constexpr (T > 1) dispatch_rows<T - 1>(a, w, w_step, begin, end);
}

// A panel: weights of a few outputs, widened to float32 once and then used for many rows. (Of sixteen registers three
// rows would need every one: two totals then live in memory, where each step waits for the last, at half the speed.)
constexpr int PANEL = 4, PANEL_ROWS = REGISTERS == 16 ? 2 : 6;
constexpr int64_t NEAR = 1 << 18;  // bytes of rows that stay near while the panels pass: half a level-2 cache

// Outputs n .. n + R of all rows, M at a time.
template <int M, int R>
void product_of_panel(const Rows& a, const float* panel, int64_t step, int64_t n, int64_t m = 0) {
  for (; m + M <= a.rows; m += M) {
    tile<M, R>(a.x + m * a.x_step, a.x_step, panel, step, a.in, a.y + m * a.y_step + n, a.y_step, 1);
  }
  if constexpr (M > 1) product_of_panel<M - 1, R>(a, panel, step, n, m);
}

// Outputs begin .. end of any number of rows, by panels. `widen(n, panel)` writes the weights of output n.
template <class Widen>
void product_by_panels(const Rows& a, int64_t begin, int64_t end, const Widen& widen) {
  const int64_t step = whole_pairs(a.in), near = std::max<int64_t>(PANEL_ROWS, NEAR / 4 / a.x_step);
  static thread_local std::vector<float> panel;
  panel.assign(PANEL * step, 0.0f);
  for (int64_t m = 0; m < a.rows; m += near) {
    const Rows some{a.x + m * a.x_step, std::min(near, a.rows - m), step, a.x_step, a.y + m * a.y_step, a.y_step};
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

// Outputs begin .. end of any number of rows with weights `w_step` from one output to the next.
template <class W>
void product(const Rows& a, const W* w, int64_t w_step, int64_t begin, int64_t end) {
  if (a.rows <= 2 * MOST_ROWS) return dispatch_rows<2 * MOST_ROWS>(a, w, w_step, begin, end);
  product_by_panels(a, begin, end, [&](int64_t n, float* panel) { arrange<W>(w + n * w_step, panel, a.in); });
}

}  // namespace kernels
