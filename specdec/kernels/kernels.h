// What the kernels offer: rows times weights in several forms, and attention over a cache. They are built apart
// from the operators of torch (kernels.cpp), which takes half the time.
#pragma once

#include <vector>

#include "lanes.h"

namespace kernels {

constexpr int MOST_ROWS = REGISTERS == 16 ? 6 : 8;  // that share a load of weights

// Rows [rows, in] in float32, `x_step` from one to the next, arranged for the weights that they are multiplied with
// (products.h); and where their products go, [rows, outputs].
struct Rows {
  const float* x;
  int64_t rows, in, x_step;
  float* y;
  int64_t y_step;
};

// Outputs begin .. end of any number of rows with weights `w_step` from one output to the next.
template <class W>
void product(const Rows& a, const W* w, int64_t w_step, int64_t begin, int64_t end);

// They are instantiated in kernels.cpp, and nowhere else.
extern template void product(const Rows&, const float*, int64_t, int64_t, int64_t);
extern template void product(const Rows&, const BFloat16*, int64_t, int64_t, int64_t);
extern template void product(const Rows&, const Float16*, int64_t, int64_t, int64_t);

// Keys [slots, dim] and values [slots, v_dim] of one head, and the steps from one slot to the next.
template <class T>
struct Head {
  const T *k, *v;
  int64_t slots, dim, v_dim, k_step, v_step;
};

// What queries `a` get of a head; `seen[m]` says for each slot whether query m sees it.
template <class T>
void attend(const Rows& a, const Head<T>& h, const bool* const* seen, float scale);

// Weights in NF4: see nf4.h.
constexpr int64_t BLOCK = 64, SCALES = 256;

struct Nf4 {
  const uint8_t *packed, *scales;
  const float *levels, *scale_levels, *scale_scales;
  float offset;
  int64_t in;
};

// Outputs begin .. end of any number of rows, with the weights that bitsandbytes means.
void nf4_product(const Rows& a, const Nf4& w, int64_t begin, int64_t end);

// What a draft reads, which may round for itself: see rounded.h. A block of a row in 8 bits, whose products are summed
// in PARTS parts; what is the same for all parts stands there for each, so that it is read as it lies.
#if defined(__AVX2__)
constexpr int PARTS = 8;
#else
constexpr int PARTS = 1;
#endif

struct alignas(32) RoundedBlock {
  int8_t numbers[BLOCK];
  float scale[PARTS];
  int32_t start[PARTS];  // of a sum
};

struct RoundedRows {
  std::vector<RoundedBlock> blocks;  // [rows, in_blocks]
  int64_t in_blocks;
};

// `in` is a multiple of 64. `for_levels`: to be multiplied with the levels of NF4. They stay until the thread's next.
const RoundedRows& round_rows(const Rows& a, bool for_levels);

// Outputs begin .. end of any number of rows with weights in NF4, a scale [out, in / 64] for each block.
void nf4_rounded_product(const Rows& a, const RoundedRows& x, const uint8_t* packed, const float* scales,
                         const float* levels, int64_t begin, int64_t end);

// The same with weights [out, in] in 8 bits and a scale for each output.
void int8_product(const Rows& a, const RoundedRows& x, const int8_t* w, const float* scales, int64_t begin, int64_t end);

// The largest x such that those of `count` numbers that reach x add up to `mass`; 0 where all add up to less.
float least_of_mass(const float* numbers, int64_t count, float mass);

}  // namespace kernels
