// The operator on planes of up to 2 * HALF x 2 * HALF points that stay in shared memory: one block for each image and tile
// of TILE channels, products on tensor cores with 16-bit floats as operands and float32 sums.
//
// Each line is split into sums and differences of mirrored points; each part is multiplied with a table of half the length.
// The spectrum of the first part (even frequencies) comes first, that of the second (odd ones) after it.
// A plane is held in 16-bit floats without its mean and times a power of two, for each channel; the product of spectrum and
// decay gets a power of two of its own for each column and channel, since no other operation can change its range as much.
// Lanes may part where they store; each line begins with a barrier of the warp, which matrix operations want together.
#pragma once
#include "cuda_api.h"
#include "cuda_device.h"

constexpr int WARPS = 8;  // the most a block has
// Largest magnitudes as 16-bit floats: a transform of 64 points multiplies them by 8.
constexpr int SOURCE_EXPONENT = 11;
constexpr int PRODUCT_EXPONENT = 9;

// What a block shares beside the plane, for each of its channels.
template <int HALF, int TILE>
struct PlaneState {
  float partial[WARPS][3][TILE];  // sums, least and greatest values of each warp
  float mean[TILE];
  int exponent[TILE];          // of the power of two that the plane is multiplied by
  int product_exponent[TILE];  // the least of those of the columns
  int column_exponent[2 * HALF][TILE];
};

template <int HALF, int TILE>
struct Plane {
  static constexpr int STEPS = HALF / 16, CHUNKS = TILE / 8;
  typedef float Sums[STEPS][CHUNKS][4];            // a part of a spectrum or line: frequencies or points x channels
  typedef unsigned int Factors[STEPS][CHUNKS][2];  // the same as an operand of a product
  typedef PlaneState<HALF, TILE> State;

  const vheatir_plane_job &job;
  Bits *plane;
  State *state;
  long long image, plane_size;                      // plane_size: numbers of an image, of which int can count all
  int first_channel, lane, warp, warps, row, pair;  // row and pair: this lane's place in a fragment
  int height, width, pitch;

  DEVICE Plane(const vheatir_plane_job &j, void *memory) : job(j) {
    const int tiles = (j.channels + TILE - 1) / TILE;
    image = block_index() / tiles;
    first_channel = (int)(block_index() % tiles) * TILE;
    lane = thread_index() % 32, warp = thread_index() / 32, warps = thread_count() / 32;
    row = lane / 4, pair = lane % 4 * 2;
    height = j.height, width = j.width, plane_size = (long long)height * width * j.channels;
    pitch = (width * CHUNKS | 1) * 8;  // odd, in units of 16 bytes: columns are free of bank conflicts
    plane = static_cast<Bits *>(memory);
    state = reinterpret_cast<State *>(plane + height * pitch);
  }

  // Chunks of 8 channels swap places every 4 points, which frees rows of 16 channels of bank conflicts.
  DEVICE Bits *at(int h, int w, int chunk) const {
    return plane + h * pitch + (w * CHUNKS + (CHUNKS == 2 ? chunk ^ (w >> 2 & 1) : chunk)) * 8;
  }

  // ---- global memory to shared memory, without mean, scaled ----

  DEVICE void read() {
    const int points = height * width, chunk = thread_index() % CHUNKS, c0 = first_channel + chunk * 8;
    float sum[8], least[8], greatest[8];
    for (int i = 0; i < 8; i++) sum[i] = 0, least[i] = infinity(), greatest[i] = -infinity();
    const Bits *source = static_cast<const Bits *>(job.source) + image * job.source_image + c0;
#pragma unroll 1
    for (int p = thread_index() / CHUNKS; p < points; p += thread_count() / CHUNKS) {
      const int h = p / width, w = p % width;
      const Bits *from = source + h * job.source_row + w * job.source_pixel;
      alignas(16) Bits values[8];
      if (job.vectors && c0 < job.channels) {
        *reinterpret_cast<Quad *>(values) = *reinterpret_cast<const Quad *>(from);
      } else {
        for (int i = 0; i < 8; i++) values[i] = c0 + i < job.channels ? from[i] : 0;
      }
      *reinterpret_cast<Quad *>(at(h, w, chunk)) = *reinterpret_cast<Quad *>(values);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float v = widen(values[i], job.bfloat);
        sum[i] += v, least[i] = fminf(least[i], v), greatest[i] = fmaxf(greatest[i], v);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      for (int apart = CHUNKS; apart < 32; apart *= 2) {
        sum[i] += exchange(sum[i], apart);
        least[i] = fminf(least[i], exchange(least[i], apart));
        greatest[i] = fmaxf(greatest[i], exchange(greatest[i], apart));
      }
      if (lane < CHUNKS) {
        state->partial[warp][0][chunk * 8 + i] = sum[i];
        state->partial[warp][1][chunk * 8 + i] = least[i];
        state->partial[warp][2][chunk * 8 + i] = greatest[i];
      }
    }
    block_barrier();
    if (thread_index() < TILE) summarize(thread_index());
    block_barrier();
    normalize(points, chunk);
    block_barrier();
  }

  DEVICE void summarize(int c) {
    float sum = 0, least = infinity(), greatest = -infinity();
    for (int i = 0; i < warps; i++) {
      sum += state->partial[i][0][c];
      least = fminf(least, state->partial[i][1][c]);
      greatest = fmaxf(greatest, state->partial[i][2][c]);
    }
    const float mean = sum / (height * width);
    state->mean[c] = mean;
    state->exponent[c] = scale_for(fmaxf(greatest - mean, mean - least), SOURCE_EXPONENT);
    state->product_exponent[c] = NOTHING;
  }

  DEVICE void normalize(int points, int chunk) {
    float mean[8], scale[8];
    for (int i = 0; i < 8; i++) {
      mean[i] = state->mean[chunk * 8 + i];
      const int exponent = state->exponent[chunk * 8 + i];
      scale[i] = power_of_two(exponent == NOTHING ? 0 : exponent);
    }
#pragma unroll 1
    for (int p = thread_index() / CHUNKS; p < points; p += thread_count() / CHUNKS) {
      Bits *values = at(p / width, p % width, chunk);
      alignas(16) Bits raw[8];
      *reinterpret_cast<Quad *>(raw) = *reinterpret_cast<Quad *>(values);
      Quad halves;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        halves.r[i] = pack_halves((widen(raw[2 * i], job.bfloat) - mean[2 * i]) * scale[2 * i],
                                  (widen(raw[2 * i + 1], job.bfloat) - mean[2 * i + 1]) * scale[2 * i + 1]);
      }
      *reinterpret_cast<Quad *>(values) = halves;
    }
  }

  // ---- one line ----

  // Points first + i, i = 16 step ... 16 step + 15, held below `count`, of line `line` along W or H.
  template <bool ALONG_WIDTH>
  DEVICE const Bits *point(int line, int i) const {
    const int chunk = lane >> 4 & (CHUNKS - 1);
    return ALONG_WIDTH ? at(line, i, chunk) : at(i, line, chunk);
  }

  DEVICE int lane_point(int step, int count) const {
    const int i = step * 16 + (lane >> 3 & 1) * 8 + lane % 8;
    return i < count ? i : count > 0 ? count - 1 : 0;  // beyond the end the tables hold zeros
  }

  template <bool ALONG_WIDTH>
  DEVICE void load(int line, int i, unsigned int (&factors)[CHUNKS][2]) const {
    unsigned int blocks[2 * CHUNKS];
    load_blocks(blocks, point<ALONG_WIDTH>(line, i));
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      factors[chunk][0] = blocks[2 * chunk], factors[chunk][1] = blocks[2 * chunk + 1];
    }
  }

  template <bool ALONG_WIDTH>
  DEVICE void load_folded(int line, int length, Factors &even, Factors &odd) const {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      const int i = lane_point(step, (length + 1) / 2);
      unsigned int mirrored[CHUNKS][2];
      load<ALONG_WIDTH>(line, i, even[step]);
      load<ALONG_WIDTH>(line, length - 1 - i, mirrored);
#pragma unroll
      for (int k = 0; k < 2 * CHUNKS; k++) {
        const unsigned int a = even[step][k / 2][k % 2], b = mirrored[k / 2][k % 2];
        even[step][k / 2][k % 2] = add_halves(a, b);
        odd[step][k / 2][k % 2] = subtract_halves(a, b);
      }
    }
  }

  // part 0 or 1 of a table
  DEVICE void multiply(const void *table, int part, const Factors &factors, Sums &sums) const {
    const Quad *fragments = static_cast<const Quad *>(table) + part * STEPS * STEPS * 32 + lane;
#pragma unroll
    for (int out = 0; out < STEPS; out++) {
#pragma unroll
      for (int k = 0; k < CHUNKS * 4; k++) sums[out][k / 4][k % 4] = 0;
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
        const Quad fragment = load_table(fragments + (out * STEPS + step) * 32);
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
          multiply_add(sums[out][chunk], fragment, factors[step][chunk][0], factors[step][chunk][1]);
        }
      }
    }
  }

  DEVICE void store(Bits *chunk, float first, float second) const {
    *reinterpret_cast<unsigned int *>(chunk + pair) = pack_halves(first, second);
  }

  DEVICE void store_result(Bits *chunk, float first, float second) const {
    *reinterpret_cast<unsigned int *>(chunk + pair) = pack(first, second, job.bfloat);
  }

  // ---- the three steps ----

  DEVICE void rows_forward() {
    const int even_count = (width + 1) / 2, odd_count = width / 2;
    for (int h = warp; h < height; h += warps) {
      warp_barrier();
      Factors even, odd;
      Sums even_sums, odd_sums;
      load_folded<true>(h, width, even, odd);
      multiply(job.width_forward, 0, even, even_sums);
      multiply(job.width_forward, 1, odd, odd_sums);
      warp_barrier();
      const int first = recomputed(row);
#pragma unroll
      for (int k = 0; k < STEPS * CHUNKS * 2; k++) {
        const int out = k / (CHUNKS * 2), chunk = k / 2 % CHUNKS, lower = k % 2 * 2,
                  slot = out * 16 + first + lower * 4;
        const float *e = &even_sums[out][chunk][lower], *o = &odd_sums[out][chunk][lower];
        if (slot < even_count) store(at(h, slot, chunk), e[0], e[1]);
        if (slot < odd_count) store(at(h, even_count + slot, chunk), o[0], o[1]);
      }
    }
    block_barrier();
  }

  DEVICE void columns() {
    const int even_width = (width + 1) / 2;
    for (int w = warp; w < width; w += warps) {
      const int m = w < even_width ? 2 * w : 2 * (w - even_width) + 1;
      warp_barrier();
      Factors even, odd;
      Sums even_sums, odd_sums;
      load_folded<false>(w, height, even, odd);
      multiply(job.height_forward, 0, even, even_sums);
      multiply(job.height_forward, 1, odd, odd_sums);
      if (job.spectrum) keep_spectrum(m, even_sums, odd_sums);
      if (!job.target) continue;
      weigh(w, m, even_sums, odd_sums, even, odd);
      multiply(job.height_inverse, 0, even, even_sums);
      multiply(job.height_inverse, 1, odd, odd_sums);
      warp_barrier();
      const int count = (height + 1) / 2, first = recomputed(row);
#pragma unroll
      for (int k = 0; k < STEPS * CHUNKS * 2; k++) {
        const int out = k / (CHUNKS * 2), chunk = k / 2 % CHUNKS, lower = k % 2 * 2, h = out * 16 + first + lower * 4;
        const float *e = &even_sums[out][chunk][lower], *o = &odd_sums[out][chunk][lower];
        if (h >= count) continue;
        store(at(h, w, chunk), e[0] + o[0], e[1] + o[1]);
        if (height - 1 - h != h) store(at(height - 1 - h, w, chunk), e[0] - o[0], e[1] - o[1]);
      }
    }
    block_barrier();
  }

  DEVICE void keep_spectrum(int m, const Sums &even, const Sums &odd) const {
#pragma unroll
    for (int k = 0; k < STEPS * CHUNKS * 4; k++) {
      const int out = k / (CHUNKS * 4), chunk = k / 4 % CHUNKS, e = k % 4;
      const int slot = out * 16 + row + e / 2 * 8, c = chunk * 8 + pair + e % 2;
      if (first_channel + c >= job.channels) continue;
      const int exponent = state->exponent[c] == NOTHING ? 0 : -state->exponent[c];
      float *to = job.spectrum + image * plane_size + ((2 * slot * width + m) * job.channels + first_channel + c);
      if (2 * slot < height) {
        const float constant = slot + m == 0 ? state->mean[c] * sqrtf((float)(height * width)) : 0.0f;
        *to = scaled(even[out][chunk][e], exponent) + constant;
      }
      if (2 * slot + 1 < height) to[width * job.channels] = scaled(odd[out][chunk][e], exponent);
    }
  }

  // Beyond the last frequency or channel, where the spectrum is zero or unused, that of the last one.
  DEVICE float decay(int n, int m, int c) const {
    n = lesser(n, height - 1), c = lesser(first_channel + c, job.channels - 1);
    return load_constant(job.decay + ((n * width + m) * job.decay_pixel + c * job.decay_channel));
  }

  DEVICE static float greatest_of_rows(float v) {
    for (int apart = 4; apart < 32; apart *= 2) v = fmaxf(v, exchange(v, apart));
    return v;
  }

  // Column w (frequency m) of the spectrum times the decay, scaled and rounded for the inverse transform.
  DEVICE void weigh(int w, int m, Sums &even, Sums &odd, Factors &even_factors, Factors &odd_factors) {
    const int first = recomputed(row);
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      float scale[2];
#pragma unroll
      for (int side = 0; side < 2; side++) {
        const int c = chunk * 8 + pair + side;
        float weights[STEPS * 2][2], largest = 0;
#pragma unroll
        for (int k = 0; k < STEPS * 2; k++) {
          const int n = 2 * (k / 2 * 16 + first + k % 2 * 8);
          weights[k][0] = decay(n, m, c), weights[k][1] = decay(n + 1, m, c);
          largest = fmaxf(largest, fmaxf(fabsf(weights[k][0]), fabsf(weights[k][1])));
        }
        largest = greatest_of_rows(largest);
        // Keeps the products between the smallest and the largest float; the scaled spectrum is below 2^18.
        const int lift = largest > 0x1p60f ? -40 : largest < 0x1p-60f ? 60 : 0;
        const float lifting = power_of_two(lift);
        float greatest = 0;
#pragma unroll
        for (int k = 0; k < STEPS * 2; k++) {
          float &e = even[k / 2][chunk][k % 2 * 2 + side], &o = odd[k / 2][chunk][k % 2 * 2 + side];
          e *= weights[k][0] * lifting;
          o *= weights[k][1] * lifting;
          greatest = fmaxf(greatest, fmaxf(fabsf(e), fabsf(o)));
        }
        greatest = greatest_of_rows(greatest);
        const int exponent = scale_for(greatest, PRODUCT_EXPONENT);
        scale[side] = power_of_two(exponent == NOTHING ? 0 : exponent);
        if (row == 0) {
          const int total = exponent == NOTHING ? NOTHING : exponent + lift;
          state->column_exponent[w][c] = total;
          atomicMin(&state->product_exponent[c], total);
        }
      }
#pragma unroll
      for (int k = 0; k < STEPS * 2; k++) {
        const float *e = &even[k / 2][chunk][k % 2 * 2], *o = &odd[k / 2][chunk][k % 2 * 2];
        even_factors[k / 2][chunk][k % 2] = transpose_block(pack_halves(e[0] * scale[0], e[1] * scale[1]));
        odd_factors[k / 2][chunk][k % 2] = transpose_block(pack_halves(o[0] * scale[0], o[1] * scale[1]));
      }
    }
  }

  // Power of two, as a half, that brings a column's values to the scale of the plane; 0 where it vanishes beside others.
  DEVICE unsigned int column_factor(int slot, int c) const {
    if (slot >= width || state->column_exponent[slot][c] == NOTHING) return 0;
    const int exponent = state->product_exponent[c] - state->column_exponent[slot][c];
    return exponent >= -14 ? (15 + exponent) << 10 : exponent >= -24 ? 1 << (24 + exponent) : 0;
  }

  DEVICE void column_factors(int first, int count, Factors &factors) const {
#pragma unroll
    for (int k = 0; k < STEPS * CHUNKS * 2; k++) {
      const int step = k / (CHUNKS * 2), chunk = k / 2 % CHUNKS, c = chunk * 8 + row, i = step * 16 + pair + k % 2 * 8;
      const unsigned int low = i < count ? column_factor(first + i, c) : 0;
      const unsigned int high = i + 1 < count ? column_factor(first + i + 1, c) : 0;
      factors[step][chunk][k % 2] = low | high << 16;
    }
  }

  DEVICE void load_part(int h, int first, int count, const Factors &scales, Factors &factors) const {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      load<true>(h, first + lane_point(step, count), factors[step]);
#pragma unroll
      for (int k = 0; k < CHUNKS * 2; k++) {
        factors[step][k / 2][k % 2] = multiply_halves(factors[step][k / 2][k % 2], scales[step][k / 2][k % 2]);
      }
    }
  }

  DEVICE void rows_inverse() {
    const int even_count = (width + 1) / 2, odd_count = width / 2;
    Factors even_scales, odd_scales;
    column_factors(0, even_count, even_scales);
    column_factors(even_count, odd_count, odd_scales);
    float constant[CHUNKS][2];
    int exponent[CHUNKS][2];
#pragma unroll
    for (int k = 0; k < CHUNKS * 2; k++) {
      const int c = k / 2 * 8 + pair + k % 2;
      constant[k / 2][k % 2] = state->mean[c] * decay(0, 0, c);
      const bool nothing = state->product_exponent[c] == NOTHING || state->exponent[c] == NOTHING;
      exponent[k / 2][k % 2] = nothing ? 0 : -state->exponent[c] - state->product_exponent[c];
    }
    for (int h = warp; h < height; h += warps) {
      warp_barrier();
      Factors factors;
      Sums even_sums, odd_sums;
      load_part(h, 0, even_count, even_scales, factors);
      multiply(job.width_inverse, 0, factors, even_sums);
      load_part(h, even_count < width ? even_count : 0, odd_count, odd_scales, factors);
      multiply(job.width_inverse, 1, factors, odd_sums);
      warp_barrier();
      const int first = recomputed(row);
#pragma unroll
      for (int k = 0; k < STEPS * CHUNKS * 2; k++) {
        const int out = k / (CHUNKS * 2), chunk = k / 2 % CHUNKS, lower = k % 2 * 2, w = out * 16 + first + lower * 4;
        const float *e = &even_sums[out][chunk][lower], *o = &odd_sums[out][chunk][lower];
        const float c0 = constant[chunk][0], c1 = constant[chunk][1];
        const int x0 = exponent[chunk][0], x1 = exponent[chunk][1];
        if (w >= even_count) continue;
        store_result(at(h, w, chunk), scaled(e[0] + o[0], x0) + c0, scaled(e[1] + o[1], x1) + c1);
        if (width - 1 - w == w) continue;
        store_result(at(h, width - 1 - w, chunk), scaled(e[0] - o[0], x0) + c0, scaled(e[1] - o[1], x1) + c1);
      }
    }
    block_barrier();
  }

  DEVICE void write() const {
    const int points = height * width, chunk = thread_index() % CHUNKS, c0 = first_channel + chunk * 8;
    Bits *target = static_cast<Bits *>(job.target) + image * plane_size + c0;
#pragma unroll 1
    for (int p = thread_index() / CHUNKS; p < points; p += thread_count() / CHUNKS) {
      const Bits *values = at(p / width, p % width, chunk);
      Bits *to = target + p * job.channels;
      if (job.vectors && c0 < job.channels) {
        *reinterpret_cast<Quad *>(to) = *reinterpret_cast<const Quad *>(values);
      } else {
        for (int i = 0; i < 8 && c0 + i < job.channels; i++) to[i] = values[i];
      }
    }
  }

  DEVICE void run() {
    read();
    rows_forward();
    columns();
    if (!job.target) return;
    rows_inverse();
    write();
  }
};
