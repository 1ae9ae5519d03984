// What the kernels need from the hardware, each in one function: tests replace this file's second half by one for a CPU.
#pragma once

typedef unsigned short Bits;  // of a 16-bit float
struct alignas(16) Quad {
  unsigned int r[4];
};  // 16 bytes, moved at once

#ifdef VHEATIR_EMULATED
#include "cuda_emulator.h"
#else

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define SHARED_MEMORY(name) extern __shared__ Quad name[]

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int thread_count() { return blockDim.x; }
DEVICE long long block_index() { return blockIdx.x; }
DEVICE void block_barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }

DEVICE unsigned int shared_address(const void *p) { return (unsigned int)__cvta_generic_to_shared(p); }

// Volatile: moved ahead and kept in registers, tables and weights would crowd out everything else.
DEVICE Quad load_table(const Quad *p) {
  Quad q;
  asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(q.r[0]), "=r"(q.r[1]), "=r"(q.r[2]), "=r"(q.r[3])
               : "l"(p));
  return q;
}
DEVICE float load_constant(const float *p) {
  float v;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(v) : "l"(p));
  return v;
}

// Two values rounded to 16 bits, the first one in the low half.
DEVICE unsigned int pack_halves(float low, float high) {
  unsigned int r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
DEVICE unsigned int pack_bfloats(float low, float high) {
  unsigned int r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
DEVICE float widen_half(Bits v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
  return r;
}
DEVICE unsigned int add_halves(unsigned int a, unsigned int b) {
  unsigned int r;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEVICE unsigned int subtract_halves(unsigned int a, unsigned int b) {
  unsigned int r;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEVICE unsigned int multiply_halves(unsigned int a, unsigned int b) {
  unsigned int r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// The same number, but what depends on it is not computed before a loop and kept in registers.
DEVICE int recomputed(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// Collective operations of a warp: all 32 lanes call them together.
DEVICE float exchange(float v, int lanes_apart) { return __shfl_xor_sync(0xffffffffu, v, lanes_apart); }

// Blocks of 8 x 8 halves, transposed: lane l of group l / 8 gives the address of row l % 8 of block l / 8, and gets
// elements [2 (l % 4)] and [2 (l % 4) + 1] of column l / 4 of each block.
DEVICE void load_blocks(unsigned int (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void load_blocks(unsigned int (&r)[2], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
// An 8 x 8 block of which lane l holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 becomes its transpose.
DEVICE unsigned int transpose_block(unsigned int v) {
  unsigned int r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}
// sum (16 x 8) += table (16 x 16) * data (16 x 8). Lane l with row = l / 4, column = 2 (l % 4) holds of the sum
// [row][column, column + 1] and [row + 8][same]; of the table the pairs [row][column], [row + 8][column], [row][column + 8],
// [row + 8][column + 8]; of the data [column, column + 1][row] and [column + 8, column + 9][row].
DEVICE void multiply_add(float (&sum)[4], const Quad &table, unsigned int low, unsigned int high) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(table.r[0]), "r"(table.r[1]), "r"(table.r[2]), "r"(table.r[3]), "r"(low), "r"(high));
}
#endif

DEVICE float infinity() { return __int_as_float(0x7f800000); }
DEVICE int lesser(int a, int b) { return a < b ? a : b; }

// The type of 16-bit maps is known at run time only, which halves the number of kernels.
DEVICE float widen(Bits v, int bfloat) { return bfloat ? __int_as_float(v << 16) : widen_half(v); }
DEVICE float widen(float v, int) { return v; }
DEVICE unsigned int pack(float low, float high, int bfloat) {
  return bfloat ? pack_bfloats(low, high) : pack_halves(low, high);
}

// Powers of two and exponents, by the bits of a float. A scale of NOTHING belongs to values that are all zero.
enum { NOTHING = 1 << 20 };
DEVICE int exponent_of(float magnitude) { return ((__float_as_int(magnitude) >> 23) & 255) - 127; }
DEVICE float power_of_two(int exponent) {
  exponent = exponent < -126 ? -126 : exponent > 127 ? 127 : exponent;
  return __int_as_float((exponent + 127) << 23);
}
// The exponent of the scale that brings `magnitude` to [2^target, 2^(target + 1)).
DEVICE int scale_for(float magnitude, int target) {
  return magnitude > 0 ? lesser(target - exponent_of(magnitude), 126) : NOTHING;
}
// v * 2^exponent also where that power is no float: each half is.
DEVICE float scaled(float v, int exponent) {
  return v * power_of_two(exponent / 2) * power_of_two(exponent - exponent / 2);
}
