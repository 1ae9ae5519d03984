// C interface of the CUDA kernels of the heat operator: sizes, strides in elements, pointers to device memory; the stream
// is the launch's. Everything is checked in Python (kernels/cuda/kernel.py), where the structures are repeated for ctypes.
#pragma once

enum { VHEATIR_CUDA_ABI = 1 };  // raised whenever a structure or the meaning of a field changes

// vheatir_plane_*: one block does the whole operator for one image and a tile of channels. Tables are fragments
// (kernels/cuda/launch_plan.py); spectrum and target may be null, and the decay is read where there is a target.
typedef struct {
  int batch, height, width, channels;
  const void *source;  // channels are adjacent
  long long source_image, source_row, source_pixel;
  void *target;     // (batch, height, width, channels), contiguous
  float *spectrum;  // likewise
  const float *decay;
  int decay_pixel, decay_channel;  // strides: C and 1 of (H, W, C), 1 and 0 of (H, W, 1)
  int bfloat;                      // source and target are bfloat16, otherwise float16
  int vectors;                     // source and target can be moved in groups of 8 channels
  const void *height_forward, *height_inverse, *width_forward, *width_inverse;
} vheatir_plane_job;

// Element n of line m: data[m / (run * outer) * image + m / run % outer * outer_stride + m % run + n * step].
typedef struct {
  void *data;
  long long image, outer_stride, step;
} vheatir_lines;

// vheatir_lines_*: a one-dimensional transform of each of `count` lines, from source to target, which may be the same.
// Both tables: forward, times decay, inverse. One of them: that transform, the forward one times decay if there is one.
typedef struct {
  int length, bfloat;  // 16-bit maps are bfloat16, otherwise float16
  int pairs;           // lines 2i and 2i + 1 are neighbors and can be written at once
  long long count, run, outer;
  vheatir_lines source, target, spectrum;  // spectrum receives the forward transform; data may be null
  const float *decay;                      // or null
  long long decay_outer, decay_step;
  int decay_inner;
  const void *forward, *inverse;
} vheatir_lines_job;

// vheatir_sum_products: total = sum over the batch, in order, of one * other, added to total where `accumulate` is set.
typedef struct {
  long long size;
  int batch, accumulate;
  const float *one, *other;  // (batch, size)
  float *total;
} vheatir_sum_job;
