// Products for a draft, which may round for itself: rows in 8 bits, each block of 64 with a scale, and weights in
// NF4, its levels in 8 bits too, or wholly in 8 bits. A block is summed in whole numbers. An output is summed in the
// same order whatever goes with it, as in products.h.
#pragma once

#include <cmath>

#include "products.h"

namespace kernels {

// The levels of NF4 are 1 to 127: their numbers of -63 to 63, and 64 more, which a sum starts with less.
constexpr int LEVEL_STEPS = 63, LEVEL_OFFSET = 64;

// A block of weights, and its product with a block of a row in PARTS parts.
#if defined(__AVX2__)
typedef __m256 Parts;

INLINE Parts all(float one) { return _mm256_set1_ps(one); }

INLINE Parts scale_of(const RoundedBlock& x) { return _mm256_load_ps(x.scale); }

INLINE Parts add(Parts total, Parts a, Parts b) { return _mm256_fmadd_ps(a, b, total); }

INLINE float sum(Parts v) {
  const __m128 four = _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return two[0] + two[1];
}

INLINE __m256i load_bytes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// The products of four neighbours, added to a total. a: 0 to 127, so that two of them fit into 16 bits.
INLINE __m256i add_fours(__m256i total, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpbusd_epi32(total, a, b);
#else
  return _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
#endif
}

struct Positive {  // from 0 to 127
  __m256i first, second;
  INLINE Parts dot(const RoundedBlock& x) const {
    const __m256i some = add_fours(load_bytes(x.start), first, load_bytes(x.numbers));
    return _mm256_cvtepi32_ps(add_fours(some, second, load_bytes(x.numbers + BLOCK / 2)));
  }
};

struct Signed {  // from -127 to 127: their signs go to the other factor
  __m256i first, second;
  INLINE Parts dot(const RoundedBlock& x) const {
    const __m256i a = _mm256_sign_epi8(load_bytes(x.numbers), first);
    const __m256i b = _mm256_sign_epi8(load_bytes(x.numbers + BLOCK / 2), second);
    const __m256i some = add_fours(_mm256_setzero_si256(), _mm256_abs_epi8(first), a);
    return _mm256_cvtepi32_ps(add_fours(some, _mm256_abs_epi8(second), b));
  }
};

INLINE Positive unpack(const uint8_t* from, const int8_t* levels) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
  const __m256i low = _mm256_set1_epi8(15), bytes = load_bytes(from);
  return {_mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low)),
          _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, low))};
}

INLINE Signed block_of(const int8_t* from) { return {load_bytes(from), load_bytes(from + BLOCK / 2)}; }
#else
typedef float Parts;

INLINE Parts all(float one) { return one; }
INLINE Parts scale_of(const RoundedBlock& x) { return x.scale[0]; }
INLINE Parts add(Parts total, Parts a, Parts b) { return total + a * b; }
INLINE float sum(Parts v) { return v; }

struct Signed {
  int8_t numbers[BLOCK];
  INLINE Parts dot(const RoundedBlock& x) const {
    int32_t total = x.start[0];
    for (int i = 0; i < BLOCK; i++) total += int32_t(numbers[i]) * x.numbers[i];
    return float(total);
  }
};

INLINE Signed unpack(const uint8_t* from, const int8_t* levels) {
  Signed block;
  for (int i = 0; i < BLOCK / 2; i++) {
    block.numbers[i] = levels[from[i] >> 4];
    block.numbers[BLOCK / 2 + i] = levels[from[i] & 15];
  }
  return block;
}

INLINE Signed block_of(const int8_t* from) {
  Signed block;
  std::memcpy(block.numbers, from, BLOCK);
  return block;
}
#endif

typedef int8_t SignedBytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint16_t Couples __attribute__((vector_size(BLOCK), aligned(2), may_alias));
typedef uint8_t HalfBlock __attribute__((vector_size(BLOCK / 2), aligned(1), may_alias));

// A block of a row. Levels lie two in a byte, so numbers at even places come before those at odd ones.
inline void round_block(const float* x, bool for_levels, RoundedBlock& to) {
  Lanes size = {};
  for (int i = 0; i < BLOCK; i += LANES) {
    const Lanes v = load(x + i), positive = v < 0 ? -v : v;
    size = positive > size ? positive : size;
  }
  float largest = 1e-30f;
  for (int l = 0; l < LANES; l++) largest = std::max(largest, size[l]);
  const float inverse = 127 / largest;
  Whole sums = {};
  for (int i = 0; i < BLOCK; i += LANES) {
    const Lanes shifted = load(x + i) * inverse + 12582912.0f;  // its last bits: the nearest whole number
    const Whole nearest = (Whole)shifted - 0x4b400000;
    sums += nearest;
    *reinterpret_cast<SignedBytes*>(to.numbers + i) = __builtin_convertvector(nearest, SignedBytes);
  }
  std::fill_n(to.scale, PARTS, largest / 127 / (for_levels ? LEVEL_STEPS : 1));
  std::fill_n(to.start, PARTS, 0);
  if (!for_levels) return;
  const Couples couples = *reinterpret_cast<const Couples*>(to.numbers);
  *reinterpret_cast<HalfBlock*>(to.numbers) = __builtin_convertvector(couples, HalfBlock);
  *reinterpret_cast<HalfBlock*>(to.numbers + BLOCK / 2) = __builtin_convertvector(couples >> 8, HalfBlock);
  int32_t sum = 0;
  for (int l = 0; l < LANES; l++) sum += sums[l];
  std::fill_n(to.start, PARTS, -LEVEL_OFFSET / PARTS * sum);
}

const RoundedRows& round_rows(const Rows& a, bool for_levels) {
  static thread_local RoundedRows to;
  to.in_blocks = a.in / BLOCK;
  to.blocks.resize(a.rows * to.in_blocks);
  for (int64_t m = 0; m < a.rows; m++) {
    for (int64_t b = 0; b < to.in_blocks; b++) {
      round_block(a.x + m * a.x_step + b * BLOCK, for_levels, to.blocks[m * to.in_blocks + b]);
    }
  }
  return to;
}

// Outputs n, n + apart, … of M rows from `row` on.
template <int M, int R, class Weights>
void rounded_tile(const Rows& a, const RoundedRows& x, const Weights& w, int64_t row, int64_t n, int64_t apart) {
  const RoundedBlock* rows = x.blocks.data() + row * x.in_blocks;
  Parts total[M][R] = {};
  for (int64_t b = 0; b < x.in_blocks; b++) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      __builtin_prefetch(reinterpret_cast<const char*>(w.place(n + r * apart, b)) + ahead(R));
      const auto block = w.block(n + r * apart, b);
      const Parts scale = all(w.scale(n + r * apart, b));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const RoundedBlock& one = rows[m * x.in_blocks + b];
        total[m][r] = add(total[m][r], block.dot(one) * scale_of(one), scale);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) a.y[(row + m) * a.y_step + n + r * apart] = sum(total[m][r]);
  }
}

constexpr int ROUNDED_ROWS = 4;  // that share an unpacked block

// Tiles begin .. end of all rows from `row` on, M at a time.
template <int M, int R, class Weights>
void rounded_rows(const Rows& a, const RoundedRows& x, const Weights& w, int64_t begin, int64_t end, int64_t apart,
                  int64_t row = 0) {
  for (; row + M <= a.rows; row += M) {
    for (int64_t n = begin; n < end; n++) rounded_tile<M, R>(a, x, w, row, n, apart);
  }
  if constexpr (M > 1) rounded_rows<M - 1, R>(a, x, w, begin, end, apart, row);
}

// Outputs begin .. end of all rows, R at a time, far apart (products.h).
template <int M, int R, class Weights>
void rounded_outputs(const Rows& a, const RoundedRows& x, const Weights& w, int64_t begin, int64_t end) {
  const int64_t each = (end - begin) / R, last = begin + each;
  for (int64_t n = begin; n < last; n += CHUNK) rounded_rows<M, R>(a, x, w, n, std::min(n + CHUNK, last), each);
  rounded_rows<M, 1>(a, x, w, begin + each * R, end, 1);
}

template <class Weights>
void rounded_product(const Rows& a, const RoundedRows& x, const Weights& w, int64_t begin, int64_t end) {
  if (a.rows <= 2) return rounded_outputs<2, 4>(a, x, w, begin, end);
  rounded_outputs<ROUNDED_ROWS, 2>(a, x, w, begin, end);
}

void nf4_rounded_product(const Rows& a, const RoundedRows& x, const uint8_t* packed, const float* scales,
                         const float* levels, int64_t begin, int64_t end) {
  struct {
    const uint8_t* packed;
    const float* scales;
    int64_t in_blocks;
    int8_t levels[16];
    INLINE const uint8_t* place(int64_t n, int64_t b) const { return packed + (n * in_blocks + b) * (BLOCK / 2); }
    INLINE auto block(int64_t n, int64_t b) const { return unpack(place(n, b), levels); }
    INLINE float scale(int64_t n, int64_t b) const { return scales[n * in_blocks + b]; }
  } w{packed, scales, x.in_blocks, {}};
  for (int i = 0; i < 16; i++) w.levels[i] = int8_t(std::lrint(levels[i] * LEVEL_STEPS) + LEVEL_OFFSET);
  rounded_product(a, x, w, begin, end);
}

void int8_product(const Rows& a, const RoundedRows& x, const int8_t* w, const float* scales, int64_t begin, int64_t end) {
  struct {
    const int8_t* numbers;
    const float* scales;
    int64_t in_blocks;
    INLINE const int8_t* place(int64_t n, int64_t b) const { return numbers + (n * in_blocks + b) * BLOCK; }
    INLINE auto block(int64_t n, int64_t b) const { return block_of(place(n, b)); }
    INLINE float scale(int64_t n, int64_t) const { return scales[n]; }
  } weights{w, scales, x.in_blocks};
  rounded_product(a, x, weights, begin, end);
}

}  // namespace kernels
