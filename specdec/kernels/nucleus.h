// What top-p keeps of a distribution, without sorting it.
#pragma once

#include <bit>

#include "kernels.h"

namespace kernels {

// Bit by bit, for the bits of positive floats are ordered as the floats are.
float least_of_mass(const float* numbers, int64_t count, float mass) {
  constexpr int STREAMS = 4;  // a sum waits for the one before it
  int32_t least = 0;
  for (int32_t bit = 1 << 29; bit > 0; bit >>= 1) {  // all below 2
    const float from = std::bit_cast<float>(least | bit);
    Lanes total[STREAMS] = {};
    const auto add = [&](Lanes some, int s) __attribute__((always_inline)) {
      total[s] += some >= from ? some : Lanes{};
    };
    int64_t i = 0;
    for (; i + STREAMS * LANES <= count; i += STREAMS * LANES) {
      for (int s = 0; s < STREAMS; s++) add(load(numbers + i + s * LANES), s);
    }
    for (; i < count; i += LANES) add(load_some(numbers + i, std::min<int64_t>(LANES, count - i)), 0);
    const Lanes all = (total[0] + total[1]) + (total[2] + total[3]);
    if (sums<1>(&all)[0] >= mass) least |= bit;
  }
  return std::bit_cast<float>(least);
}

}  // namespace kernels
