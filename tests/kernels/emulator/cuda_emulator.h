// A CUDA block on a CPU: every thread is a fiber that runs until a barrier or an operation of its warp, which is done once
// all that take part have arrived. Takes the place of the second half of kernels/csrc/cuda_device.h; the fragments of the
// matrix operations follow the PTX ISA, sections on mma.m16n8k16, ldmatrix and movmatrix.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define DEVICE inline
#define KERNEL(threads, blocks) static void
#define SHARED_MEMORY(name) Quad *name = static_cast<Quad *>(emulator::shared_memory())

namespace emulator {
int thread();
int threads();
long long block();
void *shared_memory();
void barrier();  // of the block
void warp_barrier();
// Each lane of the warp gives 32 bytes and gets those of all 32, which are valid until its next call.
const uint32_t (*gather(const uint32_t (&mine)[8]))[8];
const void *const *gather_rows(const void *mine);
}  // namespace emulator

DEVICE int thread_index() { return emulator::thread(); }
DEVICE int thread_count() { return emulator::threads(); }
DEVICE long long block_index() { return emulator::block(); }
DEVICE void block_barrier() { emulator::barrier(); }
DEVICE void warp_barrier() { emulator::warp_barrier(); }
DEVICE int atomicMin(int *p, int v) {
  const int before = *p;
  if (v < before) *p = v;
  return before;
}

template <class To, class From>
To bits_of(From v) {
  static_assert(sizeof(To) == sizeof(From), "a change of type, not of size");
  To to;
  memcpy(&to, &v, sizeof to);
  return to;
}
DEVICE float __int_as_float(int v) { return bits_of<float>(v); }
DEVICE float __uint_as_float(unsigned int v) { return bits_of<float>(v); }
DEVICE int __float_as_int(float v) { return bits_of<int>(v); }

DEVICE Quad load_table(const Quad *p) { return *p; }
DEVICE int recomputed(int v) { return v; }
DEVICE float load_constant(const float *p) { return *p; }

DEVICE float widen_half(Bits v) { return (float)bits_of<_Float16>(v); }
DEVICE Bits half_of(float v) { return bits_of<Bits>((_Float16)v); }
DEVICE unsigned int pack_halves(float low, float high) { return half_of(low) | (unsigned int)half_of(high) << 16; }
DEVICE Bits bfloat_of(float v) {
  const uint32_t bits = bits_of<uint32_t>(v);
  return v != v ? 0x7fff : (Bits)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
DEVICE unsigned int pack_bfloats(float low, float high) { return bfloat_of(low) | (unsigned int)bfloat_of(high) << 16; }

DEVICE float low_half(unsigned int v) { return widen_half((Bits)v); }
DEVICE float high_half(unsigned int v) { return widen_half((Bits)(v >> 16)); }
// float32 holds the exact sum's rounding to 16 bits: it has more than twice their precision.
DEVICE unsigned int add_halves(unsigned int a, unsigned int b) {
  return pack_halves(low_half(a) + low_half(b), high_half(a) + high_half(b));
}
DEVICE unsigned int subtract_halves(unsigned int a, unsigned int b) {
  return pack_halves(low_half(a) - low_half(b), high_half(a) - high_half(b));
}
DEVICE unsigned int multiply_halves(unsigned int a, unsigned int b) {
  return pack_halves(low_half(a) * low_half(b), high_half(a) * high_half(b));
}

DEVICE float exchange(float v, int lanes_apart) {
  const uint32_t mine[8] = {bits_of<uint32_t>(v)};
  return bits_of<float>(emulator::gather(mine)[thread_index() % 32 ^ lanes_apart][0]);
}

template <int COUNT>
void load_blocks(unsigned int (&r)[COUNT], const void *row) {
  if ((uintptr_t)row % 16) __builtin_trap();  // ldmatrix wants rows at multiples of 16 bytes
  const void *const *rows = emulator::gather_rows(row);
  const int lane = thread_index() % 32;
  for (int block = 0; block < COUNT; block++) {
    const Bits *first = static_cast<const Bits *>(rows[block * 8 + lane % 4 * 2]);
    const Bits *second = static_cast<const Bits *>(rows[block * 8 + lane % 4 * 2 + 1]);
    r[block] = first[lane / 4] | (unsigned int)second[lane / 4] << 16;
  }
  emulator::warp_barrier();  // no lane writes before all have read
}

DEVICE unsigned int transpose_block(unsigned int v) {
  const uint32_t mine[8] = {v};
  const auto all = emulator::gather(mine);
  const int lane = thread_index() % 32, column = lane / 4, row = lane % 4 * 2;
  auto element = [&](int i, int j) { return all[i * 4 + j / 2][0] >> (j % 2 * 16) & 0xffff; };
  return element(row, column) | element(row + 1, column) << 16;
}

DEVICE void multiply_add(float (&sum)[4], const Quad &table, unsigned int low, unsigned int high) {
  const uint32_t mine[8] = {table.r[0], table.r[1], table.r[2], table.r[3], low, high};
  const auto all = emulator::gather(mine);
  const int row = thread_index() % 32 / 4, column = thread_index() % 4 * 2;
  auto half = [](uint32_t two, int which) { return widen_half((Bits)(two >> which * 16)); };
  float total[4] = {};
  for (int k = 0; k < 16; k++) {
    const uint32_t *a = all[row * 4 + k % 8 / 2] + k / 8 * 2;
    for (int e = 0; e < 4; e++) {
      const uint32_t b = all[(column + e % 2) * 4 + k % 8 / 2][4 + k / 8];
      total[e] += half(a[e / 2], k % 2) * half(b, k % 2);
    }
  }
  for (int e = 0; e < 4; e++) sum[e] += total[e];
}
