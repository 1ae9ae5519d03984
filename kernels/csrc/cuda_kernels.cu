// The CUDA kernels of the heat operator. One source for a compiler ahead of time, for NVRTC, and, with another cuda_device.h,
// for tests on a CPU.
#include "cuda_api.h"
#include "cuda_device.h"
#include "cuda_lines.h"
#include "cuda_plane.h"

#define PLANE(SIDE, TILE)                                                     \
  KERNEL(256, 2) vheatir_plane_##SIDE##_##TILE(const vheatir_plane_job job) { \
    SHARED_MEMORY(memory);                                                    \
    Plane<SIDE / 2, TILE>(job, memory).run();                                 \
  }
PLANE(32, 8)
PLANE(32, 16)
PLANE(64, 8)
PLANE(64, 16)

#define LINES(NAME, SOURCE, TARGET, ARITHMETIC)                      \
  KERNEL(256, 2) vheatir_lines_##NAME(const vheatir_lines_job job) { \
    SHARED_MEMORY(memory);                                           \
    LinesOperation<ARITHMETIC, SOURCE, TARGET>(job, memory).run();   \
  }
LINES(read_64, Bits, float, Halves<64>)
LINES(read_16, Bits, float, Halves<16>)
LINES(halves_64, float, float, Halves<64>)
LINES(halves_16, float, float, Halves<16>)
LINES(write_64, float, Bits, Halves<64>)
LINES(write_16, float, Bits, Halves<16>)
LINES(floats_32, float, float, Floats<32>)
LINES(floats_4, float, float, Floats<4>)

KERNEL(256, 1) vheatir_sum_products(const vheatir_sum_job job) {
  const long long i = block_index() * thread_count() + thread_index();
  if (i >= job.size) return;
  float total = job.accumulate ? job.total[i] : 0.0f;
#pragma unroll 4
  for (int image = 0; image < job.batch; image++) {
    total = fmaf(job.one[image * job.size + i], job.other[image * job.size + i], total);
  }
  job.total[i] = total;
}
