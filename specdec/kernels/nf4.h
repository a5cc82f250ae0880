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

// The weights of output n in float32, exactly as bitsandbytes widens them; `pairs` [256, 2] are the levels in a byte.
inline void widen(const Nf4& w, const float* pairs, int64_t n, float* to) {
  const int64_t first = n * w.in;
  if (w.in % BLOCK != 0) {
    for (int64_t i = first; i < first + w.in; i++) {
      float scale;
      read_scales(w, i / BLOCK, 1, &scale);
      to[i - first] = pairs[2 * w.packed[i / 2] + i % 2] * scale;
    }
    return;
  }
  for (int64_t i = 0; i < w.in; i += BLOCK) {
    const uint8_t* from = w.packed + (first + i) / 2;
    float scale;
    read_scales(w, (first + i) / BLOCK, 1, &scale);
#pragma GCC unroll 32
    for (int j = 0; j < BLOCK / 2; j++) std::memcpy(to + i + 2 * j, pairs + 2 * from[j], 2 * sizeof(float));
#pragma GCC unroll 16
    for (int j = 0; j < BLOCK; j += LANES) store(to + i + j, load(to + i + j) * scale);
  }
}

void nf4_product(const Rows& a, const Nf4& w, int64_t begin, int64_t end) {
  float pairs[512];
  for (int b = 0; b < 256; b++) {
    pairs[2 * b] = w.levels[b >> 4];
    pairs[2 * b + 1] = w.levels[b & 15];
  }
  product_by_panels(a, begin, end, [&](int64_t n, float* panel) { widen(w, pairs, n, panel); });
}

Rounded round_rows(const Rows& a, bool halves) {
  Rounded to;
  to.numbers.resize(a.rows * a.in);
  to.scales.resize(a.rows * a.in / BLOCK);
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
      to.scales[m * a.in / BLOCK + b] = largest / 127;
    }
  }
  return to;
}

#if defined(__AVX2__)
// 64 numbers in 8 bits, and their sizes; the largest is 127.
struct Block {
  __m256i first, second, first_size, second_size;
  INLINE void take(__m256i a, __m256i b) {
    first = a, second = b, first_size = _mm256_abs_epi8(a), second_size = _mm256_abs_epi8(b);
  }
};

// Eight parts of the product of 64 numbers.
INLINE __m256 dot(const Block& w, const int8_t* x) {
  const __m256i one = _mm256_set1_epi16(1), *from = reinterpret_cast<const __m256i*>(x);
  const __m256i a = _mm256_sign_epi8(_mm256_loadu_si256(from), w.first);
  const __m256i b = _mm256_sign_epi8(_mm256_loadu_si256(from + 1), w.second);
  const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(w.first_size, a), one),
                                       _mm256_madd_epi16(_mm256_maddubs_epi16(w.second_size, b), one));
  return _mm256_cvtepi32_ps(sum);
}

typedef __m256 Parts;
INLINE Parts add(Parts total, Parts parts, float scale) {
  return _mm256_fmadd_ps(parts, _mm256_set1_ps(scale), total);
}
INLINE float sum(Parts v) {
  const __m128 four = _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return two[0] + two[1];
}

INLINE void unpack(const uint8_t* from, const int8_t* levels, Block& to) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
  const __m256i low = _mm256_set1_epi8(15), bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  to.take(_mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low)),
          _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, low)));
}

INLINE void read(const int8_t* from, Block& to) {
  const __m256i* blocks = reinterpret_cast<const __m256i*>(from);
  to.take(_mm256_loadu_si256(blocks), _mm256_loadu_si256(blocks + 1));
}
#else
struct Block {
  int8_t numbers[BLOCK];
};
typedef float Parts;
INLINE Parts dot(const Block& w, const int8_t* x) {
  int32_t total = 0;
  for (int i = 0; i < BLOCK; i++) total += int32_t(w.numbers[i]) * x[i];
  return float(total);
}
INLINE Parts add(Parts total, Parts parts, float scale) { return total + parts * scale; }
INLINE float sum(Parts v) { return v; }
INLINE void unpack(const uint8_t* from, const int8_t* levels, Block& to) {
  for (int i = 0; i < BLOCK / 2; i++) {
    to.numbers[i] = levels[from[i] >> 4];
    to.numbers[BLOCK / 2 + i] = levels[from[i] & 15];
  }
}
INLINE void read(const int8_t* from, Block& to) { std::memcpy(to.numbers, from, BLOCK); }
#endif

// Outputs n .. n + R of M rows in 8 bits; `get(r, b, block)` is block b of weights of the r-th, `scales(r, b)` its scale.
template <int M, int R, class Get, class Scale>
void rounded_tile(const Rounded& x, int64_t row, int64_t in, float* y, int64_t y_step, const Get& get, const Scale& scales) {
  const int64_t blocks = in / BLOCK;
  Parts total[M][R] = {};
  for (int64_t b = 0; b < blocks; b++) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      Block block;
      get(r, b, block);
      const float scale = scales(r, b);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const Parts parts = dot(block, x.numbers.data() + (row + m) * in + b * BLOCK);
        total[m][r] = add(total[m][r], parts, scale * x.scales[(row + m) * blocks + b]);
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
  if constexpr (M > 1) rounded_rows<M / 2, R>(x, a, n, get, scales, m);
}

constexpr int ROUNDED_ROWS = 4, ROUNDED_OUTPUTS = 4;

void nf4_rounded_product(const Rows& a, const Rounded& x, const Nf4& w, int64_t begin, int64_t end) {
  int8_t levels[16];
  for (int i = 0; i < 16; i++) levels[i] = int8_t(std::lrint(w.levels[i] * 127));
  const int64_t blocks = w.in / BLOCK;
  static thread_local std::vector<float> scales;
  scales.resize(ROUNDED_OUTPUTS * blocks);
  for (int64_t n = begin; n < end;) {
    const int64_t now = n + ROUNDED_OUTPUTS <= end ? ROUNDED_OUTPUTS : 1;
    read_scales(w, n * blocks, now * blocks, scales.data());
    for (float* s = scales.data(); s < scales.data() + now * blocks; s++) *s /= 127;
    const uint8_t* from = w.packed + n * w.in / 2;
    const float* near = scales.data();
    const auto get = [=, &levels](int r, int64_t b, Block& block) {
      __builtin_prefetch(from + (r + now) * blocks * (BLOCK / 2) + b * (BLOCK / 2));
      unpack(from + (r * blocks + b) * (BLOCK / 2), levels, block);
    };
    const auto scale = [=](int r, int64_t b) { return near[r * blocks + b]; };
    if (now == 1) {
      rounded_rows<ROUNDED_ROWS, 1>(x, a, n, get, scale);
    } else {
      rounded_rows<ROUNDED_ROWS, ROUNDED_OUTPUTS>(x, a, n, get, scale);
    }
    n += now;
  }
}

void int8_product(const Rows& a, const Rounded& x, const int8_t* w, const float* scales, int64_t begin, int64_t end) {
  const int64_t in = a.in;
  for (int64_t n = begin; n < end;) {
    const int64_t now = n + ROUNDED_OUTPUTS <= end ? ROUNDED_OUTPUTS : 1;
    const auto get = [=](int r, int64_t b, Block& block) {
      const int8_t* from = w + (n + r) * in + b * BLOCK;
      __builtin_prefetch(from + now * in);
      read(from, block);
    };
    const auto scale = [=](int r, int64_t) { return scales[n + r]; };
    if (now == 1) {
      rounded_rows<ROUNDED_ROWS, 1>(x, a, n, get, scale);
    } else {
      rounded_rows<ROUNDED_ROWS, ROUNDED_OUTPUTS>(x, a, n, get, scale);
    }
    n += now;
  }
}

}  // namespace kernels
