// Heat conduction along one axis: transform, product with exp(-k w^2), transform back, for many lines at once.
#pragma once
#include "transform.h"

namespace {

typedef int32_t VecInt __attribute__((vector_size(kWidth * 4)));

constexpr int64_t kLotBytes = 16 << 10;  // spectra of a lot of lines, which stay in the level 1 cache

// e^x in float32, within two units of the last place; 0 below the smallest normal number, infinity above the largest.
INLINE Vec exponential(Vec x) {
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to whole numbers
  const Vec power = (x * 1.44269504f + kRound) - kRound;
  const Vec r = (x - power * 0.693359375f) - power * -2.12194440e-4f;  // ln 2 in two parts, the first one exact
  Vec y = r * (1.f / 5040) + 1.f / 720;
  y = y * r + 1.f / 120, y = y * r + 1.f / 24, y = y * r + 1.f / 6, y = y * r + 0.5f, y = y * r + 1.f, y = y * r + 1.f;
  // Half of the power at a time: 2^128 is no float32, though a product with it may be one.
  const VecInt whole = __builtin_convertvector((x > -88.f) & (x < 89.f) ? power : Vec{}, VecInt);
  const VecInt half = whole >> 1;
  y *= reinterpret_cast<Vec>((half + 127) << 23);
  y *= reinterpret_cast<Vec>((whole - half + 127) << 23);
  y = x < -87.33654f ? Vec{} : y;
  return x > 88.72283f ? Vec{} + __builtin_inff() : y;
}

// w^2 of each frequency; `held`: of ends that are held at zero.
void make_squares(int64_t length, bool held, float *squares) {
  for (int64_t n = 0; n < length; ++n) {
    const double frequency = 3.14159265358979323846 * double(held ? length - n : n) / double(length);
    squares[n] = float(frequency * frequency);
  }
}

// exp(-k w^2) of a tile of lanes, (length, 16), with the scale of the transforms there and back. Lane i of the tile
// belongs to channel (start + i) % channels.
void make_factors(const vheatir_plan &plan, const float *squares, const float *k, int64_t channels, int64_t start,
                  float *factors) {
  float lanes[kTile];
  for (int64_t i = 0; i < kTile; ++i) lanes[i] = k[(start + i) % channels];
  const float scale = float(plan.scale * plan.scale);
  for (int64_t n = 0; n < plan.length; ++n, factors += kTile) {
    repeat<kVectors>([&](auto v) INLINE_LAMBDA {
      store(factors + v * kWidth, exponential(load(lanes + v * kWidth) * -squares[n]) * scale);
    });
  }
}

// An axis, and what its frequencies are multiplied with.
struct Axis {
  const vheatir_plan &plan;
  const float *squares;  // w^2
  const float *factors;  // all lines are of one tile of channels
  float *space;          // lot_of(plan) * plan.slots tiles
  float *spectra;        // two lots
};

INLINE int64_t lot_of(const vheatir_plan &plan) {
  const int64_t by_space = kLotBytes / (plan.slots * kTile * 4), by_length = kLotBytes / (plan.length * kTile * 4);
  const int64_t lines = by_space < by_length ? by_space : by_length;
  return lines > 1 ? lines : 1;
}
INLINE int64_t lot_floats(const vheatir_plan &plan) { return lot_of(plan) * plan.length * kTile; }

template <int n>
INLINE void load_line(Vec *x, const float *read, int64_t row) {
  repeat<n>([&](auto i) INLINE_LAMBDA {
    x[i] = load(read), read += row;
    ADD_ONE_BY_ONE(read);
  });
}

template <int n>
INLINE void store_line(const Vec *x, float *write, int64_t row) {
  repeat<n>([&](auto i) INLINE_LAMBDA {
    store(write, x[i]), write += row;
    ADD_ONE_BY_ONE(write);
  });
}

// A whole short axis in registers, from the samples to the result.
template <int n>
void conduct_leaf(const Axis &axis, Rows source, Rows target, int64_t lines) {
  const float *table = axis.plan.table + axis.plan.steps[0].table;
  constexpr int zero = numbers(kII, n);
  for (int64_t line = 0; line < lines; ++line) {
    for (int v = 0; v < kVectors; ++v) {
      Vec x[n];
      load_line<n>(x, source.first + line * source.line + v * kWidth, source.row);
      leaf<kII, n, false>(x, table);
      x[0] *= table[zero] * table[zero];
      repeat<n>([&](auto i) INLINE_LAMBDA { x[i] *= load(axis.factors + i * kTile + v * kWidth); });
      leaf<kII, n, true>(x, table);
      store_line<n>(x, target.first + line * target.line + v * kWidth, target.row);
    }
  }
}

// Sums of the derivative to k for each lane of a tile.
struct Sums {
  double lane[kTile];
};

INLINE void add_to(Sums &sums, const Vec *total) {
  repeat<kVectors>([&](auto v) INLINE_LAMBDA {
    for (int lane = 0; lane < kWidth; ++lane) sums.lane[v * kWidth + lane] += total[v][lane];
  });
}

template <int n>
void conduct_leaf_with_sums(const Axis &axis, Rows source, Rows target, int64_t lines, Rows other, bool conducted,
                            Sums &sums) {
  const float *table = axis.plan.table + axis.plan.steps[0].table;
  constexpr int zero = numbers(kII, n);
  const float scale = float(axis.plan.scale * axis.plan.scale);
  Vec total[kVectors] = {};
  for (int64_t line = 0; line < lines; ++line) {
    for (int v = 0; v < kVectors; ++v) {
      Vec x[n], weighted[n];
      load_line<n>(x, other.first + line * other.line + v * kWidth, other.row);
      leaf<kII, n, false>(x, table);
      repeat<n>([&](auto i) INLINE_LAMBDA {
        weighted[i] = x[i] * axis.squares[i] *
                      (conducted ? load(axis.factors + i * kTile + v * kWidth) : Vec{} + scale);
      });
      weighted[0] *= table[zero] * table[zero];
      load_line<n>(x, source.first + line * source.line + v * kWidth, source.row);
      leaf<kII, n, false>(x, table);
      Vec sum = {};
      repeat<n>([&](auto i) INLINE_LAMBDA { sum += x[i] * weighted[i]; });
      total[v] -= sum;
      x[0] *= table[zero] * table[zero];
      repeat<n>([&](auto i) INLINE_LAMBDA { x[i] *= load(axis.factors + i * kTile + v * kWidth); });
      leaf<kII, n, true>(x, table);
      store_line<n>(x, target.first + line * target.line + v * kWidth, target.row);
    }
  }
  add_to(sums, total);
}

struct Leaf {
  void (*conduct)(const Axis &, Rows, Rows, int64_t);
  void (*conduct_with_sums)(const Axis &, Rows, Rows, int64_t, Rows, bool, Sums &);
};

template <int n>
constexpr Leaf leaf_of_length() {
  if constexpr (n > 0 && (n <= VHEATIR_SHORT_LEAF || n % 4 == 0)) return {conduct_leaf<n>, conduct_leaf_with_sums<n>};
  return {};
}

template <int... n>
INLINE const Leaf &leaf_of(int64_t length, std::integer_sequence<int, n...>) {
  static constexpr Leaf of_length[] = {leaf_of_length<n>()...};
  return of_length[length];
}

// The plan's only step, or null.
INLINE const Leaf *only_leaf(const vheatir_plan &plan) {
  if (plan.step_count != 1 || plan.steps[0].kind != VHEATIR_LEAF) return nullptr;
  return &leaf_of(plan.length, std::make_integer_sequence<int, VHEATIR_LONG_LEAF + 1>());
}

// Conducts `lines` lines. The target may be the source.
void conduct_lines(const Axis &axis, Rows source, Rows target, int64_t lines) {
  if (const Leaf *leaf = only_leaf(axis.plan)) return leaf->conduct(axis, source, target, lines);
  const int64_t lot = lot_of(axis.plan), size = axis.plan.length * kTile;
  const Rows spectra = {axis.spectra, kTile, size};
  for (int64_t done = 0; done < lines; done += lot) {
    const int64_t count = done + lot < lines ? lot : lines - done;
    const Rows from = {source.first + done * source.line, source.row, source.line};
    const Rows to = {target.first + done * target.line, target.row, target.line};
    transform<false>(axis.plan, from, spectra, count, axis.space);
    for (int64_t line = 0; line < count; ++line) {
      float *x = axis.spectra + line * size;
      for (int64_t i = 0; i < size; i += kWidth) store(x + i, load(x + i) * load(axis.factors + i));
    }
    transform<true>(axis.plan, spectra, to, count, axis.space);
  }
}

// Likewise, and adds -w^2 times the product of the spectra of source and other to the sums. `conducted`: the other lines
// are those before the conduction, else those after it.
void conduct_lines_with_sums(const Axis &axis, Rows source, Rows target, int64_t lines, Rows other, bool conducted,
                             Sums &sums) {
  if (const Leaf *leaf = only_leaf(axis.plan)) {
    return leaf->conduct_with_sums(axis, source, target, lines, other, conducted, sums);
  }
  const int64_t lot = lot_of(axis.plan), length = axis.plan.length, size = length * kTile;
  const float scale = float(axis.plan.scale * axis.plan.scale);
  float *others = axis.spectra + lot_floats(axis.plan);
  for (int64_t done = 0; done < lines; done += lot) {
    const int64_t count = done + lot < lines ? lot : lines - done;
    const Rows from = {source.first + done * source.line, source.row, source.line};
    const Rows beside = {other.first + done * other.line, other.row, other.line};
    const Rows to = {target.first + done * target.line, target.row, target.line};
    transform<false>(axis.plan, from, {axis.spectra, kTile, size}, count, axis.space);
    transform<false>(axis.plan, beside, {others, kTile, size}, count, axis.space);
    for (int64_t line = 0; line < count; ++line) {
      float *spectrum = axis.spectra + line * size;
      const float *one = others + line * size;
      Vec total[kVectors] = {};
      for (int64_t n = 0; n < length; ++n) {
        repeat<kVectors>([&](auto v) INLINE_LAMBDA {
          const int64_t at = n * kTile + v * kWidth;
          const Vec before = load(spectrum + at), after = before * load(axis.factors + at);
          total[v] -= (conducted ? after : before * scale) * load(one + at) * axis.squares[n];
          store(spectrum + at, after);
        });
      }
      add_to(sums, total);
    }
    transform<true>(axis.plan, {axis.spectra, kTile, size}, to, count, axis.space);
  }
}

}  // namespace
