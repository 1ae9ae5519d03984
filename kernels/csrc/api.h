// C interface of the CPU kernel of the heat operator. Everything is checked in Python (kernels/cpu/kernel.py):
// the kernel trusts sizes, strides and pointers. The layouts of the structures are repeated there for ctypes.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { VHEATIR_ABI = 7 };  // raised whenever a structure or the meaning of a field changes

// Kinds of step and types of transform; kernels/cpu/plan.py explains them and makes the plans.
enum { VHEATIR_SPLIT, VHEATIR_LEAF, VHEATIR_DENSE, VHEATIR_MERGE, VHEATIR_COPY };
enum { VHEATIR_DCT_II, VHEATIR_DCT_IV };
// Samples; beyond the first only multiples of 4, none beyond the second.
enum { VHEATIR_SHORT_LEAF = 16, VHEATIR_LONG_LEAF = 32 };
enum { VHEATIR_READS_OUTSIDE = 1, VHEATIR_WRITES_OUTSIDE = 2 };

// `count` groups of `size` rows. The rows of group g are rows[rows + g * size + i] where they are read, and those plus
// count * size where they are written. Its numbers start at table[table + g * table_pitch].
typedef struct {
  int32_t kind, type, size, count, flags, table, table_pitch, rows;
} vheatir_step;

// The transform of one axis.
typedef struct {
  int64_t length, slots, step_count;  // slots: rows of work space
  double scale;                       // factor that makes the results of all steps orthonormal
  const vheatir_step *steps;
  const int32_t *rows;
  const float *table;
} vheatir_plan;

enum { VHEATIR_FLOAT32, VHEATIR_BFLOAT16, VHEATIR_FLOAT16 };
// Order of a decay: as (H, W, C); as (H, W, 1); or as the kernel reads it: tiles of 16 neighboring values of the
// W * C in a row, each as (H, 16), the last one perhaps narrower.
enum { VHEATIR_DECAY_NONE, VHEATIR_DECAY_MAPS, VHEATIR_DECAY_SHARED, VHEATIR_DECAY_TILES };

// target = inverse transform(decay * transform(source)) on channels-last maps; without a target only the spectrum.
// In all functions subnormal numbers are zero, as operands and as results, on every thread that computes; each thread's
// own setting is put back at the end.
typedef struct {
  int64_t batch, height, width, channels;
  vheatir_plan along_height, along_width;
  const void *source;  // channels are adjacent, other strides count elements
  int64_t source_image, source_row, source_pixel;
  void *target;  // (batch, height, width, channels), contiguous; or null
  int32_t source_type, target_type;
  int32_t decay_order, threads;
  const float *decay;
  int64_t decay_image;          // from one image's decay to the next; 0 where all images share one, whose gradients are
                                //   summed
  float *keep_spectrum;         // (batch, H, W, C): receives the spectrum before the decay; or null
  const float *other_spectrum;  // (batch, H, W, C): multiplied with the spectrum and summed over the
  float *decay_gradient;        //   batch into decay_gradient (1 or batch, H, W, C); both null otherwise
  float *workspace;             // (H, W, C); null where target or keep_spectrum, of float32, serves
} vheatir_job;

// 0, or -1 when memory is short.
int vheatir_conduct(const vheatir_job *job);

// Heat conduction with one diffusivity for each channel (and image): each axis is transformed, multiplied with
// exp(-k w^2) and transformed back by itself, so that no decay is read or stored. With a null k_width only the columns
// are conducted; along_width is not looked at then, and source rows follow each other without gaps.
//
// With gradients the same is done to the gradient of a result, and k gets its own, from maps of the first forward:
// its result where the rows are transformed, its input where the columns are. Both are (batch, H, W, C), contiguous.
typedef struct {
  vheatir_job maps;                 // without decay and spectra
  const float *k_height, *k_width;  // (1 or batch, channels)
  int64_t held;                     // 0: the ends are insulated (w = pi n / N); 1: they are held at zero, and
                                    // samples come and go with alternating signs (w = pi (N - n) / N)
  int64_t k_image;                  // from one image's k to the next: channels, or 0 for all alike
  const void *forward_result, *forward_source;  // null without gradients
  int32_t result_type, source_type;
  float *gradient_height, *gradient_width;  // (batch, channels); null without gradients
} vheatir_separable_job;
int vheatir_separable(const vheatir_separable_job *job);

// Layer norm of rows of channels, with what stands around it in a block:
// sum = x + addend; result = residual + (normalized sum * weight + bias) * SiLU(gate). Addend, gate and residual may be
// null; `sum` is needed with an addend. Rows of x and gate may lie apart, all others are contiguous; all are float32.
// The sum may go where the addend is, and the result where x is.
typedef struct {
  int64_t rows, channels, x_row, gate_row, threads;
  const float *x, *addend, *weight, *bias, *gate, *residual;
  float *sum, *result;
  double epsilon;
} vheatir_norm_job;
void vheatir_norm(const vheatir_norm_job *job);

// Its backward: gradients of the sum, the gate, weight and bias. Weight and bias are summed over chunks of
// VHEATIR_NORM_CHUNK rows each, one row of the result for each chunk.
enum { VHEATIR_NORM_CHUNK = 256 };
typedef struct {
  int64_t rows, channels, x_row, gate_row, threads;
  const float *x, *weight, *bias, *gate;                // x is the sum
  const float *grad, *grad_sum;                         // of the result, of the sum; the latter may be null
  float *grad_x, *grad_gate, *grad_weight, *grad_bias;  // grad_gate is null without a gate
  double epsilon;
} vheatir_norm_gradient_job;
void vheatir_norm_gradient(const vheatir_norm_gradient_job *job);

// Depthwise 3x3 convolution of (batch, height, width, 2 * channels), zeros outside, and the product of both halves of
// its channels: (batch, height, width, channels). Maps are contiguous, of float32 or bfloat16; sums are in float32.
typedef struct {
  int64_t batch, height, width, channels, threads, type;
  const void *source;
  const float *weight, *bias;  // (9, 2 * channels), taps row by row; (2 * channels)
  void *target;
} vheatir_gate_job;
void vheatir_gate(const vheatir_gate_job *job);

// Its backward. Weight and bias are summed over strips of VHEATIR_GATE_STRIP rows of one image each: grad_weight is
// (batch * strips, 9, 2 * channels), grad_bias (batch * strips, 2 * channels). 0, or -1 when memory is short.
enum { VHEATIR_GATE_STRIP = 8 };
typedef struct {
  int64_t batch, height, width, channels, threads, type;
  const void *source, *grad;  // as in the forward; like its target
  const float *weight, *bias;
  void *grad_source;  // like the source
  float *grad_weight, *grad_bias;
} vheatir_gate_gradient_job;
int vheatir_gate_gradient(const vheatir_gate_gradient_job *job);

// The product of both halves of contiguous rows of 2 * channels, or its gradient where `grad` is not null; all of
// float32 or all of bfloat16.
typedef struct {
  int64_t rows, channels, threads, type;
  const void *source, *grad;
  void *target;  // like the source for the gradient, else rows of `channels`
} vheatir_product_job;
void vheatir_product(const vheatir_product_job *job);

// Layer norm of contiguous rows of float32 into rows of float32 or bfloat16. With a branch, of the type of the target,
// it is the norm of source + branch, and that goes to `sum`, which may be the source; both are null without one. With
// a null target only the sum is made.
typedef struct {
  int64_t rows, channels, threads, type;
  const float *source, *weight, *bias;
  const void *branch;
  float *sum;
  void *target;
  double epsilon;
} vheatir_rescale_job;
void vheatir_rescale(const vheatir_rescale_job *job);

// Its backward; the source is what was normalized, `grad` of the type of the result. `grad_sum`, which may be null, is
// added to the gradient of the source, and that goes in the type of `grad` to `grad_branch`, which may be null.
// Weight and bias are summed over chunks as in vheatir_norm_gradient.
typedef struct {
  int64_t rows, channels, threads, type;
  const float *source, *weight;
  const void *grad;
  const float *grad_sum;
  float *grad_source;
  void *grad_branch;
  float *grad_weight, *grad_bias;
  double epsilon;
} vheatir_rescale_gradient_job;
void vheatir_rescale_gradient(const vheatir_rescale_gradient_job *job);

int vheatir_abi(void);

enum { VHEATIR_PORTABLE, VHEATIR_AVX2, VHEATIR_AVX512 };
int vheatir_instructions(void);             // those that vheatir_conduct uses on this processor
void vheatir_limit_instructions(int most);  // for tests: no others than these from now on

#ifdef __cplusplus
}
#endif
