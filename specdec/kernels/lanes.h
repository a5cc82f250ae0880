// Vectors of float32 as wide as the registers of the instruction set that this is built for, and the numbers
// that are widened into them. No torch here, nor in the other headers: they can be built and tried alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// LANES floats make a vector, and there are REGISTERS vectors. (A build can ask for another set's shapes.)
#if !defined(LANES)
#if defined(__AVX512F__) && defined(__AVX512BW__)
#define LANES 16
#define REGISTERS 32
#elif defined(__AVX2__)
#define LANES 8
#define REGISTERS 16
#elif defined(__aarch64__)
#define LANES 4
#define REGISTERS 32
#else
#define LANES 4
#define REGISTERS 16
#endif
#endif

namespace kernels {

inline const char* instruction_set() {
#if LANES == 16
  return "avx512";
#elif LANES == 8
  return "avx2";
#elif defined(__aarch64__)
  return "neon";
#else
  return "generic";
#endif
}

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

#if defined(__aarch64__)
typedef __fp16 Half;
#else
typedef _Float16 Half;
#endif

typedef float Lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Whole __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

#define INLINE inline __attribute__((always_inline))

// Have a vector stay in its register: gcc else reads it from memory again for each use. (The shapes of a wider
// set than the processor's have no such register.)
#if defined(__aarch64__)
#define KEEP(v) asm("" : "+w"(v))
#elif defined(__AVX512F__)
#define KEEP(v) asm("" : "+v"(v))
#elif LANES < 16
#define KEEP(v) asm("" : "+x"(v))
#else
#define KEEP(v) (void)0
#endif

// a * b + c, rounded once where the processor can. Nothing else is fused (-ffp-contract=off): a compiler that
// fuses here and not there would give a row other bits beside other rows.
INLINE Lanes fused(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__) && LANES == 16
  return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && LANES == 8
  return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__) && LANES == 4
  return (Lanes)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__FMA__)
  for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

INLINE Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }

INLINE Lanes load(const BFloat16* from) {  // the upper half of a float
#if defined(__AVX512F__) && LANES == 16
  const Bits wide = (Bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__) && LANES == 8
  const Bits wide = (Bits)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  const Bits wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits);
#endif
  return (Lanes)(wide << 16);
}

INLINE Lanes load(const Float16* from) {
#if defined(__AVX512F__) && LANES == 16
  return (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__) && LANES == 8
  return (Lanes)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__F16C__)
  Lanes wide;
  for (int i = 0; i < LANES; i += 4) {
    const __m128 four = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i)));
    std::memcpy(reinterpret_cast<float*>(&wide) + i, &four, sizeof(four));
  }
  return wide;
#else
  Lanes wide;
  for (int i = 0; i < LANES; i++) {
    Half one;
    std::memcpy(&one, from + i, sizeof(one));
    wide[i] = float(one);
  }
  return wide;
#endif
}

INLINE void store(float* to, Lanes v) { *reinterpret_cast<Lanes*>(to) = v; }

INLINE void store(BFloat16* to, Lanes v) {  // to the nearest, ties to even; NaN stays NaN
  const Bits bits = (Bits)v, rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  const Bits kept = v == v ? rounded : bits | 0x400000u;
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(kept >> 16, Halves);
}

INLINE void store(Float16* to, Lanes v) {
#if defined(__F16C__)
  for (int i = 0; i < LANES; i += 4) {
    __m128 four;
    std::memcpy(&four, reinterpret_cast<const float*>(&v) + i, sizeof(four));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + i), _mm_cvtps_ph(four, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  for (int i = 0; i < LANES; i++) {
    const Half one = Half(v[i]);
    std::memcpy(to + i, &one, sizeof(one));
  }
#endif
}

// The first `count` lanes; the others are 0, or stay as they are in memory.
template <class T>
INLINE Lanes load_some(const T* from, int64_t count) {
  T all[LANES] = {};
  std::memcpy(all, from, count * sizeof(T));
  return load(all);
}

template <class T>
INLINE void store_some(T* to, Lanes v, int64_t count) {
  T all[LANES];
  store(all, v);
  std::memcpy(to, all, count * sizeof(T));
}

// `count` numbers from one type to another, to the nearest.
template <class From, class To>
void convert(const From* from, To* to, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
  if (i < count) store_some(to + i, load_some(from + i, count - i), count - i);
}

// Each lane of a plus the lane whose number differs in bit W, where that bit is 0; where it is 1, the same of b.
template <int W, int... L>
INLINE Lanes fold(Lanes a, Lanes b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, (L & W ? LANES + L : L)...) +
         __builtin_shufflevector(a, b, (L & W ? LANES + L - W : L + W)...);
}

// Where the sum of vector i of `R` lies after their folds.
constexpr int lane_of(int i, int R) {
  int lane = 0;
  for (int w = LANES / 2; R > 1; R /= 2, w /= 2, i /= 2) lane += i % 2 * w;
  return lane;
}

template <int R, int... L>
INLINE Lanes in_order(Lanes v, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(v, v, lane_of(L % R, R)...);
}

// The sum of each of R vectors, in the first R lanes (R a power of two, at most LANES). Together they take
// half the steps that they take one by one, and are added in the same order.
template <int R, int W = LANES / 2, int ALL = R>
INLINE Lanes sums(const Lanes* of) {
  static_assert(R <= LANES);
  constexpr auto lanes = std::make_integer_sequence<int, LANES>();
  Lanes v[R];  // a copy: vectors whose place is handed on don't stay in registers
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) v[i] = of[i];
  constexpr int left = R > 1 ? R / 2 : 1, second = R > 1 ? 1 : 0;
#pragma GCC unroll 16
  for (int i = 0; i < left; i++) v[i] = fold<W>(v[i + second * i], v[i + second * (i + 1)], lanes);
  if constexpr (W > 1) return sums<left, W / 2, ALL>(v);
  return in_order<ALL>(v[0], lanes);
}

inline int64_t whole_lanes(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

}  // namespace kernels
