// Tensors and operators of torch by its interface in C alone: that is read in a fifth of the time that its classes
// take, and stays the same from version to version.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

namespace torch_in_c {

using Handle = AtenTensorHandle;

inline void check(bool right, const char* what) {
  if (!right) throw std::invalid_argument(std::string("specdec: ") + what);
}
inline void done(AOTITorchError error) { check(error == AOTI_TORCH_SUCCESS, "torch failed"); }

enum Type { FLOAT, BFLOAT16, FLOAT16, OTHER };

// What there is to know of a tensor that belongs to somebody else.
struct Tensor {
  explicit Tensor(Handle handle) : handle(handle) {
    done(aoti_torch_get_data_ptr(handle, &data));
    done(aoti_torch_get_dim(handle, &dim));
    done(aoti_torch_get_sizes(handle, &sizes));
    done(aoti_torch_get_strides(handle, &strides));
    done(aoti_torch_get_dtype(handle, &dtype));
    static const int32_t types[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16()};
    type = static_cast<Type>(std::find(types, types + OTHER, dtype) - types);
  }
  int64_t numel() const {
    int64_t count = 1;
    for (int64_t d = 0; d < dim; d++) count *= sizes[d];
    return count;
  }
  int64_t bytes() const { return numel() * aoti_torch_dtype_element_size(dtype); }
  bool is_contiguous() const {
    bool is;
    done(aoti_torch_is_contiguous(handle, &is));
    return is;
  }
  template <class T>
  T* as() const { return static_cast<T*>(data); }
  Handle handle;
  void* data;
  int64_t dim, *sizes, *strides;
  int32_t dtype;
  Type type;
};

// The same tensor with its numbers one behind the other: itself, or a copy that lives as long as this.
struct Contiguous {
  explicit Contiguous(const Tensor& given) : tensor(given) {
    if (given.is_contiguous()) return;
    StableIValue stack[] = {torch::stable::detail::from(torch::stable::Tensor(new_handle(given.handle))), 0};
    done(aoti_torch_call_dispatcher("aten::contiguous", "", stack));
    copy = torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
    tensor = Tensor(copy->get());
  }
  static Handle new_handle(Handle handle) {
    Handle other;
    done(aoti_torch_new_tensor_handle(handle, &other));
    return other;
  }
  std::optional<torch::stable::Tensor> copy;
  Tensor tensor;
};

// A new tensor of up to three dimensions.
inline Handle empty(std::initializer_list<int64_t> sizes, int32_t dtype) {
  int64_t strides[3], step = 1;
  for (int64_t d = sizes.size() - 1; d >= 0; step *= sizes.begin()[d--]) strides[d] = step;
  Handle made;
  done(aoti_torch_empty_strided(sizes.size(), sizes.begin(), strides, dtype, aoti_torch_device_type_cpu(), 0, &made));
  return made;
}

// Call `work(begin, end)` for parts of begin .. end, in torch's threads.
template <class Work>
void share(int64_t end, int64_t grain, const Work& work) {
  const auto call = [](int64_t begin, int64_t end, void* work) { (*static_cast<const Work*>(work))(begin, end); };
  done(torch_parallel_for(0, end, grain, call, const_cast<Work*>(&work)));
}

// What torch's dispatcher keeps of an argument while an operator works.
template <class Argument>
struct Kept {
  explicit Kept(StableIValue value) : kept(torch::stable::detail::to<Argument>(value)) {}
  Argument get() { return kept; }
  Argument kept;
};
template <>
struct Kept<Handle> {
  explicit Kept(StableIValue value) : kept(torch::stable::detail::to<torch::stable::Tensor>(value)) {}
  Handle get() { return kept.get(); }
  torch::stable::Tensor kept;
};
template <>
struct Kept<Handle*> {
  explicit Kept(StableIValue value) : kept(torch::stable::detail::to<std::optional<torch::stable::Tensor>>(value)) {}
  Handle* get() { return kept ? &(handle = kept->get()) : nullptr; }
  std::optional<torch::stable::Tensor> kept;
  Handle handle;
};

// An operator as the dispatcher calls it.
template <auto function>
struct Boxed;
template <class... Arguments, Handle (*function)(Arguments...)>
struct Boxed<function> {
  static void call(StableIValue* stack, uint64_t, uint64_t) {
    StableIValue* next = stack;
    std::tuple<Kept<Arguments>...> kept{Kept<Arguments>(*next++)...};  // from left to right: the braces see to it
    const Handle y = std::apply([](auto&... all) { return function(all.get()...); }, kept);
    stack[0] = torch::stable::detail::from(torch::stable::Tensor(y));
  }
};

// The same as compiled code calls it, without the dispatcher, which takes as long as a small product.
template <class Operator>
AOTITorchError give(Handle* y, const Operator& compute) {
  try {
    *y = compute();
    return AOTI_TORCH_SUCCESS;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return AOTI_TORCH_FAILURE;
  }
}

}  // namespace torch_in_c
