// The kernels as operators of torch: `torch.ops.<LIBRARY>.linear` and the others, for tensors on a CPU.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>
#include <torch/library.h>

#include "products.h"

namespace {

using namespace kernels;

// Call `with` a pointer to a tensor's first number, of the kernels' own type.
template <class With>
void typed(const at::Tensor& t, const With& with) {
  void* data = t.data_ptr();
  if (t.scalar_type() == at::kFloat) {
    with(static_cast<float*>(data));
  } else if (t.scalar_type() == at::kBFloat16) {
    with(static_cast<BFloat16*>(data));
  } else {
    TORCH_CHECK(t.scalar_type() == at::kHalf, "specdec: not for ", t.scalar_type());
    with(static_cast<Float16*>(data));
  }
}

// A tensor [count] in float32; of none, nothing.
std::vector<float> widened(const std::optional<at::Tensor>& tensor) {
  if (!tensor) return {};
  const at::Tensor t = tensor->contiguous();
  std::vector<float> wide(t.numel());
  typed(t, [&](const auto* from) { convert(from, wide.data(), t.numel()); });
  return wide;
}

// Rows [rows, in] of any type in float32, arranged for weights of another: as they lie, or a copy, which stays until
// the next one of the same thread.
struct WideRows {
  explicit WideRows(const at::Tensor& x, at::ScalarType weights = at::kFloat)
      : rows(x.size(0)), in(x.size(1)), step(whole_pairs(in)), given(x.contiguous()) {
    const bool in_order = weights != at::kBFloat16;
    if (x.scalar_type() == at::kFloat && in == step && in_order) {
      data = given.const_data_ptr<float>();
      return;
    }
    static thread_local std::vector<float> copy;
    copy.resize(rows * step);
    typed(given, [&](const auto* from) {
      for (int64_t m = 0; m < rows; m++) {
        float* to = copy.data() + m * step;
        in_order ? arrange<float>(from + m * in, to, in) : arrange<BFloat16>(from + m * in, to, in);
      }
    });
    data = copy.data();
  }
  Rows giving(float* y, int64_t out) const { return Rows{data, rows, in, step, y, out}; }
  int64_t rows, in, step;
  at::Tensor given;
  const float* data;
};

// A linear layer: `product(rows, begin, end)` gives outputs begin .. end in float32; the bias is added, the sum
// rounded once to the type of x. Threads share the outputs.
template <class Product>
at::Tensor layer(const at::Tensor& x, const WideRows& wide, int64_t out, const std::optional<at::Tensor>& bias,
                 const Product& product) {
  at::Tensor y = at::empty({wide.rows, out}, x.options());
  const std::vector<float> b = widened(bias);
  static thread_local std::vector<float> scratch;  // of the calling thread; the others write into it too
  float* sums = static_cast<float*>(y.data_ptr());
  if (x.scalar_type() != at::kFloat) {
    scratch.resize(wide.rows * out);
    sums = scratch.data();
  }
  at::parallel_for(0, out, 64, [&](int64_t begin, int64_t end) {
    product(wide.giving(sums, out), begin, end);
    for (int64_t m = 0; m < wide.rows; m++) {
      float* row = sums + m * out;
      for (int64_t n = begin; n < end && bias; n++) row[n] += b[n];
    }
    if (x.scalar_type() == at::kFloat) return;
    typed(y, [&](auto* to) {
      for (int64_t m = 0; m < wide.rows; m++) convert(sums + m * out + begin, to + m * out + begin, end - begin);
    });
  });
  return y;
}

// x [rows, in], weight [out, in], bias [out], each in float32, bfloat16 or float16; gives [rows, out] as x.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(x.dim() == 2 && weight.is_contiguous() && weight.size(1) == x.size(1),
              "specdec::linear: not its shapes");
  const int64_t out = weight.size(0), in = weight.size(1);
  return layer(x, WideRows(x, weight.scalar_type()), out, bias, [&](const Rows& rows, int64_t begin, int64_t end) {
    typed(weight, [&](const auto* w) { product(rows, w, in, begin, end); });
  });
}

// The same with weights in NF4, as bitsandbytes holds them.
at::Tensor nf4_linear(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& scales, const at::Tensor& levels,
                      const at::Tensor& scale_levels, const at::Tensor& scale_scales, const at::Tensor& offset,
                      int64_t out, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(x.dim() == 2 && packed.numel() == (x.size(1) * out + 1) / 2 &&
                  scales.numel() == (x.size(1) * out + BLOCK - 1) / BLOCK,
              "specdec::nf4_linear: not its shapes");
  const Nf4 w{packed.const_data_ptr<uint8_t>(),       scales.const_data_ptr<uint8_t>(),
              levels.const_data_ptr<float>(),         scale_levels.const_data_ptr<float>(),
              scale_scales.const_data_ptr<float>(),   *offset.const_data_ptr<float>(),
              x.size(1)};
  return layer(x, WideRows(x), out, bias,
               [&](const Rows& rows, int64_t begin, int64_t end) { nf4_product(rows, w, begin, end); });
}

// For a draft: rows and levels are rounded to 8 bits; scales [out, in / 64] in float32.
at::Tensor nf4_rounded_linear(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& scales,
                              const at::Tensor& levels, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(x.dim() == 2 && scales.is_contiguous() && scales.size(1) * BLOCK == x.size(1) &&
                  packed.numel() * 2 == scales.numel() * BLOCK,
              "specdec::nf4_rounded_linear: not its shapes");
  const WideRows wide(x);
  const RoundedRows& rounded = round_rows(wide.giving(nullptr, 0), true);
  return layer(x, wide, scales.size(0), bias, [&](const Rows& rows, int64_t begin, int64_t end) {
    nf4_rounded_product(rows, rounded, packed.const_data_ptr<uint8_t>(), scales.const_data_ptr<float>(),
                        levels.const_data_ptr<float>(), begin, end);
  });
}

// For a draft: weights [out, in] in 8 bits and a scale for each output; rows are rounded to 8 bits too.
at::Tensor int8_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scales,
                       const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(x.dim() == 2 && weight.is_contiguous() && weight.size(1) == x.size(1) &&
                  x.size(1) % BLOCK == 0,
              "specdec::int8_linear: not its shapes");
  const WideRows wide(x);
  const RoundedRows& rounded = round_rows(wide.giving(nullptr, 0), false);
  return layer(x, wide, weight.size(0), bias, [&](const Rows& rows, int64_t begin, int64_t end) {
    int8_product(rows, rounded, weight.const_data_ptr<int8_t>(), scales.const_data_ptr<float>(), begin, end);
  });
}

constexpr int64_t QUERIES = 48;  // that go through the keys and values of a head at a time

// q [heads, rows, dim], k [kv_heads, slots, dim], v [kv_heads, slots, v_dim], all of one type; mask [rows, slots],
// true where a row sees a slot. Gives [rows, heads, v_dim].
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask, double scale) {
  const int64_t heads = q.size(0), rows = q.size(1), dim = q.size(2), kv_heads = k.size(0), slots = k.size(1);
  const int64_t v_dim = v.size(2), sharing = heads / kv_heads, step = whole_pairs(dim);
  TORCH_CHECK(q.stride(2) == 1 && k.stride(2) == 1 && v.stride(2) == 1 && k.size(2) == dim && v.size(1) == slots &&
                  heads % kv_heads == 0 && q.scalar_type() == k.scalar_type() && k.scalar_type() == v.scalar_type(),
              "specdec::attention: not its shapes");
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
  first = first / LANES * LANES;  // a slot's lane is that of its number
  at::Tensor y = at::empty({rows, heads, v_dim}, q.options());
  const int64_t queries = sharing * rows, turns = (queries + QUERIES - 1) / QUERIES;
  typed(q, [&](const auto* from) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
    const T *keys = static_cast<const T*>(k.const_data_ptr()), *values = static_cast<const T*>(v.const_data_ptr());
    T* to = static_cast<T*>(y.data_ptr());
    at::parallel_for(0, kv_heads * turns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t turn = begin; turn < end; turn++) {
        const int64_t g = turn / turns, start = turn % turns * QUERIES, count = std::min(QUERIES, queries - start);
        // Queries row by row: those of one row see the same, and all see much the same.
        static thread_local std::vector<float> x, out;
        static thread_local std::vector<const bool*> seen;
        x.resize(count * step), out.resize(count * v_dim), seen.resize(count);
        for (int64_t i = 0; i < count; i++) {
          const int64_t row = (start + i) / sharing, head = g * sharing + (start + i) % sharing;
          arrange<T>(from + head * q.stride(0) + row * q.stride(1), x.data() + i * step, dim);
          seen[i] = allowed + row * slots + first;
        }
        attend(Rows{x.data(), count, dim, step, out.data(), v_dim},
               Head<T>{keys + g * k.stride(0) + first * k.stride(1), values + g * v.stride(0) + first * v.stride(1),
                       last - first, dim, v_dim, k.stride(1), v.stride(1)},
               seen.data(), static_cast<float>(scale));
        for (int64_t i = 0; i < count; i++) {
          const int64_t row = (start + i) / sharing, head = g * sharing + (start + i) % sharing;
          convert(out.data() + i * v_dim, to + (row * heads + head) * v_dim, v_dim);
        }
      }
    });
  });
  return y;
}

// The sum of a tensor's bytes as whole numbers of 64 bits, in as many streams as a product of one row: nothing but
// reading, which is what a pass over one row comes down to.
int64_t read_all(const at::Tensor& bytes) {
  constexpr int STREAMS = outputs_at_once(1);
  typedef int64_t Words __attribute__((vector_size(64), aligned(8), may_alias));
  const Words* from = static_cast<const Words*>(bytes.const_data_ptr());
  const int64_t count = bytes.nbytes() / sizeof(Words), each = count / STREAMS;
  const auto sum_of = [](const Words& words) {
    int64_t sum = 0;
    for (int i = 0; i < 8; i++) sum += words[i];
    return sum;
  };
  int64_t rest = 0;
  for (int64_t i = each * STREAMS; i < count; i++) rest += sum_of(from[i]);
  return rest + at::parallel_reduce(
      0, each, 1 << 12, int64_t(0),
      [&](int64_t begin, int64_t end, int64_t sum) {
        Words total[STREAMS] = {};
        for (int64_t i = begin; i < end; i++) {
          for (int s = 0; s < STREAMS; s++) total[s] += from[s * each + i];
        }
        for (const Words& words : total) sum += sum_of(words);
        return sum;
      },
      [](int64_t a, int64_t b) { return a + b; });
}

}  // namespace

TORCH_LIBRARY(LIBRARY, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def(
      "nf4_linear(Tensor x, Tensor packed, Tensor scales, Tensor levels, Tensor scale_levels, Tensor scale_scales, "
      "Tensor offset, int out, Tensor? bias) -> Tensor");
  library.def("nf4_rounded_linear(Tensor x, Tensor packed, Tensor scales, Tensor levels, Tensor? bias) -> Tensor");
  library.def("int8_linear(Tensor x, Tensor weight, Tensor scales, Tensor? bias) -> Tensor");
  library.def("attention(Tensor q, Tensor k, Tensor v, Tensor mask, float scale) -> Tensor");
  library.def("read(Tensor bytes) -> int");
  library.def("instruction_set() -> str", [] { return std::string(kernels::instruction_set()); });
}
TORCH_LIBRARY_IMPL(LIBRARY, CPU, library) {
  library.impl("linear", linear);
  library.impl("nf4_linear", nf4_linear);
  library.impl("nf4_rounded_linear", nf4_rounded_linear);
  library.impl("int8_linear", int8_linear);
  library.impl("attention", attention);
  library.impl("read", read_all);
}

// The same as compiled code calls them (build.SHIMS), without torch's dispatcher, which takes as long as a small
// product. A handle is a pointer to a tensor.
namespace {

using torch::aot_inductor::new_tensor_handle;
using Handle = AtenTensorHandle;

const at::Tensor& tensor(Handle handle) { return *torch::aot_inductor::tensor_handle_to_tensor_pointer(handle); }

std::optional<at::Tensor> optional(Handle* handle) {
  if (handle == nullptr) return std::nullopt;
  return tensor(*handle);
}

template <class Operator>
AOTITorchError give(Handle* y, const Operator& compute) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({ *y = new_tensor_handle(compute()); });
}

}  // namespace

extern "C" {

AOTITorchError aoti_torch_cpu_linear(Handle x, Handle weight, Handle* bias, Handle* y) {
  return give(y, [&] { return linear(tensor(x), tensor(weight), optional(bias)); });
}

AOTITorchError aoti_torch_cpu_nf4_rounded_linear(Handle x, Handle packed, Handle scales, Handle levels, Handle* bias,
                                                 Handle* y) {
  return give(y, [&] {
    return nf4_rounded_linear(tensor(x), tensor(packed), tensor(scales), tensor(levels), optional(bias));
  });
}

AOTITorchError aoti_torch_cpu_attention(Handle q, Handle k, Handle v, Handle mask, double scale, Handle* y) {
  return give(y, [&] { return attention(tensor(q), tensor(k), tensor(v), tensor(mask), scale); });
}
}
