// DCT-II and DCT-IV of a short odd length n in registers, as a real Fourier transform of the same length: samples and
// frequencies change places and signs (the mapping of kernels/cpu/plan_odd.py, here at compile time), and what remains are
// products with only n - 1 different numbers, half of them cosines and half sines.
#pragma once
#include "lanes.h"

namespace {

// Where a sample or a frequency is, up to a sign.
struct Signed {
  int at, sign;
};

constexpr int modulo(int a, int n) { return (a % n + n) % n; }
constexpr int inverse(int a, int n) {
  int b = 1;
  while (modulo(a * b, n) != 1 % n) ++b;
  return b;
}

// The odd number +-odd, or for modulus 8 also +-(4n - odd) with the opposite sign, that is 1 in the modulus.
constexpr Signed odd_sample(int odd, int n, int modulus) {
  const Signed choices[4] = {{odd, 1}, {-odd, 1}, {4 * n - odd, -1}, {odd - 4 * n, -1}};
  int i = 0;
  while (modulo(choices[i].at, modulus) != 1) ++i;
  return choices[i];
}

// Cosine sums c[k] = sum of cos(2 pi k r / n) f[r] and sine sums s[k] become the frequencies of a DCT:
// of type II     y[cosine[k].at] = cosine[k].sign c[k], y[sine[k].at] = sine[k].sign s[k];
// of type IV     with c and s taken times those signs, y[cosine[k].at] = c + s, y[sine[k].at] = second[k] (c - s).
template <bool four, int n>
struct OddOrder {
  constexpr OddOrder() : sample(), cosine(), sine(), second() {
    constexpr int modulus = four ? 8 : 4;
    for (int x = 0; x < n; ++x) {
      const Signed u = odd_sample(2 * x + 1, n, modulus);
      sample[modulo(inverse(modulus, n) * u.at, n)] = {x, u.sign};
    }
    for (int k = 0; k <= n / 2; ++k) cosine[k] = sine[k] = {-1, 0};
    for (int k = 0; k < n; ++k) four ? place4(k) : place2(k);
  }
  constexpr void place2(int k) {
    const int quarter = n * k % 4, sign = quarter == 0 || quarter == 3 ? 1 : -1;
    if (k % 2 == 0) cosine[2 * k > n ? n - k : k] = {k, sign};
    if (k % 2 == 1) sine[2 * k > n ? n - k : k] = {k, 2 * k > n ? -sign : sign};
  }
  constexpr void place4(int x) {
    const Signed v = odd_sample(2 * x + 1, n, 8);
    const int residue = modulo(v.at, n), k = 2 * residue > n ? n - residue : residue;
    const int of_cosine = v.sign * (n % 8 == 1 || n % 8 == 7 ? 1 : -1);
    const int of_sine = -v.sign * (n % 8 == 1 || n % 8 == 3 ? 1 : -1) * (2 * residue > n ? -1 : 1);
    if (cosine[k].sign == 0) {
      cosine[k] = {x, of_cosine};
      sine[k] = {-1, of_sine};
    } else {
      sine[k].at = x;
      second[k] = of_cosine * cosine[k].sign;
    }
  }
  Signed sample[n], cosine[n / 2 + 1], sine[n / 2 + 1];  // sample[r] is f[r]
  int second[n / 2 + 1];
};

// sum += sign * number * x, or the first term of a sum. The sign is a constant: it costs nothing.
template <int sign>
INLINE void add_product(Vec &sum, bool first, float number, Vec x) {
  if (first) {
    sum = sign > 0 ? number * x : -(number * x);
  } else {
    sum = sign > 0 ? sum + number * x : sum - number * x;
  }
}

constexpr float kHalfRoot = 0.70710678118654752440f;

template <bool four, int n>
struct OddLeaf {
  static constexpr OddOrder<four, n> order{};
  static constexpr int half = n / 2;
  static constexpr bool same(int r) { return order.sample[r].sign == order.sample[n - r].sign; }

  // Weighted sums over i of x[i] by the symmetric matrix cos or sin of 2 pi k i / n, 1 <= i, k <= half, with the signs of
  // samples and results; `numbers` holds those cosines or sines of 2 pi j / n from j = 1 on. Cosine sums start as given.
  template <bool sines, bool transposed>
  static INLINE void multiply(const float *numbers, const Vec *x, Vec *y) {
    repeat<half>([&](auto i) INLINE_LAMBDA {
      repeat<half>([&](auto k) INLINE_LAMBDA {
        constexpr int a = i + 1, b = k + 1, r = transposed ? b : a, f = transposed ? a : b;
        constexpr int residue = r * f % n, j = 2 * residue > n ? n - residue : residue;
        constexpr int of_sample = order.sample[r].sign, of_result = sines ? order.sine[f].sign : order.cosine[f].sign;
        constexpr int sign = of_sample * of_result * (sines && 2 * residue > n ? -1 : 1);
        if constexpr (j > 0) {
          add_product<sign>(y[b], sines && a == 1, numbers[j - 1], x[a]);
        } else if constexpr (!sines) {
          add_product<sign>(y[b], false, four ? kHalfRoot : 1, x[a]);
        }
      });
    });
  }

  static INLINE void forward(Vec *x, const float *numbers) {
    Vec even[half + 1], odd[half + 1], cosines[half + 1], sines[half + 1];
    const Vec middle = four ? kHalfRoot * x[order.sample[0].at] : x[order.sample[0].at];
    Vec sum = order.sample[0].sign * order.cosine[0].sign > 0 ? middle : -middle;
    repeat<half>([&](auto i) INLINE_LAMBDA {
      constexpr int r = i + 1, sign = order.sample[r].sign * order.cosine[0].sign;
      const Vec a = x[order.sample[r].at], b = x[order.sample[n - r].at];
      even[r] = same(r) ? a + b : a - b;
      odd[r] = same(r) ? a - b : a + b;
      cosines[r] = order.sample[0].sign * order.cosine[r].sign > 0 ? middle : -middle;
      add_product<sign>(sum, false, four ? kHalfRoot : 1, even[r]);
    });
    cosines[0] = sum;
    multiply<false, false>(numbers, even, cosines);
    multiply<true, false>(numbers + half, odd, sines);
    x[order.cosine[0].at] = cosines[0];
    repeat<half>([&](auto i) INLINE_LAMBDA {
      constexpr int k = i + 1;
      const Vec c = cosines[k], s = sines[k];
      x[order.cosine[k].at] = four ? c + s : c;
      x[order.sine[k].at] = !four ? s : order.second[k] > 0 ? c - s : s - c;
    });
  }

  static INLINE void backward(Vec *x, const float *numbers) {
    Vec even[half + 1], odd[half + 1], cosines[half + 1], sines[half + 1];
    const Vec zero = four ? kHalfRoot * x[order.cosine[0].at] : x[order.cosine[0].at];
    Vec sum = order.sample[0].sign * order.cosine[0].sign > 0 ? zero : -zero;
    repeat<half>([&](auto i) INLINE_LAMBDA {
      constexpr int k = i + 1, sign = order.sample[0].sign * order.cosine[k].sign;
      const Vec a = x[order.cosine[k].at], b = x[order.sine[k].at];
      cosines[k] = !four ? a : order.second[k] > 0 ? a + b : a - b;
      sines[k] = !four ? b : order.second[k] > 0 ? a - b : a + b;
      even[k] = order.sample[k].sign * order.cosine[0].sign > 0 ? zero : -zero;
      add_product<sign>(sum, false, four ? kHalfRoot : 1, cosines[k]);
    });
    multiply<false, true>(numbers, cosines, even);
    multiply<true, true>(numbers + half, sines, odd);
    x[order.sample[0].at] = sum;
    repeat<half>([&](auto i) INLINE_LAMBDA {
      constexpr int r = i + 1;
      x[order.sample[r].at] = even[r] + odd[r];
      x[order.sample[n - r].at] = same(r) ? even[r] - odd[r] : odd[r] - even[r];
    });
  }
};

}  // namespace
