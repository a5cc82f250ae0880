// The kernels as operators of torch: `torch.ops.<LIBRARY>.linear` and the others, for tensors on a CPU.
#include <atomic>

#include "products.h"
#include "torch_in_c.h"

namespace {

using namespace kernels;
using namespace torch_in_c;

// Call `with` a pointer to a tensor's first number, of the kernels' own type.
template <class With>
void typed(const Tensor& t, const With& with) {
  if (t.type == FLOAT) return with(t.as<float>());
  if (t.type == BFLOAT16) return with(t.as<BFloat16>());
  check(t.type == FLOAT16, "for float32, bfloat16 and float16 only");
  with(t.as<Float16>());
}

// A tensor [count] in float32; of none, nothing.
std::vector<float> widened(const Handle* handle) {
  if (handle == nullptr) return {};
  const Contiguous t{Tensor(*handle)};
  std::vector<float> wide(t.tensor.numel());
  typed(t.tensor, [&](const auto* from) { convert(from, wide.data(), wide.size()); });
  return wide;
}

// Rows [rows, in] of any type in float32, arranged for weights of another: as they lie, or a copy, which stays until
// the next one of the same thread.
struct WideRows {
  explicit WideRows(const Tensor& x, Type weights = FLOAT)
      : rows(x.sizes[0]), in(x.sizes[1]), step(whole_pairs(in)), dtype(x.dtype), given(x) {
    const bool in_order = weights != BFLOAT16;
    if (x.type == FLOAT && in == step && in_order) {
      data = given.tensor.as<float>();
      return;
    }
    static thread_local std::vector<float> copy;
    copy.resize(rows * step);
    typed(given.tensor, [&](const auto* from) {
      for (int64_t m = 0; m < rows; m++) {
        float* to = copy.data() + m * step;
        in_order ? arrange<float>(from + m * in, to, in) : arrange<BFloat16>(from + m * in, to, in);
      }
    });
    data = copy.data();
  }
  Rows giving(float* y, int64_t out) const { return Rows{data, rows, in, step, y, out}; }
  int64_t rows, in, step;
  int32_t dtype;
  Contiguous given;
  const float* data;
};

// A linear layer: `product(rows, begin, end)` gives outputs begin .. end in float32; the bias is added, the sum
// rounded once to the type of x. Threads share the outputs.
template <class Product>
Handle layer(const WideRows& wide, int64_t out, const Handle* bias, const Product& product) {
  const Handle made = empty({wide.rows, out}, wide.dtype);
  const Tensor y(made);
  const std::vector<float> b = widened(bias);
  static thread_local std::vector<float> scratch;  // of the calling thread; the others write into it too
  float* sums = y.as<float>();
  if (y.type != FLOAT) {
    scratch.resize(wide.rows * out);
    sums = scratch.data();
  }
  share(out, 64, [&](int64_t begin, int64_t end) {
    product(wide.giving(sums, out), begin, end);
    for (int64_t m = 0; m < wide.rows; m++) {
      float* row = sums + m * out;
      for (int64_t n = begin; n < end && bias; n++) row[n] += b[n];
    }
    if (y.type == FLOAT) return;
    typed(y, [&](auto* to) {
      for (int64_t m = 0; m < wide.rows; m++) convert(sums + m * out + begin, to + m * out + begin, end - begin);
    });
  });
  return made;
}

// x [rows, in], weight [out, in], bias [out], each in float32, bfloat16 or float16; gives [rows, out] as x.
Handle linear(Handle x_, Handle weight_, Handle* bias) {
  const Tensor x(x_), weight(weight_);
  check(x.dim == 2 && weight.is_contiguous() && weight.sizes[1] == x.sizes[1], "linear: not its shapes");
  const int64_t out = weight.sizes[0], in = weight.sizes[1];
  return layer(WideRows(x, weight.type), out, bias, [&](const Rows& rows, int64_t begin, int64_t end) {
    typed(weight, [&](const auto* w) { product(rows, w, in, begin, end); });
  });
}

// The same with weights in NF4, as bitsandbytes holds them.
Handle nf4_linear(Handle x_, Handle packed_, Handle scales_, Handle levels, Handle scale_levels, Handle scale_scales,
                  Handle offset, int64_t out, Handle* bias) {
  const Tensor x(x_), packed(packed_), scales(scales_);
  const int64_t in = x.dim == 2 ? x.sizes[1] : 0;
  check(packed.numel() == (in * out + 1) / 2 && scales.numel() == (in * out + BLOCK - 1) / BLOCK,
        "nf4_linear: not its shapes");
  const Nf4 w{packed.as<uint8_t>(),
              scales.as<uint8_t>(),
              Tensor(levels).as<float>(),
              Tensor(scale_levels).as<float>(),
              Tensor(scale_scales).as<float>(),
              *Tensor(offset).as<float>(),
              in};
  return layer(WideRows(x), out, bias,
               [&](const Rows& rows, int64_t begin, int64_t end) { nf4_product(rows, w, begin, end); });
}

// For a draft: rows and levels are rounded to 8 bits; scales [out, in / 64] in float32.
Handle nf4_rounded_linear(Handle x_, Handle packed_, Handle scales_, Handle levels, Handle* bias) {
  const Tensor x(x_), packed(packed_), scales(scales_);
  check(x.dim == 2 && scales.is_contiguous() && scales.sizes[1] * BLOCK == x.sizes[1] &&
            packed.numel() * 2 == scales.numel() * BLOCK,
        "nf4_rounded_linear: not its shapes");
  const WideRows wide(x);
  const RoundedRows& rounded = round_rows(wide.giving(nullptr, 0), true);
  return layer(wide, scales.sizes[0], bias, [&](const Rows& rows, int64_t begin, int64_t end) {
    nf4_rounded_product(rows, rounded, packed.as<uint8_t>(), scales.as<float>(), Tensor(levels).as<float>(), begin, end);
  });
}

// For a draft: weights [out, in] in 8 bits and a scale for each output; rows are rounded to 8 bits too.
Handle int8_linear(Handle x_, Handle weight_, Handle scales, Handle* bias) {
  const Tensor x(x_), weight(weight_);
  check(x.dim == 2 && weight.is_contiguous() && weight.sizes[1] == x.sizes[1] && x.sizes[1] % BLOCK == 0,
        "int8_linear: not its shapes");
  const WideRows wide(x);
  const RoundedRows& rounded = round_rows(wide.giving(nullptr, 0), false);
  return layer(wide, weight.sizes[0], bias, [&](const Rows& rows, int64_t begin, int64_t end) {
    int8_product(rows, rounded, weight.as<int8_t>(), Tensor(scales).as<float>(), begin, end);
  });
}

constexpr int64_t QUERIES = 48;  // that go through the keys and values of a head at a time

// q [heads, rows, dim], k [kv_heads, slots, dim], v [kv_heads, slots, v_dim], all of one type; mask [rows, slots],
// true where a row sees a slot. Gives [rows, heads, v_dim].
Handle attention(Handle q_, Handle k_, Handle v_, Handle mask, double scale) {
  const Tensor q(q_), k(k_), v(v_);
  const int64_t heads = q.sizes[0], rows = q.sizes[1], dim = q.sizes[2], kv_heads = k.sizes[0], slots = k.sizes[1];
  const int64_t v_dim = v.sizes[2], sharing = heads / kv_heads, step = whole_pairs(dim);
  check(q.strides[2] == 1 && k.strides[2] == 1 && v.strides[2] == 1 && k.sizes[2] == dim && v.sizes[1] == slots &&
            heads % kv_heads == 0 && q.type == k.type && k.type == v.type,
        "attention: not its shapes");
  const Contiguous flat{Tensor(mask)};
  const bool* allowed = flat.tensor.as<bool>();
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
  const Handle made = empty({rows, heads, v_dim}, q.dtype);
  const int64_t queries = sharing * rows, turns = (queries + QUERIES - 1) / QUERIES;
  typed(q, [&](const auto* from) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
    const T *keys = k.as<T>(), *values = v.as<T>();
    T* to = Tensor(made).as<T>();
    share(kv_heads * turns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t turn = begin; turn < end; turn++) {
        const int64_t g = turn / turns, start = turn % turns * QUERIES, count = std::min(QUERIES, queries - start);
        // Queries row by row: those of one row see the same, and all see much the same.
        static thread_local std::vector<float> x, out;
        static thread_local std::vector<const bool*> seen;
        x.resize(count * step), out.resize(count * v_dim), seen.resize(count);
        for (int64_t i = 0; i < count; i++) {
          const int64_t row = (start + i) / sharing, head = g * sharing + (start + i) % sharing;
          arrange<T>(from + head * q.strides[0] + row * q.strides[1], x.data() + i * step, dim);
          seen[i] = allowed + row * slots + first;
        }
        attend(Rows{x.data(), count, dim, step, out.data(), v_dim},
               Head<T>{keys + g * k.strides[0] + first * k.strides[1], values + g * v.strides[0] + first * v.strides[1],
                       last - first, dim, v_dim, k.strides[1], v.strides[1]},
               seen.data(), static_cast<float>(scale));
        for (int64_t i = 0; i < count; i++) {
          const int64_t row = (start + i) / sharing, head = g * sharing + (start + i) % sharing;
          convert(out.data() + i * v_dim, to + (row * heads + head) * v_dim, v_dim);
        }
      }
    });
  });
  return made;
}

// probabilities [rows, count] in float32; gives [rows, 1].
Handle least_of_mass(Handle probabilities, double mass) {
  const Contiguous given{Tensor(probabilities)};
  const Tensor& p = given.tensor;
  check(p.dim == 2 && p.type == FLOAT, "least_of_mass: not its shapes");
  const int64_t rows = p.sizes[0], count = p.sizes[1];
  const Handle made = empty({rows, 1}, p.dtype);
  float* to = Tensor(made).as<float>();
  share(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) to[m] = kernels::least_of_mass(p.as<float>() + m * count, count, mass);
  });
  return made;
}

// The sum of a tensor's bytes as whole numbers of 64 bits, in as many streams as a product of one row: nothing but
// reading, which is what a pass over one row comes down to.
int64_t read_all(const torch::stable::Tensor& bytes) {
  constexpr int STREAMS = outputs_at_once(1);
  typedef int64_t Words __attribute__((vector_size(64), aligned(8), may_alias));
  const Tensor tensor(bytes.get());
  const Words* from = tensor.as<Words>();
  const int64_t count = tensor.bytes() / sizeof(Words), each = count / STREAMS;
  const auto sum_of = [](const Words& words) {
    int64_t sum = 0;
    for (int i = 0; i < 8; i++) sum += words[i];
    return sum;
  };
  std::atomic<int64_t> sum = 0;
  for (int64_t i = each * STREAMS; i < count; i++) sum += sum_of(from[i]);
  share(each, 1 << 12, [&](int64_t begin, int64_t end) {
    Words total[STREAMS] = {};
    for (int64_t i = begin; i < end; i++) {
      for (int s = 0; s < STREAMS; s++) total[s] += from[s * each + i];
    }
    for (const Words& words : total) sum += sum_of(words);
  });
  return sum;
}

std::string vectors() { return instruction_set(); }

}  // namespace

STABLE_TORCH_LIBRARY(LIBRARY, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def(
      "nf4_linear(Tensor x, Tensor packed, Tensor scales, Tensor levels, Tensor scale_levels, Tensor scale_scales, "
      "Tensor offset, int out, Tensor? bias) -> Tensor");
  library.def("nf4_rounded_linear(Tensor x, Tensor packed, Tensor scales, Tensor levels, Tensor? bias) -> Tensor");
  library.def("int8_linear(Tensor x, Tensor weight, Tensor scales, Tensor? bias) -> Tensor");
  library.def("attention(Tensor q, Tensor k, Tensor v, Tensor mask, float scale) -> Tensor");
  library.def("least_of_mass(Tensor probabilities, float mass) -> Tensor");
  library.def("read(Tensor bytes) -> int");
  library.def("instruction_set() -> str");
}
STABLE_TORCH_LIBRARY_IMPL(LIBRARY, CPU, library) {
  library.impl("linear", Boxed<linear>::call);
  library.impl("nf4_linear", Boxed<nf4_linear>::call);
  library.impl("nf4_rounded_linear", Boxed<nf4_rounded_linear>::call);
  library.impl("int8_linear", Boxed<int8_linear>::call);
  library.impl("attention", Boxed<attention>::call);
  library.impl("least_of_mass", Boxed<(Handle(*)(Handle, double))least_of_mass>::call);
  library.impl("read", TORCH_BOX(&read_all));
}
STABLE_TORCH_LIBRARY_IMPL(LIBRARY, CompositeExplicitAutograd, library) {
  library.impl("instruction_set", TORCH_BOX(&vectors));
}

// The same for compiled code (build.SHIMS).
extern "C" {

AOTITorchError aoti_torch_cpu_linear(Handle x, Handle weight, Handle* bias, Handle* y) {
  return give(y, [&] { return linear(x, weight, bias); });
}

AOTITorchError aoti_torch_cpu_nf4_linear(Handle x, Handle packed, Handle scales, Handle levels, Handle scale_levels,
                                         Handle scale_scales, Handle offset, int64_t out, Handle* bias, Handle* y) {
  return give(
      y, [&] { return nf4_linear(x, packed, scales, levels, scale_levels, scale_scales, offset, out, bias); });
}

AOTITorchError aoti_torch_cpu_nf4_rounded_linear(Handle x, Handle packed, Handle scales, Handle levels, Handle* bias,
                                                 Handle* y) {
  return give(y, [&] { return nf4_rounded_linear(x, packed, scales, levels, bias); });
}

AOTITorchError aoti_torch_cpu_int8_linear(Handle x, Handle weight, Handle scales, Handle* bias, Handle* y) {
  return give(y, [&] { return int8_linear(x, weight, scales, bias); });
}

AOTITorchError aoti_torch_cpu_attention(Handle q, Handle k, Handle v, Handle mask, double scale, Handle* y) {
  return give(y, [&] { return attention(q, k, v, mask, scale); });
}

AOTITorchError aoti_torch_cpu_least_of_mass(Handle probabilities, double mass, Handle* y) {
  return give(y, [&] { return least_of_mass(probabilities, mass); });
}
}
