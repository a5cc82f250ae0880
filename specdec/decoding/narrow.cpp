// A pass over a few rows, in float32: linear layers and attention that read each weight, key and value
// once, in the order in which it lies, and use it for all rows. General products first copy a matrix
// into a layout of their own, which for a few rows costs more than the product. A row's result does
// not depend on how many rows there are.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <vector>

namespace {

constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef float Half __attribute__((vector_size(32)));
typedef float Quarter __attribute__((vector_size(16)));

float sum(Lanes v) {
  Half h = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  Quarter q = __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }

// R outputs of M rows, from output n on: x [M, in], w [out, in], y [M, out].
template <int M, int R>
void outputs(const float* x, const float* w, const float* b, float* y, int64_t in, int64_t out, int64_t n) {
  Lanes total[R][M] = {};
  const int64_t whole = in / LANES * LANES;
  for (int64_t i = 0; i < whole; i += LANES) {
    for (int r = 0; r < R; r++) {
      __builtin_prefetch(w + (n + r + 2 * R) * in + i);  // what comes after the next outputs
      const Lanes weights = load(w + (n + r) * in + i);
      for (int m = 0; m < M; m++) {
        total[r][m] += weights * load(x + m * in + i);
      }
    }
  }
  for (int r = 0; r < R; r++) {
    for (int m = 0; m < M; m++) {
      float value = sum(total[r][m]);
      for (int64_t i = whole; i < in; i++) value += w[(n + r) * in + i] * x[m * in + i];
      y[m * out + n + r] = value + (b ? b[n + r] : 0.0f);
    }
  }
}

template <int M>
void rows(const float* x, const float* w, const float* b, float* y, int64_t in, int64_t out) {
  constexpr int R = M <= 6 ? 4 : M <= 12 ? 2 : 1;  // as many totals as there are registers
  at::parallel_for(0, out / R, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) outputs<M, R>(x, w, b, y, in, out, i * R);
  });
  for (int64_t n = out / R * R; n < out; n++) outputs<M, 1>(x, w, b, y, in, out, n);
}

template <int M>
void dispatch_linear(int64_t m, const float* x, const float* w, const float* b, float* y, int64_t in, int64_t out) {
  if (m == M) return rows<M>(x, w, b, y, in, out);
  if constexpr (M > 1) dispatch_linear<M - 1>(m, x, w, b, y, in, out);
}

at::Tensor narrow_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const at::Tensor flat = x.contiguous();
  TORCH_CHECK(weight.is_contiguous() && flat.size(0) <= MOST_ROWS, "narrow_linear: not its shapes");
  at::Tensor y = at::empty({flat.size(0), weight.size(0)}, flat.options());
  const float* b = bias ? bias->const_data_ptr<float>() : nullptr;
  dispatch_linear<MOST_ROWS>(flat.size(0), flat.const_data_ptr<float>(), weight.const_data_ptr<float>(), b,
                      y.mutable_data_ptr<float>(), flat.size(1), weight.size(0));
  return y;
}

// e^x for x <= 0, to about the last place: 2^n times a polynomial of the rest.
Lanes exponential(Lanes x) {
  const Lanes lowest = Lanes{} - 87.0f;
  x = x > lowest ? x : lowest;
  const Lanes n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded to a whole number
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes p = Lanes{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  typedef int32_t Whole __attribute__((vector_size(LANES * sizeof(int32_t))));
  const Whole bits = (__builtin_convertvector(n, Whole) + 127) << 23;
  return p * (Lanes)bits;
}

// Softmax over the first `count` of `row`, which has room for a whole number of lanes.
void softmax(float* row, int64_t count) {
  float top = -std::numeric_limits<float>::infinity(), total = 0;
  for (int64_t i = 0; i < count; i++) top = std::max(top, row[i]);
  for (int64_t i = 0; i < count; i += LANES) {
    *reinterpret_cast<Lanes*>(row + i) = exponential(load(row + i) - top);
  }
  for (int64_t i = 0; i < count; i++) total += row[i];
  for (int64_t i = 0; i < count; i++) row[i] /= total;
}

// What attention looks at: pointers to q [rows, dim], k and v [slots, dim], y [rows, dim] of a head, with
// the step from one row or slot to the next; mask [rows, slots]; the slots that some row sees.
struct Head {
  const float *q, *k, *v;
  float* y;
  int64_t q_step, k_step, v_step, y_step, slots, dim;
  const bool* mask;
  const std::vector<int64_t>& seen;
  float scale;
};

template <int M>
void attend(const Head& a) {
  const int64_t count = a.seen.size(), room = (count + LANES - 1) / LANES * LANES;
  std::vector<float> weights(M * room, -std::numeric_limits<float>::infinity());
  for (int64_t s = 0; s < count; s++) {
    const float* key = a.k + a.seen[s] * a.k_step;
    Lanes total[M] = {};
    for (int64_t i = 0; i < a.dim; i += LANES) {
      const Lanes part = load(key + i);
      for (int m = 0; m < M; m++) total[m] += load(a.q + m * a.q_step + i) * part;
    }
    for (int m = 0; m < M; m++) {
      if (a.mask[m * a.slots + a.seen[s]]) weights[m * room + s] = sum(total[m]) * a.scale;
    }
  }
  for (int m = 0; m < M; m++) softmax(weights.data() + m * room, count);
  for (int64_t i = 0; i < a.dim; i += LANES) {
    Lanes total[M] = {};
    for (int64_t s = 0; s < count; s++) {
      const Lanes values = load(a.v + a.seen[s] * a.v_step + i);
      for (int m = 0; m < M; m++) total[m] += values * weights[m * room + s];
    }
    for (int m = 0; m < M; m++) *reinterpret_cast<Lanes*>(a.y + m * a.y_step + i) = total[m];
  }
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
  TORCH_CHECK(rows <= MOST_ROWS && dim % LANES == 0 && v.size(2) == dim && q.stride(2) == 1 && k.stride(2) == 1 &&
                  v.stride(2) == 1,
              "narrow_attention: not its shapes");
  const at::Tensor flat = mask.contiguous();
  const bool* allowed = flat.const_data_ptr<bool>();
  std::vector<int64_t> seen;  // slots that some row looks at
  for (int64_t s = 0; s < slots; s++) {
    bool any = false;
    for (int64_t m = 0; m < rows; m++) any |= allowed[m * slots + s];
    if (any) seen.push_back(s);
  }
  at::Tensor y = at::empty({rows, heads, dim}, q.options());
  const int64_t sharing = heads / k.size(0);
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; h++) {
      const int64_t g = h / sharing;
      dispatch_head<MOST_ROWS>(
          rows, Head{q.const_data_ptr<float>() + h * q.stride(0), k.const_data_ptr<float>() + g * k.stride(0),
                     v.const_data_ptr<float>() + g * v.stride(0), y.mutable_data_ptr<float>() + h * dim,
                     q.stride(1), k.stride(1), v.stride(1), heads * dim, slots, dim, allowed, seen,
                     static_cast<float>(scale)});
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
