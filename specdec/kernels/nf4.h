// Products with weights in 4 bits: NF4, as bitsandbytes stores them (Dettmers et al. 2023, QLoRA).
// The weights of a matrix [out, in] lie in one row of numbers: byte i holds numbers 2i (upper half) and 2i + 1,
// each the number of a level; 64 numbers share a scale, which is itself one of 256 numbers times a scale that 256
// of them share, plus an offset.
#pragma once

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

}  // namespace kernels
