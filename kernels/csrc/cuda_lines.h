// One-dimensional transforms of lines of any length, for planes that do not fit into shared memory: one block holds LINES
// neighboring lines. The maps are transformed along W, then along H and back with the decay between, then back along W.
//
// Each line is split into sums and differences of mirrored points; each part is multiplied with a table of half the length.
// `Halves` multiplies on tensor cores: each line is rounded to 16 bits without its mean (its constant frequency, on the way
// back), which stays in float32, and times a power of two of its own. `Floats` multiplies and adds in float32 throughout.
#pragma once
#include "cuda_api.h"
#include "cuda_device.h"

constexpr int LINE_EXPONENT = 11;  // largest magnitudes as 16-bit floats; a sum of two points is below 2^13
constexpr int LINE_THREADS = 256;

// Where the lines of a block begin, and what was taken out of them.
template <int LINES>
struct LineState {
  long long source[LINES], target[LINES], spectrum[LINES], decay[LINES];
  float partial[3][LINE_THREADS];
  float mean[LINES];  // subtracted from every point
  float scale[LINES], unscale[LINES];
  float constant[LINES];  // added to the constant frequency, or to every point on the way back
};

// Work space and products in 16-bit floats. Parts are padded with zeros to a multiple of 16 points.
template <int LINES_>
struct Halves {
  static constexpr int LINES = LINES_;
  static constexpr int ACROSS = LINES < 32 ? LINES : 32, CHUNKS = ACROSS / 8;  // lines of one warp's task
  static constexpr bool EXACT = false;
  static constexpr int PITCH = LINES + 8;  // free of bank conflicts
  Bits *data;
  int padded;

  DEVICE Halves(void *memory, int length)
      : data(static_cast<Bits *>(memory)), padded(((length + 1) / 2 + 15) / 16 * 16) {}
  DEVICE LineState<LINES> *state() const { return reinterpret_cast<LineState<LINES> *>(data + 2 * padded * PITCH); }

  DEVICE void store(int part, int i, int line, float v) const {
    data[(part * padded + i) * PITCH + line] = (Bits)pack_halves(v, 0);
  }

  DEVICE void multiply_part(const Quad *fragments, int part, int out, int first, float (&sums)[CHUNKS][4]) const {
    const int lane = thread_index() % 32, steps = padded / 16;
    fragments += ((long long)(part * steps + out) * steps) * 32 + lane;
    const Bits *from = data + (part * padded + (lane >> 3 & 1) * 8 + lane % 8) * PITCH + first + (lane >> 4) * 8;
#pragma unroll
    for (int k = 0; k < CHUNKS * 4; k++) sums[k / 4][k % 4] = 0;
#pragma unroll 2
    for (int step = 0; step < steps; step++, from += 16 * PITCH) {
      const Quad fragment = load_table(fragments + step * 32);
#pragma unroll
      for (int two = 0; two < CHUNKS / 2; two++) {
        unsigned int blocks[4];
        load_blocks(blocks, from + two * 16);
        multiply_add(sums[2 * two], fragment, blocks[0], blocks[1]);
        multiply_add(sums[2 * two + 1], fragment, blocks[2], blocks[3]);
      }
    }
  }

  // Calls use(slot, line, values of the first part, of the second) for each pair of neighboring lines.
  template <class Use>
  DEVICE void multiply(const void *table, Use use) const {
    const int lane = thread_index() % 32, tasks = padded / 16 * (LINES / ACROSS);
    for (int task = thread_index() / 32; task < tasks; task += thread_count() / 32) {
      const int out = task / (LINES / ACROSS), first = task % (LINES / ACROSS) * ACROSS;
      float even[CHUNKS][4], odd[CHUNKS][4];
      warp_barrier();  // lanes may have parted where they stored; matrix operations want them together
      multiply_part(static_cast<const Quad *>(table), 0, out, first, even);
      multiply_part(static_cast<const Quad *>(table), 1, out, first, odd);
#pragma unroll
      for (int k = 0; k < CHUNKS * 2; k++) {
        const int slot = out * 16 + lane / 4 + k % 2 * 8, line = first + k / 2 * 8 + lane % 4 * 2;
        const float *e = &even[k / 2][k % 2 * 2], *o = &odd[k / 2][k % 2 * 2];
        use(slot, line, e[0], e[1], o[0], o[1]);
      }
    }
  }
};

// Work space and products in float32. Each thread makes 4 outputs of both parts for 4 lines.
template <int LINES_>
struct Floats {
  static constexpr int LINES = LINES_;
  static constexpr bool EXACT = true;
  float *data;
  int padded;  // rows of the table have this many numbers

  DEVICE Floats(void *memory, int length)
      : data(static_cast<float *>(memory)), padded(((length + 1) / 2 + 3) / 4 * 4) {}
  DEVICE LineState<LINES> *state() const { return reinterpret_cast<LineState<LINES> *>(data + 2 * padded * LINES); }

  DEVICE void store(int part, int i, int line, float v) const { data[(part * padded + i) * LINES + line] = v; }

  DEVICE void multiply_part(const Quad *table, int part, int out, int first, float (&sums)[4][4]) const {
    const Quad *numbers = table + (long long)part * padded * (padded / 4) + out;
    const float *from = data + part * padded * LINES + first;
#pragma unroll
    for (int k = 0; k < 16; k++) sums[k / 4][k % 4] = 0;
#pragma unroll 2
    for (int i = 0; i < padded; i++, numbers += padded / 4, from += LINES) {
      const Quad factors = load_table(numbers), points = *reinterpret_cast<const Quad *>(from);
#pragma unroll
      for (int k = 0; k < 16; k++) {
        sums[k / 4][k % 4] = fmaf(__uint_as_float(factors.r[k / 4]), __uint_as_float(points.r[k % 4]),
                                  sums[k / 4][k % 4]);
      }
    }
  }

  template <class Use>
  DEVICE void multiply(const void *table, Use use) const {
    for (int task = thread_index(); task < padded / 4 * (LINES / 4); task += thread_count()) {
      const int out = task / (LINES / 4), first = task % (LINES / 4) * 4;
      float even[4][4], odd[4][4];
      multiply_part(static_cast<const Quad *>(table), 0, out, first, even);
      multiply_part(static_cast<const Quad *>(table), 1, out, first, odd);
#pragma unroll
      for (int k = 0; k < 8; k++) {
        const float *e = &even[k / 2][k % 2 * 2], *o = &odd[k / 2][k % 2 * 2];
        use(out * 4 + k / 2, first + k % 2 * 2, e[0], e[1], o[0], o[1]);
      }
    }
  }
};

struct alignas(8) Two {
  float a, b;
};
DEVICE void write_one(float *to, float v, int) { *to = v; }
DEVICE void write_two(float *to, float a, float b, int) { *reinterpret_cast<Two *>(to) = {a, b}; }
DEVICE void write_one(Bits *to, float v, int bfloat) { *to = (Bits)pack(v, 0, bfloat); }
DEVICE void write_two(Bits *to, float a, float b, int bfloat) {
  *reinterpret_cast<unsigned int *>(to) = pack(a, b, bfloat);
}

template <class Arithmetic, class Source, class Target>
struct LinesOperation {
  static constexpr int LINES = Arithmetic::LINES;
  const vheatir_lines_job &job;
  Arithmetic arithmetic;
  LineState<LINES> *state;
  int length, lines;  // lines: those of this block, the last one may have fewer

  DEVICE LinesOperation(const vheatir_lines_job &j, void *memory) : job(j), arithmetic(memory, j.length) {
    state = arithmetic.state();
    length = j.length;
    const long long first = block_index() * LINES;
    lines = (int)(j.count - first < LINES ? j.count - first : LINES);
    if (thread_index() < lines) {
      const long long line = first + thread_index(), inner = line % j.run, runs = line / j.run;
      const long long outer = runs % j.outer, image = runs / j.outer;
      state->source[thread_index()] = begin(j.source, image, outer, inner);
      state->target[thread_index()] = begin(j.target, image, outer, inner);
      state->spectrum[thread_index()] = begin(j.spectrum, image, outer, inner);
      state->decay[thread_index()] = outer * j.decay_outer + inner * j.decay_inner;
    }
    block_barrier();
  }

  DEVICE static long long begin(const vheatir_lines &maps, long long image, long long outer, long long inner) {
    return image * maps.image + outer * maps.outer_stride + inner;
  }

  // What is taken out of each line and by what it is multiplied, from its sum or constant frequency and its range.
  template <class T>
  DEVICE void measure(const T *maps, const long long *begins, long long step, bool inverse) {
    const int line = thread_index() % LINES;
    float sum = 0, least = infinity(), greatest = -infinity();
    if (line < lines) {
      const T *from = maps + begins[line];
#pragma unroll 4
      for (int i = thread_index() / LINES; i < length; i += thread_count() / LINES) {
        const float v = widen(from[i * step], job.bfloat);
        if (inverse && i == 0) continue;
        sum += v, least = fminf(least, v), greatest = fmaxf(greatest, v);
      }
    }
    state->partial[0][thread_index()] = sum;
    state->partial[1][thread_index()] = least;
    state->partial[2][thread_index()] = greatest;
    block_barrier();
    if (thread_index() < lines) {
      for (int i = thread_index() + LINES; i < thread_count(); i += LINES) {
        sum += state->partial[0][i];
        least = fminf(least, state->partial[1][i]);
        greatest = fmaxf(greatest, state->partial[2][i]);
      }
      const float root = sqrtf((float)length), mean = inverse ? 0 : sum / length;
      const int exponent = scale_for(fmaxf(greatest - mean, mean - least), LINE_EXPONENT);
      state->mean[line] = mean;
      state->scale[line] = power_of_two(exponent == NOTHING ? 0 : exponent);
      state->unscale[line] = power_of_two(exponent == NOTHING ? 0 : -exponent);
      state->constant[line] = inverse ? widen(maps[begins[line]], job.bfloat) / root : mean * root;
    }
  }

  DEVICE void measure_nothing() {
    if (thread_index() >= lines) return;
    state->mean[thread_index()] = state->constant[thread_index()] = 0;
    state->scale[thread_index()] = state->unscale[thread_index()] = 1;
  }

  // Lines from global memory to work space, in two parts.
  template <class T>
  DEVICE void load(const T *maps, const long long *begins, long long step, bool inverse) {
    if (Arithmetic::EXACT) {
      measure_nothing();
    } else {
      measure(maps, begins, step, inverse);
    }
    block_barrier();
    const int line = thread_index() % LINES, even_count = (length + 1) / 2;
    const bool there = line < lines;
    const T *from = maps + (there ? begins[line] : 0);
    const float mean = there ? state->mean[line] : 0, scale = there ? state->scale[line] : 0;
#pragma unroll 4
    for (int i = thread_index() / LINES; i < arithmetic.padded; i += thread_count() / LINES) {
      float even = 0, odd = 0;
      if (there && i < even_count) {
        if (inverse) {
          even = i == 0 && !Arithmetic::EXACT ? 0 : widen(from[2 * i * step], job.bfloat);
          odd = 2 * i + 1 < length ? widen(from[(2 * i + 1) * step], job.bfloat) : 0;
        } else {
          const float a = widen(from[i * step], job.bfloat) - mean,
                      b = widen(from[(length - 1 - i) * step], job.bfloat) - mean;
          even = a + b, odd = a - b;
        }
      }
      arithmetic.store(0, i, line, even * scale);
      arithmetic.store(1, i, line, odd * scale);
    }
    block_barrier();
  }

  // Element n of a line and of the one after it.
  template <class T>
  DEVICE void write(T *maps, const long long *begins, long long step, int n, int line, float a, float b) const {
    if (job.pairs) {
      write_two(maps + begins[line] + n * step, a, b, job.bfloat);
    } else {
      write_one(maps + begins[line] + n * step, a, job.bfloat);
      if (line + 1 < lines) write_one(maps + begins[line + 1] + n * step, b, job.bfloat);
    }
  }

  DEVICE float weight(int n, int line) const {
    return line < lines ? load_constant(job.decay + state->decay[line] + n * job.decay_step) : 0;
  }

  DEVICE void put_frequency(Target *target, int n, int line, float a, float b) const {
    if (line >= lines || n >= length) return;
    a *= state->unscale[line], b *= state->unscale[line + 1];
    if (n == 0) a += state->constant[line], b += state->constant[line + 1];
    if (job.spectrum.data) {
      write(static_cast<float *>(job.spectrum.data), state->spectrum, job.spectrum.step, n, line, a, b);
    }
    if (job.decay) a *= weight(n, line), b *= weight(n, line + 1);
    write(target, state->target, job.target.step, n, line, a, b);
  }

  DEVICE void put_point(Target *target, int i, int line, float a, float b) const {
    a = a * state->unscale[line] + state->constant[line];
    b = b * state->unscale[line + 1] + state->constant[line + 1];
    write(target, state->target, job.target.step, i, line, a, b);
  }

  DEVICE void forward(const Source *source, Target *target) {
    load(source, state->source, job.source.step, false);
    arithmetic.multiply(job.forward, [&](int slot, int line, float e0, float e1, float o0, float o1) {
      put_frequency(target, 2 * slot, line, e0, e1);
      put_frequency(target, 2 * slot + 1, line, o0, o1);
    });
  }

  template <class T>
  DEVICE void inverse(const T *maps, const long long *begins, long long step, Target *target) {
    load(maps, begins, step, true);
    arithmetic.multiply(job.inverse, [&](int slot, int line, float e0, float e1, float o0, float o1) {
      const int mirrored = length - 1 - slot;
      if (line >= lines || slot > mirrored) return;
      put_point(target, slot, line, e0 + o0, e1 + o1);
      if (mirrored != slot) put_point(target, mirrored, line, e0 - o0, e1 - o1);
    });
  }

  DEVICE void run() {
    const Source *source = static_cast<const Source *>(job.source.data);
    Target *target = static_cast<Target *>(job.target.data);
    if constexpr (sizeof(Source) < sizeof(Target)) {
      forward(source, target);
    } else if constexpr (sizeof(Source) > sizeof(Target)) {
      inverse(source, state->source, job.source.step, target);
    } else {
      if (job.forward) forward(source, target);
      if (job.forward && job.inverse) block_barrier();
      if (job.inverse && job.forward) {
        inverse(target, state->target, job.target.step, target);
      } else if (job.inverse) {
        inverse(source, state->source, job.source.step, target);
      }
    }
  }
};
