// Products with weights in 4 bits (NF4, as bitsandbytes stores them: Dettmers et al. 2023, QLoRA) and in 8 bits.
// The weights of a matrix [out, in] lie in one row of numbers: byte i holds numbers 2i (upper half) and 2i + 1,
// each the number of a level; 64 numbers share a scale, which is itself one of 256 numbers times a scale that 256
// of them share, plus an offset.
#pragma once

#include <cmath>

#include "products.h"

namespace kernels {

// Scales of `count` blocks from `first` on, rounded as bitsandbytes rounds them.
inline void read_scales(const Nf4& w, int64_t first, int64_t count, float* scales) {
  for (int64_t b = first; b < first + count;) {
    const int64_t end = std::min(first + count, (b / SCALES + 1) * SCALES);
    const float scale = w.scale_scales[b / SCALES];
    for (; b < end; b++) {
      scales[b - first] = w.scale_levels[w.scales[b]] * scale + w.offset;
    }
  }
}

// The weights of output n in float32, exactly as bitsandbytes widens them.
inline void widen(const Nf4& w, int64_t n, float* to) {
  const int64_t first = n * w.in;
  const auto level = [&](int64_t i) { return w.levels[i % 2 ? w.packed[i / 2] & 15 : w.packed[i / 2] >> 4]; };
  if (w.in % BLOCK != 0) {
    for (int64_t i = first; i < first + w.in; i++) {
      float scale;
      read_scales(w, i / BLOCK, 1, &scale);
      to[i - first] = level(i) * scale;
    }
    return;
  }
  for (int64_t i = 0; i < w.in; i += BLOCK) {
    float scale;
    read_scales(w, (first + i) / BLOCK, 1, &scale);
#if defined(__AVX2__)
    const uint8_t* from = w.packed + (first + i) / 2;
    __builtin_prefetch(from + PANEL * w.in / 2);
    const __m256 below = _mm256_loadu_ps(w.levels), above = _mm256_loadu_ps(w.levels + 8), all = _mm256_set1_ps(scale);
    const auto eight = [&](__m256i number) __attribute__((always_inline)) {  // by its last four bits
      const __m256 is_above = _mm256_castsi256_ps(_mm256_slli_epi32(number, 28));
      return _mm256_blendv_ps(_mm256_permutevar8x32_ps(below, number), _mm256_permutevar8x32_ps(above, number), is_above) * all;
    };
#pragma GCC unroll 4
    for (int j = 0; j < BLOCK; j += 16) {
      const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + j / 2)));
      const __m256 even = eight(_mm256_srli_epi32(bytes, 4)), odd = eight(bytes);
      const __m256 a = _mm256_unpacklo_ps(even, odd), b = _mm256_unpackhi_ps(even, odd);
      _mm256_storeu_ps(to + i + j, _mm256_permute2f128_ps(a, b, 0x20));
      _mm256_storeu_ps(to + i + j + 8, _mm256_permute2f128_ps(a, b, 0x31));
    }
#else
    for (int j = 0; j < BLOCK; j++) to[i + j] = level(first + i + j) * scale;
#endif
  }
}

void nf4_product(const Rows& a, const Nf4& w, int64_t begin, int64_t end) {
  product_by_panels(a, begin, end, [&](int64_t n, float* panel) { widen(w, n, panel); });
}

Rounded round_rows(const Rows& a, bool halves) {
  Rounded to;
  to.numbers.resize(a.rows * a.in);
  to.scales.resize(a.rows * a.in / BLOCK);
  to.sums.resize(a.rows * a.in / BLOCK);
  for (int64_t m = 0; m < a.rows; m++) {
    for (int64_t b = 0; b < a.in / BLOCK; b++) {
      const float* x = a.x + m * a.x_step + b * BLOCK;
      int8_t* y = to.numbers.data() + m * a.in + b * BLOCK;
      Lanes size = {};
      for (int i = 0; i < BLOCK; i += LANES) {
        const Lanes v = load(x + i), positive = v < 0 ? -v : v;
        size = positive > size ? positive : size;
      }
      float largest = 1e-30f;
      for (int l = 0; l < LANES; l++) largest = std::max(largest, size[l]);
      const float inverse = 127 / largest;
      float scaled[BLOCK];
      for (int i = 0; i < BLOCK; i++) scaled[i] = x[i] * inverse + 12582912.0f;  // its last bits: the nearest number
      int32_t bits[BLOCK];
      std::memcpy(bits, scaled, sizeof(bits));
      for (int i = 0; halves && i < BLOCK / 2; i++) {
        y[i] = int8_t(bits[2 * i]);
        y[BLOCK / 2 + i] = int8_t(bits[2 * i + 1]);
      }
      for (int i = 0; !halves && i < BLOCK; i++) y[i] = int8_t(bits[i]);
      int32_t sum = 0;
      for (int i = 0; i < BLOCK; i++) sum += int8_t(bits[i]);
      to.scales[m * a.in / BLOCK + b] = largest / 127;
      to.sums[m * a.in / BLOCK + b] = sum * (largest / 127);
    }
  }
  return to;
}

// A block of 64 numbers in 8 bits, and its product with a block of a row, in parts.
#if defined(__AVX2__)
typedef __m256 Parts;

// Numbers from 0 to 127: a sum of two products stays within 16 bits.
struct Positive {
  __m256i first, second;
  INLINE __m256 dot(const int8_t* x) const {
    const __m256i one = _mm256_set1_epi16(1), *from = reinterpret_cast<const __m256i*>(x);
    const __m256i a = _mm256_maddubs_epi16(first, _mm256_loadu_si256(from));
    const __m256i b = _mm256_maddubs_epi16(second, _mm256_loadu_si256(from + 1));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(a, one), _mm256_madd_epi16(b, one)));
  }
};

// Numbers from -127 to 127: their signs go to the other factor.
struct Signed {
  __m256i first, second;
  INLINE __m256 dot(const int8_t* x) const {
    const __m256i one = _mm256_set1_epi16(1), *from = reinterpret_cast<const __m256i*>(x);
    const __m256i a = _mm256_maddubs_epi16(_mm256_abs_epi8(first), _mm256_sign_epi8(_mm256_loadu_si256(from), first));
    const __m256i b = _mm256_maddubs_epi16(_mm256_abs_epi8(second), _mm256_sign_epi8(_mm256_loadu_si256(from + 1), second));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(a, one), _mm256_madd_epi16(b, one)));
  }
};

INLINE Parts add(Parts total, Parts parts, float scale) {
  return _mm256_fmadd_ps(parts, _mm256_set1_ps(scale), total);
}

INLINE float sum(Parts v) {
  const __m128 four = _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return two[0] + two[1];
}

INLINE Positive unpack(const uint8_t* from, const int8_t* levels) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
  const __m256i low = _mm256_set1_epi8(15), bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {_mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low)),
          _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, low))};
}

INLINE Signed block_of(const int8_t* from) {
  const __m256i* blocks = reinterpret_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(blocks), _mm256_loadu_si256(blocks + 1)};
}
#else
typedef float Parts;

struct Signed {
  int8_t numbers[BLOCK];
  INLINE float dot(const int8_t* x) const {
    int32_t total = 0;
    for (int i = 0; i < BLOCK; i++) total += int32_t(numbers[i]) * x[i];
    return float(total);
  }
};
typedef Signed Positive;

INLINE Parts add(Parts total, Parts parts, float scale) { return total + parts * scale; }
INLINE float sum(Parts v) { return v; }

INLINE Positive unpack(const uint8_t* from, const int8_t* levels) {
  Positive block;
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

// Outputs n .. n + R of M rows in 8 bits; `get(r, b)` is block b of weights of the r-th, `scales(r, b)` its scale.
template <int M, int R, class Get, class Scale>
void rounded_tile(const Rounded& x, int64_t row, int64_t in, float* y, int64_t y_step, const Get& get, const Scale& scales) {
  const int64_t blocks = in / BLOCK;
  const int8_t* numbers = x.numbers.data();
  const float* row_scales = x.scales.data();
  Parts total[M][R] = {};
  for (int64_t b = 0; b < blocks; b++) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const auto block = get(r, b);
      const float scale = scales(r, b);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const Parts parts = block.dot(numbers + (row + m) * in + b * BLOCK);
        total[m][r] = add(total[m][r], parts, scale * row_scales[(row + m) * blocks + b]);
      }
    }
  }
  for (int m = 0; m < M; m++) {
    for (int r = 0; r < R; r++) y[m * y_step + r] = sum(total[m][r]);
  }
}

// Outputs n .. n + R of all rows from `m` on, M at a time.
template <int M, int R, class Get, class Scale>
void rounded_rows(const Rounded& x, const Rows& a, int64_t n, const Get& get, const Scale& scales, int64_t m = 0) {
  for (; m + M <= a.rows; m += M) {
    rounded_tile<M, R>(x, m, a.in, a.y + m * a.y_step + n, a.y_step, get, scales);
  }
  if constexpr (M > 1) rounded_rows<M - 1, R>(x, a, n, get, scales, m);
}

constexpr int ROUNDED_ROWS = 3, ROUNDED_OUTPUTS = 4;

// A level as a number from 0 to 127; the product with a row is then that of the levels times 127 / 2, plus the
// row's sum times 127 / 2.
INLINE int8_t positive_level(float level) { return int8_t(std::lrint((level + 1) * 63.5f)); }

void nf4_rounded_product(const Rows& a, const Rounded& x, const Nf4& w, int64_t begin, int64_t end) {
  int8_t levels[16];
  for (int i = 0; i < 16; i++) levels[i] = positive_level(w.levels[i]);
  const int64_t blocks = w.in / BLOCK;
  static thread_local std::vector<float> scales;
  scales.resize(ROUNDED_OUTPUTS * blocks);
  for (int64_t n = begin; n < end;) {
    const int64_t now = n + ROUNDED_OUTPUTS <= end ? ROUNDED_OUTPUTS : 1;
    read_scales(w, n * blocks, now * blocks, scales.data());
    const uint8_t* from = w.packed + n * w.in / 2;
    const float* near = scales.data();
    const auto get = [=, &levels](int r, int64_t b) __attribute__((always_inline)) {
      __builtin_prefetch(from + ((r + now) * blocks + b) * (BLOCK / 2));
      return unpack(from + (r * blocks + b) * (BLOCK / 2), levels);
    };
    const auto scale = [=](int r, int64_t b) __attribute__((always_inline)) { return near[r * blocks + b]; };
    if (now == 1) {
      rounded_rows<ROUNDED_ROWS, 1>(x, a, n, get, scale);
    } else {
      rounded_rows<ROUNDED_ROWS, ROUNDED_OUTPUTS>(x, a, n, get, scale);
    }
    for (int64_t m = 0; m < a.rows; m++) {
      for (int64_t r = 0; r < now; r++) {
        float offset = 0;
        for (int64_t b = 0; b < blocks; b++) offset += near[r * blocks + b] * x.sums[m * blocks + b];
        float& y = a.y[m * a.y_step + n + r];
        y = y / 63.5f - offset;
      }
    }
    n += now;
  }
}

void int8_product(const Rows& a, const Rounded& x, const int8_t* w, const float* scales, int64_t begin, int64_t end) {
  const int64_t in = a.in;
  for (int64_t n = begin; n < end;) {
    const int64_t now = n + ROUNDED_OUTPUTS <= end ? ROUNDED_OUTPUTS : 1;
    const auto get = [=](int r, int64_t b) __attribute__((always_inline)) {
      const int8_t* from = w + (n + r) * in + b * BLOCK;
      __builtin_prefetch(from + now * in);
      return block_of(from);
    };
    const auto scale = [=](int r, int64_t) __attribute__((always_inline)) { return scales[n + r]; };
    if (now == 1) {
      rounded_rows<ROUNDED_ROWS, 1>(x, a, n, get, scale);
    } else {
      rounded_rows<ROUNDED_ROWS, ROUNDED_OUTPUTS>(x, a, n, get, scale);
    }
    n += now;
  }
}

}  // namespace kernels
