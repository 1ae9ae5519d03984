// One-dimensional transforms of many lines at once, by the steps of a plan (kernels/cpu/plan.py). Every step can run
// forward or transposed; the steps are orthogonal, so the transposed ones in reverse order are the inverse.
#pragma once
#include <utility>

#include "odd_leaf.h"

namespace {

constexpr int kII = VHEATIR_DCT_II, kIV = VHEATIR_DCT_IV;

constexpr int below(int type) { return type == kII ? kIV : kII; }  // type of the second half; the first is DCT-II

// Numbers that the levels of a split step take, and a transform of n samples in registers.
constexpr int split_turns(int type, int n) { return type == kIV ? 2 * n : 0; }
constexpr int split_numbers(int type, int n) {
  return n == 1 ? 0 : split_turns(type, n) + split_numbers(kII, n / 2) + split_numbers(below(type), n / 2);
}
constexpr int leaf_turns(int type, int n) { return type == kIV ? n : 0; }
constexpr int numbers(int type, int n) {
  return n % 2 ? n - 1 : leaf_turns(type, n) + numbers(kII, n / 2) + numbers(below(type), n / 2);
}

// One level: x becomes its sums and differences (DCT-II) or rotated pairs (DCT-IV) of samples i and n-1-i.
template <int type, int n, bool transposed>
INLINE void split_level(Vec *x, const float *turn) {
  Vec y[n];
  repeat<n / 2>([&](auto i) INLINE_LAMBDA {
    const float *t = turn + 4 * i;
    if constexpr (!transposed) {
      const Vec a = x[i], b = x[n - 1 - i];
      y[i] = type == kII ? a + b : t[0] * a + t[1] * b;
      y[n / 2 + i] = type == kII ? a - b : t[2] * a + t[3] * b;
    } else {
      const Vec a = x[i], b = x[n / 2 + i];
      y[i] = type == kII ? a + b : t[0] * a + t[2] * b;
      y[n - 1 - i] = type == kII ? a - b : t[1] * a + t[3] * b;
    }
  });
  repeat<n>([&](auto i) INLINE_LAMBDA { x[i] = y[i]; });
}

// All levels of a split step, down to single samples.
template <int type, int n, bool transposed>
INLINE void split(Vec *x, const float *table) {
  if constexpr (n > 1) {
    constexpr int own = split_turns(type, n);
    if constexpr (!transposed) split_level<type, n, false>(x, table);
    split<kII, n / 2, transposed>(x, table + own);
    split<below(type), n / 2, transposed>(x + n / 2, table + own + split_numbers(kII, n / 2));
    if constexpr (transposed) split_level<type, n, true>(x, table);
  }
}

// The same level at the start of a leaf, where the pairs are known: two numbers each.
template <int type, int n, bool transposed>
INLINE void leaf_level(Vec *x, const float *turn) {
  Vec y[n];
  repeat<n / 2>([&](auto i) INLINE_LAMBDA {
    constexpr int first = i, mirror = n - 1 - i, second = n / 2 + i;
    const Vec a = x[first], b = x[transposed ? second : mirror];
    if constexpr (type == kII) {
      y[first] = a + b;
      y[transposed ? mirror : second] = a - b;
    } else {
      const float cosine = turn[2 * i], sine = turn[2 * i + 1];
      if constexpr (!transposed) {
        y[first] = cosine * a + sine * b;
        y[second] = i % 2 ? cosine * b - sine * a : sine * a - cosine * b;
      } else {
        y[first] = i % 2 ? cosine * a - sine * b : cosine * a + sine * b;
        y[mirror] = i % 2 ? sine * a + cosine * b : sine * a - cosine * b;
      }
    }
  });
  repeat<n>([&](auto i) INLINE_LAMBDA { x[i] = y[i]; });
}

// A whole transform in registers, samples and frequencies in natural order.
template <int type, int n, bool transposed>
INLINE void leaf(Vec *x, const float *table) {
  if constexpr (n % 2 == 0) {
    constexpr int half = n / 2, own = leaf_turns(type, n);
    const float *first = table + own, *second = first + numbers(kII, half);
    Vec y[n];
    if constexpr (!transposed) {
      leaf_level<type, n, false>(x, table);
      leaf<kII, half, false>(x, first);
      leaf<below(type), half, false>(x + half, second);
      repeat<n>([&](auto i) INLINE_LAMBDA { y[i] = x[i]; });
      if constexpr (type == kII) {
        repeat<half>([&](auto k) INLINE_LAMBDA { x[2 * k] = y[k], x[2 * k + 1] = y[half + k]; });
      } else {  // the merge: frequencies 2k-1 and 2k are sum and difference of k and, in the second half, half-k
        x[0] = y[0], x[n - 1] = y[half];
        repeat<half - 1>([&](auto k) INLINE_LAMBDA {
          x[2 * k + 1] = y[k + 1] + y[n - 1 - k];
          x[2 * k + 2] = y[k + 1] - y[n - 1 - k];
        });
      }
    } else {
      repeat<n>([&](auto i) INLINE_LAMBDA { y[i] = x[i]; });
      if constexpr (type == kII) {
        repeat<half>([&](auto k) INLINE_LAMBDA { x[k] = y[2 * k], x[half + k] = y[2 * k + 1]; });
      } else {
        x[0] = y[0], x[half] = y[n - 1];
        repeat<half - 1>([&](auto k) INLINE_LAMBDA {
          x[k + 1] = y[2 * k + 1] + y[2 * k + 2];
          x[n - 1 - k] = y[2 * k + 1] - y[2 * k + 2];
        });
      }
      leaf<kII, half, true>(x, first);
      leaf<below(type), half, true>(x + half, second);
      leaf_level<type, n, true>(x, table);
    }
  } else if constexpr (n == 1) {
    if constexpr (type == kIV) x[0] = kHalfRoot * x[0];
  } else if constexpr (transposed) {
    OddLeaf<type == kIV, n>::backward(x, table);
  } else {
    OddLeaf<type == kIV, n>::forward(x, table);
  }
}

// What a step works on: `from` is read at rows `in`, `to` written at rows `out`.
struct Work {
  const vheatir_step *step;
  const float *table;
  Rows from, to;
  const int32_t *in, *out;
  int64_t lines;
};

// Applies body(registers, numbers) to every group of n rows, line by line.
template <int n, class Body>
INLINE void for_groups(const Work &work, const Body &body) {
  const int32_t *in = work.in, *out = work.out;
  const float *table = work.table;
  for (int32_t group = 0; group < work.step->count; ++group) {
    // Once for all lines: as much arithmetic as in the transform itself would go into addresses otherwise.
    int64_t from_at[n], to_at[n];
    for (int i = 0; i < n; ++i) from_at[i] = in[i] * work.from.row, to_at[i] = out[i] * work.to.row;
    for (int64_t line = 0; line < work.lines; ++line) {
      const float *from = work.from.first + line * work.from.line;
      float *to = work.to.first + line * work.to.line;
      for (int v = 0; v < kVectors; ++v, from += kWidth, to += kWidth) {
        Vec x[n];
        repeat<n>([&](auto i) INLINE_LAMBDA { x[i] = load(from + from_at[i]); });
        body(x, table);
        repeat<n>([&](auto i) INLINE_LAMBDA { store(to + to_at[i], x[i]); });
      }
    }
    in += n, out += n, table += work.step->table_pitch;
  }
}

template <int type, int n, bool transposed>
void run_split(const Work &work) {
  for_groups<n>(work, [](Vec *x, const float *table) INLINE_LAMBDA { split<type, n, transposed>(x, table); });
}

template <bool transposed>
void run_splits(const Work &work) {
  switch (work.step->type * 16 + work.step->size) {
    case 2: return run_split<kII, 2, transposed>(work);
    case 4: return run_split<kII, 4, transposed>(work);
    case 8: return run_split<kII, 8, transposed>(work);
    case 18: return run_split<kIV, 2, transposed>(work);
    case 20: return run_split<kIV, 4, transposed>(work);
    case 24: return run_split<kIV, 8, transposed>(work);
  }
}

// Keeps the compiler from making products of a step and its number out of sums: it would store them all, and a leaf would
// spend as many loads on addresses as on samples.
#define ADD_ONE_BY_ONE(pointer) asm("" : "+r"(pointer))

// Like for_groups, for evenly spaced rows: a leaf's are.
template <int n, class Body>
INLINE void for_even_groups(const Work &work, const Body &body) {
  const int32_t *in = work.in, *out = work.out;
  const float *table = work.table;
  for (int32_t group = 0; group < work.step->count; ++group) {
    const int64_t from_step = (in[n > 1] - in[0]) * work.from.row, to_step = (out[n > 1] - out[0]) * work.to.row;
    for (int64_t line = 0; line < work.lines; ++line) {
      const float *from = work.from.first + line * work.from.line + in[0] * work.from.row;
      float *to = work.to.first + line * work.to.line + out[0] * work.to.row;
      for (int v = 0; v < kVectors; ++v, from += kWidth, to += kWidth) {
        Vec x[n];
        const float *read = from;
        repeat<n>([&](auto i) INLINE_LAMBDA {
          x[i] = load(read), read += from_step;
          ADD_ONE_BY_ONE(read);
        });
        body(x, table);
        float *write = to;
        repeat<n>([&](auto i) INLINE_LAMBDA {
          store(write, x[i]), write += to_step;
          ADD_ONE_BY_ONE(write);
        });
      }
    }
    in += n, out += n, table += work.step->table_pitch;
  }
}

template <int type, bool transposed, int n>
void run_leaf(const Work &work) {
  for_even_groups<n>(work, [](Vec *x, const float *table) INLINE_LAMBDA {
    constexpr int zero = numbers(type, n);  // after the others: the factor of frequency zero
    if (type == kII && transposed) x[0] = table[zero] * x[0];
    leaf<type, n, transposed>(x, table);
    if (type == kII && !transposed) x[0] = table[zero] * x[0];
  });
}

typedef void (*RunLeaf)(const Work &);

template <int type, bool transposed, int n>
constexpr RunLeaf leaf_of_size() {
  if constexpr (n > 0 && (n <= VHEATIR_SHORT_LEAF || n % 4 == 0)) return run_leaf<type, transposed, n>;
  return nullptr;
}

template <int type, bool transposed, int... n>
INLINE void run_leaves(const Work &work, std::integer_sequence<int, n...>) {
  static constexpr RunLeaf of_size[] = {leaf_of_size<type, transposed, n>()...};
  of_size[work.step->size](work);
}

template <int type, bool transposed>
INLINE void run_leaves(const Work &work) {
  run_leaves<type, transposed>(work, std::make_integer_sequence<int, VHEATIR_LONG_LEAF + 1>());
}

void run_merges(const Work &work) {
  for_groups<2>(work, [](Vec *x, const float *) INLINE_LAMBDA {
    const Vec a = x[0], b = x[1];
    x[0] = a + b, x[1] = a - b;
  });
}

void run_copies(const Work &work) {
  for_groups<1>(work, [](Vec *, const float *) INLINE_LAMBDA {});
}

constexpr int kDenseRows = kWidth == 16 ? 12 : 4;  // results held in registers at once

// `count` <= n results of a dense product of size `size`, those from `start` on.
template <int n>
void dense_rows(const Work &work, const float *matrix, const int32_t *in, const int32_t *out, int size, int count,
                const float *from, float *to) {
  if (count != n) {
    if constexpr (n > 1) dense_rows<n - 1>(work, matrix, in, out, size, count, from, to);
    return;
  }
  Vec y[n][kVectors] = {};
  for (int j = 0; j < size; ++j, matrix += size) {
    const float *x = from + in[j] * work.from.row;
    Vec value[kVectors];
    repeat<kVectors>([&](auto v) INLINE_LAMBDA { value[v] = load(x + v * kWidth); });
    repeat<n>([&](auto i)
                  INLINE_LAMBDA { repeat<kVectors>([&](auto v) INLINE_LAMBDA { y[i][v] += matrix[i] * value[v]; }); });
  }
  repeat<n>([&](auto i) INLINE_LAMBDA {
    repeat<kVectors>([&](auto v) INLINE_LAMBDA { store(to + out[i] * work.to.row + v * kWidth, y[i][v]); });
  });
}

// The table holds the matrix column by column, then its transpose in the same way.
void run_dense(const Work &work, bool transposed) {
  const int size = work.step->size, blocks = (size + kDenseRows - 1) / kDenseRows;
  const float *table = work.table + (transposed ? size * size : 0);
  const int32_t *in = work.in, *out = work.out;
  for (int32_t group = 0; group < work.step->count; ++group) {
    for (int64_t line = 0; line < work.lines; ++line) {
      const float *from = work.from.first + line * work.from.line;
      float *to = work.to.first + line * work.to.line;
      for (int block = 0, start = 0; block < blocks; ++block) {  // blocks of nearly the same height
        const int count = size / blocks + (block < size % blocks);
        dense_rows<kDenseRows>(work, table + start, in, out + start, size, count, from, to);
        start += count;
      }
    }
    in += size, out += size, table += work.step->table_pitch;
  }
}

template <bool transposed>
void run_step(const Work &work) {
  switch (work.step->kind) {
    case VHEATIR_SPLIT: return run_splits<transposed>(work);
    case VHEATIR_LEAF:
      return work.step->type == kII ? run_leaves<kII, transposed>(work) : run_leaves<kIV, transposed>(work);
    case VHEATIR_DENSE: return run_dense(work, transposed);
    case VHEATIR_MERGE: return run_merges(work);
    case VHEATIR_COPY: return run_copies(work);
  }
}

// Transforms `lines` lines from samples to frequencies, or transposed. `space` holds lines * plan.slots tiles. The
// result may go where the samples are: all of a line is read before anything of it is written.
template <bool transposed>
void transform(const vheatir_plan &plan, Rows source, Rows target, int64_t lines, float *space) {
  const Rows inside = {space, kTile, plan.slots * kTile};
  for (int64_t i = 0; i < plan.step_count; ++i) {
    const vheatir_step *step = plan.steps + (transposed ? plan.step_count - 1 - i : i);
    const bool reads = step->flags & (transposed ? VHEATIR_WRITES_OUTSIDE : VHEATIR_READS_OUTSIDE);
    const bool writes = step->flags & (transposed ? VHEATIR_READS_OUTSIDE : VHEATIR_WRITES_OUTSIDE);
    const int32_t *in = plan.rows + step->rows, *out = in + step->size * step->count;
    run_step<transposed>({step, plan.table + step->table, reads ? source : inside, writes ? target : inside,
                          transposed ? out : in, transposed ? in : out, lines});
  }
}

}  // namespace
