// A pass over a few rows, in float32: linear layers and attention that read each weight, key and value
// once, in the order in which it lies, and use it for all rows. General products first copy a matrix
// into a layout of their own, which for a few rows costs more than the product. Weights may be stored
// as bfloat16: widened on the way, they are half the bytes. A row's result does not depend on how many
// rows there are.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace {

constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t Whole __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint32_t Pairs __attribute__((vector_size(LANES * sizeof(uint32_t)), aligned(2), may_alias));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

// The lanes of a and b without bit W in their number, plus those with it.
template <int W, int... L>
Lanes fold(Lanes a, Lanes b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, (L / W * 2 * W + L % W)...) +
         __builtin_shufflevector(a, b, (L / W * 2 * W + L % W + W)...);
}

// The sum of each of R vectors, in the first R lanes; R is a power of two. Together they take half the
// steps that they take one by one, and are added in the same order.
template <int R, int W = LANES / 2>
__attribute__((always_inline)) inline Lanes sums(const Lanes* of) {
  Lanes v[R];  // a copy: vectors whose place is handed on don't stay in registers
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) v[i] = of[i];
  constexpr int left = R > 1 ? R / 2 : 1, second = R > 1 ? 1 : 0;
#pragma GCC unroll 16
  for (int i = 0; i < left; i++) {
    v[i] = fold<W>(v[i + second * i], v[i + second * (i + 1)], std::make_integer_sequence<int, LANES>());
  }
  if constexpr (W > 1) return sums<left, W / 2>(v);
  return v[0];
}

Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }

Lanes store(float* to, Lanes v) { return *reinterpret_cast<Lanes*>(to) = v; }

// LANES weights. Of bfloat16 numbers, LANES pairs are read: part 0 of them, at even places, or part 1.
Lanes load_weights(const float* from, int part) { return load(from); }

Lanes load_weights(const at::BFloat16* from, int part) {
  const Pairs pairs = *reinterpret_cast<const Pairs*>(from);
  return part == 0 ? (Lanes)(pairs << 16) : (Lanes)(pairs & 0xffff0000u);  // the upper half of a float
}

// `count` inputs in the order in which `load_weights` gives the weights; a rest stays as it is.
void pair_up(const float* x, float* y, int64_t count) {
  const int64_t whole = count / (2 * LANES) * 2 * LANES;
  for (int64_t i = 0; i < whole; i += 2 * LANES) {
    for (int64_t j = 0; j < LANES; j++) {
      y[i + j] = x[i + 2 * j];
      y[i + LANES + j] = x[i + 2 * j + 1];
    }
  }
  std::copy(x + whole, x + count, y + whole);
}

// R outputs of M rows, from output n on: x [M, in], w [out, in], y [M, out].
template <int M, int R, class W>
void outputs(const float* x, const W* w, const float* b, float* y, int64_t in, int64_t out, int64_t n) {
  constexpr int64_t parts = sizeof(float) / sizeof(W), block = LANES * parts;
  Lanes total[M][R] = {};
  const int64_t whole = in / block * block;
  for (int64_t i = 0; i < whole; i += block) {
    const W* from = w + n * in + i;
#pragma GCC unroll 16
    for (int p = 0; p < parts; p++) {
      Lanes weights[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        if (p == 0) __builtin_prefetch(from + (r + 2 * R) * in);  // what comes after the next outputs
        weights[r] = load_weights(from + r * in, p);
      }
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
        const Lanes inputs = load(x + m * in + i + p * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) total[m][r] += weights[r] * inputs;
      }
    }
  }
  Lanes bias = {};
  if (b) std::memcpy(&bias, b + n, R * sizeof(float));
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
    const Lanes products = sums<R>(total[m]) + bias;
    std::memcpy(y + m * out + n, &products, R * sizeof(float));
  }
  if (whole == in) return;
  for (int m = 0; m < M; m++) {
    for (int r = 0; r < R; r++) {
      for (int64_t i = whole; i < in; i++) y[m * out + n + r] += float(w[(n + r) * in + i]) * x[m * in + i];
    }
  }
}

// The same for more rows than there are registers for: the weights are still at hand for the others.
template <int M, int R, class W>
void in_turns(const float* x, const W* w, const float* b, float* y, int64_t in, int64_t out, int64_t n) {
  constexpr int most = 6, now = M < most ? M : most;
  outputs<now, R>(x, w, b, y, in, out, n);
  if constexpr (M > most) in_turns<M - most, R>(x + most * in, w, b, y + most * out, in, out, n);
}

template <int M, class W>
void rows(const float* x, const W* w, const float* b, float* y, int64_t in, int64_t out) {
  constexpr int R = 4;
  at::parallel_for(0, out / R, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) in_turns<M, R>(x, w, b, y, in, out, i * R);
  });
  for (int64_t n = out / R * R; n < out; n++) in_turns<M, 1>(x, w, b, y, in, out, n);
}

template <int M, class W>
void dispatch_linear(int64_t m, const float* x, const W* w, const float* b, float* y, int64_t in, int64_t out) {
  if (m == M) return rows<M>(x, w, b, y, in, out);
  if constexpr (M > 1) dispatch_linear<M - 1>(m, x, w, b, y, in, out);
}

// x [rows, in] and the bias in float32, weight [out, in] in float32 or bfloat16; gives [rows, out].
at::Tensor narrow_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const at::Tensor flat = x.contiguous();
  const int64_t m = flat.size(0), in = flat.size(1), out = weight.size(0);
  TORCH_CHECK(weight.is_contiguous() && weight.size(1) == in, "narrow_linear: not its shapes");
  at::Tensor y = at::empty({m, out}, flat.options());
  const float* from = flat.const_data_ptr<float>();
  const float* b = bias ? bias->const_data_ptr<float>() : nullptr;
  float* to = y.mutable_data_ptr<float>();
  const bool short_weight = weight.scalar_type() == at::kBFloat16;
  std::vector<float> paired(short_weight ? m * in : 0);
  if (short_weight) {
    for (int64_t row = 0; row < m; row++) pair_up(from + row * in, paired.data() + row * in, in);
    from = paired.data();
  }
  for (int64_t row = 0; row < m; row += MOST_ROWS) {
    const int64_t now = std::min<int64_t>(MOST_ROWS, m - row);
    const float* x_now = from + row * in;
    float* y_now = to + row * out;
    if (short_weight) {
      dispatch_linear<MOST_ROWS>(now, x_now, weight.const_data_ptr<at::BFloat16>(), b, y_now, in, out);
    } else {
      dispatch_linear<MOST_ROWS>(now, x_now, weight.const_data_ptr<float>(), b, y_now, in, out);
    }
  }
  return y;
}

// e^x for x <= 0, to about the last place: 2^n times a polynomial of the rest; 0 below 2^-125.
Lanes exponential(Lanes x) {
  const Lanes lowest = Lanes{} - 87.0f;
  const Lanes n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded to a whole number
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes p = Lanes{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Whole bits = (__builtin_convertvector(n, Whole) + 127) << 23;
  return x > lowest ? p * (Lanes)bits : Lanes{};
}

// Softmax over `count` scores, a whole number of lanes; one of -infinity gets 0.
void softmax(float* row, int64_t count) {
  Lanes highest = load(row), total = {};
  for (int64_t i = LANES; i < count; i += LANES) highest = load(row + i) > highest ? load(row + i) : highest;
  float top = highest[0];
  for (int l = 1; l < LANES; l++) top = std::max(top, highest[l]);
  for (int64_t i = 0; i < count; i += LANES) total += store(row + i, exponential(load(row + i) - top));
  const float scale = 1.0f / sums<1>(&total)[0];
  for (int64_t i = 0; i < count; i += LANES) store(row + i, load(row + i) * scale);
}

// What attention looks at: pointers to q [rows, dim], k and v [slots, dim], y [rows, dim] of a head, with
// the step from one row or slot to the next; mask [rows, slots], which is false before `begin`, a whole
// number of lanes, and from `end` on.
struct Head {
  const float *q, *k, *v;
  float* y;
  int64_t q_step, k_step, v_step, y_step, dim;
  const bool* mask;
  int64_t slots, begin, end;
  float scale;
};

// Scores of M rows and LANES slots from `slot` on; -infinity where the mask is false.
template <int M>
void score(const Head& a, int64_t slot, float* scores, int64_t step) {
  const float* keys[LANES];
  for (int j = 0; j < LANES; j++) keys[j] = a.k + std::min(slot + j, a.end - 1) * a.k_step;
  for (int m = 0; m < M; m++) {
    Lanes total[LANES] = {};
    for (int64_t i = 0; i < a.dim; i += LANES) {
      const Lanes query = load(a.q + m * a.q_step + i);
      for (int j = 0; j < LANES; j++) total[j] += query * load(keys[j] + i);
    }
    Bytes seen = {};
    std::memcpy(&seen, a.mask + m * a.slots + slot, std::min(LANES, a.slots - slot));
    const Lanes nothing = Lanes{} - std::numeric_limits<float>::infinity();
    store(scores + m * step, __builtin_convertvector(seen, Whole) != 0 ? sums<LANES>(total) * a.scale : nothing);
  }
}

// M rows of C * LANES outputs from `first` on: the values by their weights [M, step].
template <int M, int C>
void mix(const Head& a, int64_t first, const float* weights, int64_t step) {
  Lanes total[C][M] = {};
  for (int64_t s = a.begin; s < a.end; s++) {
    for (int c = 0; c < C; c++) {
      const Lanes values = load(a.v + s * a.v_step + first + c * LANES);
      for (int m = 0; m < M; m++) total[c][m] += values * weights[m * step + s - a.begin];
    }
  }
  for (int c = 0; c < C; c++) {
    for (int m = 0; m < M; m++) store(a.y + m * a.y_step + first + c * LANES, total[c][m]);
  }
}

template <int M>
void attend(const Head& a) {
  const int64_t step = (a.end - a.begin + LANES - 1) / LANES * LANES;
  std::vector<float> weights(M * step);
  for (int64_t s = a.begin; s < a.end; s += LANES) score<M>(a, s, weights.data() + s - a.begin, step);
  for (int m = 0; m < M; m++) softmax(weights.data() + m * step, step);
  constexpr int C = M <= 6 ? 4 : M <= 12 ? 2 : 1;  // as many totals as there are registers
  int64_t i = 0;
  for (; i + C * LANES <= a.dim; i += C * LANES) mix<M, C>(a, i, weights.data(), step);
  for (; i < a.dim; i += LANES) mix<M, 1>(a, i, weights.data(), step);
}

template <int M>
void dispatch_head(int64_t m, const Head& head) {
  if (m == M) return attend<M>(head);
  if constexpr (M > 1) dispatch_head<M - 1>(m, head);
}

// q [heads, rows, dim], k and v [kv_heads, slots, dim], mask [rows, slots]; gives [rows, heads, dim].
at::Tensor narrow_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask,
                            double scale) {
  const int64_t heads = q.size(0), rows = q.size(1), dim = q.size(2), slots = k.size(1);
  TORCH_CHECK(dim % LANES == 0 && v.size(2) == dim && q.stride(2) == 1 && k.stride(2) == 1 &&
                  v.stride(2) == 1,
              "narrow_attention: not its shapes");
  const at::Tensor flat = mask.contiguous();
  const bool* allowed = flat.const_data_ptr<bool>();
  const auto anyone = [&](int64_t slot) {
    for (int64_t m = 0; m < rows; m++) {
      if (allowed[m * slots + slot]) return true;
    }
    return false;
  };
  int64_t first = 0, last = slots;  // the slots that some row sees
  while (last > 1 && !anyone(last - 1)) last--;
  while (first < last - 1 && !anyone(first)) first++;
  first = first / LANES * LANES;
  at::Tensor y = at::empty({rows, heads, dim}, q.options());
  const int64_t sharing = heads / k.size(0);
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; h++) {
      const int64_t g = h / sharing;
      for (int64_t row = 0; row < rows; row += MOST_ROWS) {
        dispatch_head<MOST_ROWS>(
            std::min<int64_t>(MOST_ROWS, rows - row),
            Head{q.const_data_ptr<float>() + h * q.stride(0) + row * q.stride(1),
                 k.const_data_ptr<float>() + g * k.stride(0), v.const_data_ptr<float>() + g * v.stride(0),
                 y.mutable_data_ptr<float>() + (row * heads + h) * dim, q.stride(1), k.stride(1), v.stride(1),
                 heads * dim, dim, allowed + row * slots, slots, first, last, static_cast<float>(scale)});
      }
    }
  });
  return y;
}

}  // namespace

TORCH_LIBRARY(specdec, library) {
  library.def("narrow_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("narrow_attention(Tensor q, Tensor k, Tensor v, Tensor mask, float scale) -> Tensor");
}
TORCH_LIBRARY_IMPL(specdec, CPU, library) {
  library.impl("narrow_linear", narrow_linear);
  library.impl("narrow_attention", narrow_attention);
}
