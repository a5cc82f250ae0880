// The kernels without torch, against plain sums: built for other instruction sets and run by tests/test_kernels.py.
#include "kernels.cpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

using namespace kernels;

static float number() { return std::rand() / float(RAND_MAX) * 2 - 1; }

static std::vector<float> numbers(int64_t count) {
  std::vector<float> all(count);
  for (float& one : all) one = number();
  return all;
}

static int faults = 0;

static void expect(bool right, const char* what, int64_t rows, int64_t in) {
  if (right) return;
  faults++;
  std::printf("wrong: %s, %d rows of %d\n", what, int(rows), int(in));
}

static bool near(float a, double b, double tolerance) { return std::fabs(a - b) <= tolerance; }

// Rows as weights of type W want them.
template <class W>
static std::vector<float> rows_of(const std::vector<float>& x, int64_t rows, int64_t in) {
  std::vector<float> arranged(rows * whole_pairs(in));
  for (int64_t m = 0; m < rows; m++) arrange<W>(x.data() + m * in, arranged.data() + m * whole_pairs(in), in);
  return arranged;
}

template <class W>
static void check_product(const char* what, int64_t rows, int64_t in, int64_t out) {
  const std::vector<float> x = numbers(rows * in), w = numbers(out * in), arranged = rows_of<W>(x, rows, in);
  std::vector<W> stored(out * in);
  convert(w.data(), stored.data(), out * in);
  std::vector<float> widened(out * in), y(rows * out), alone(out);
  convert(stored.data(), widened.data(), out * in);
  const int64_t step = whole_pairs(in);
  product(Rows{arranged.data(), rows, in, step, y.data(), out}, stored.data(), in, 0, out);
  bool right = true, same = true;
  for (int64_t m = 0; m < rows; m++) {
    product(Rows{arranged.data() + m * step, 1, in, step, alone.data(), out}, stored.data(), in, 0, out);
    for (int64_t n = 0; n < out; n++) {
      double sum = 0;
      for (int64_t i = 0; i < in; i++) sum += double(x[m * in + i]) * widened[n * in + i];
      right = right && near(y[m * out + n], sum, 1e-5 * in);
      same = same && y[m * out + n] == alone[n];
    }
  }
  expect(right, what, rows, in);
  expect(same, "a row beside others", rows, in);
}

template <class T>
static void check_attention(const char* what, int64_t queries, int64_t dim, int64_t slots) {
  const std::vector<float> q = numbers(queries * dim), arranged = rows_of<T>(q, queries, dim);
  std::vector<T> k(slots * dim), v(slots * dim);
  convert(numbers(slots * dim).data(), k.data(), slots * dim);
  convert(numbers(slots * dim).data(), v.data(), slots * dim);
  std::vector<float> wide_k(slots * dim), wide_v(slots * dim), y(queries * dim), alone(dim);
  convert(k.data(), wide_k.data(), slots * dim);
  convert(v.data(), wide_v.data(), slots * dim);
  std::unique_ptr<bool[]> seen(new bool[queries * slots]);
  std::vector<const bool*> rows(queries);
  for (int64_t m = 0; m < queries; m++) {
    rows[m] = seen.get() + m * slots;
    for (int64_t s = 0; s < slots; s++) seen[m * slots + s] = s <= slots / 2 + m;
  }
  const int64_t step = whole_pairs(dim);
  attend(Rows{arranged.data(), queries, dim, step, y.data(), dim}, Head<T>{k.data(), v.data(), slots, dim, dim, dim, dim},
         rows.data(), 0.3f);
  bool right = true, same = true;
  for (int64_t m = 0; m < queries; m++) {
    const int64_t some = std::min(slots, slots / 2 + m + 1);  // no more slots than it sees
    attend(Rows{arranged.data() + m * step, 1, dim, step, alone.data(), dim},
           Head<T>{k.data(), v.data(), some, dim, dim, dim, dim}, rows.data() + m, 0.3f);
    std::vector<double> weights(slots);
    double total = 0;
    for (int64_t s = 0; s < some; s++) {
      double score = 0;
      for (int64_t i = 0; i < dim; i++) score += double(q[m * dim + i]) * wide_k[s * dim + i];
      total += weights[s] = std::exp(0.3 * score);
    }
    for (int64_t i = 0; i < dim; i++) {
      double sum = 0;
      for (int64_t s = 0; s < some; s++) sum += weights[s] / total * wide_v[s * dim + i];
      right = right && near(y[m * dim + i], sum, 1e-5);
      same = same && y[m * dim + i] == alone[i];
    }
  }
  expect(right, what, queries, dim);
  expect(same, "a query beside others and among more slots", queries, dim);
}

static void check_nf4(int64_t rows, int64_t in, int64_t out) {
  const int64_t blocks = (out * in + BLOCK - 1) / BLOCK;
  std::vector<uint8_t> packed((out * in + 1) / 2), scales(blocks);
  for (uint8_t& one : packed) one = std::rand();
  for (uint8_t& one : scales) one = std::rand();
  std::vector<float> levels = numbers(16);
  const std::vector<float> scale_levels = numbers(SCALES), scale_scales = numbers(blocks / SCALES + 1);
  levels[0] = -1, levels[15] = 1;
  const Nf4 w{packed.data(), scales.data(), levels.data(), scale_levels.data(), scale_scales.data(), 0.5f, in};
  const std::vector<float> x = numbers(rows * in), arranged = rows_of<float>(x, rows, in);
  std::vector<float> exact(rows * out), alone(out);
  const Rows all{arranged.data(), rows, in, whole_pairs(in), exact.data(), out};
  nf4_product(all, w, 0, out);
  bool right = true, same = true;
  for (int64_t m = 0; m < rows; m++) {
    nf4_product(Rows{arranged.data() + m * whole_pairs(in), 1, in, whole_pairs(in), alone.data(), out}, w, 0, out);
    for (int64_t n = 0; n < out; n++) {
      double sum = 0;
      for (int64_t i = 0; i < in; i++) {
        const int64_t place = n * in + i, b = place / BLOCK;
        const uint8_t byte = packed[place / 2];
        const double scale = scale_levels[scales[b]] * scale_scales[b / SCALES] + 0.5;
        sum += levels[place % 2 ? byte & 15 : byte >> 4] * scale * x[m * in + i];
      }
      right = right && near(exact[m * out + n], sum, 2e-5 * in);
      same = same && exact[m * out + n] == alone[n];
    }
  }
  expect(right, "NF4", rows, in);
  expect(same, "NF4, a row beside others", rows, in);
}

// A draft's products: near the exact ones, and a row the same beside any others.
static void check_rounded(int64_t rows, int64_t in, int64_t out) {
  std::vector<uint8_t> packed(out * in / 2);
  for (uint8_t& one : packed) one = std::rand();
  std::vector<int8_t> eight(out * in);
  for (int8_t& one : eight) one = std::rand() % 255 - 127;
  std::vector<float> levels = numbers(16);
  levels[0] = -1, levels[15] = 1;
  const std::vector<float> scales = numbers(out * in / BLOCK), x = numbers(rows * in);
  std::vector<float> nf4(rows * out), int8(rows * out), nf4_alone(out), int8_alone(out);
  const auto compute = [&](int64_t first, int64_t count, float* nf4, float* int8) {
    const Rows all{x.data() + first * in, count, in, in, nf4, out};
    nf4_rounded_product(all, round_rows(all, true), packed.data(), scales.data(), levels.data(), 0, out);
    const Rows other{x.data() + first * in, count, in, in, int8, out};
    int8_product(other, round_rows(other, false), eight.data(), scales.data(), 0, out);
  };
  compute(0, rows, nf4.data(), int8.data());
  bool nf4_right = true, int8_right = true, same = true;
  for (int64_t m = 0; m < rows; m++) {
    compute(m, 1, nf4_alone.data(), int8_alone.data());
    for (int64_t n = 0; n < out; n++) {
      double nf4_sum = 0, int8_sum = 0, size = 0;
      for (int64_t i = 0; i < in; i++) {
        const int64_t place = n * in + i;
        const uint8_t byte = packed[place / 2];
        const double scale = scales[place / BLOCK], level = levels[place % 2 ? byte & 15 : byte >> 4];
        nf4_sum += level * scale * x[m * in + i];
        size += scale * scale;
        int8_sum += double(eight[place]) * scales[n] * x[m * in + i];
      }
      nf4_right = nf4_right && near(nf4[m * out + n], nf4_sum, 0.02 * std::sqrt(size));
      int8_right = int8_right && near(int8[m * out + n], int8_sum, 2 * std::fabs(scales[n]) * std::sqrt(in));
      same = same && nf4[m * out + n] == nf4_alone[n] && int8[m * out + n] == int8_alone[n];
    }
  }
  expect(nf4_right, "NF4 rounded", rows, in);
  expect(int8_right, "8 bits", rows, in);
  expect(same, "rounded, a row beside others", rows, in);
}

int main() {
  for (int64_t rows = 1; rows <= 17; rows++) {
    for (int64_t in : {1, 7, 50, 64, 192, 577}) {
      check_product<float>("float32", rows, in, 13);
      check_product<BFloat16>("bfloat16", rows, in, 13);
      check_product<Float16>("float16", rows, in, 13);
      check_nf4(rows, in, 13);
      if (in % BLOCK == 0) check_rounded(rows, in, 13);
    }
    for (int64_t dim : {6, 24, 64, 80}) {
      check_attention<float>("attention, float32", rows, dim, 37);
      check_attention<BFloat16>("attention, bfloat16", rows, dim, 70);
      check_attention<Float16>("attention, float16", rows, dim, 5);
    }
  }
  check_product<BFloat16>("bfloat16, many rows", 200, 600, 9);
  std::printf("%s: %d faults\n", instruction_set(), faults);
  return faults > 0;
}
