// Layer norm over the channels of each row with the sum before it and the gate after it, and its backward: one pass
// over memory, because a row stays in the level 1 cache. Compiled once for each instruction set.
#include "narrow.h"
#include "subnormal.h"

namespace {

INLINE Vec all(float value) { return Vec{} + value; }

INLINE Vec get(const float *from, int64_t lanes) { return get_lanes<false>(from, 0, lanes); }

INLINE void put(float *to, Vec value, int64_t lanes) { put_lanes<false>(to, 0, value, lanes); }

typedef int32_t IntVec __attribute__((vector_size(kWidth * 4)));

// exp(x) by 2^n * exp(r), |r| <= ln(2)/2, with the series of exp up to r^7: to about one unit in the last place.
INLINE Vec exponential(Vec x) {
  x = x < all(-87.0f) ? all(-87.0f) : x;  // what is smaller vanishes beside the 1 that is added to it, or divides it
  x = x > all(88.0f) ? all(88.0f) : x;
  const Vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the rounded integer
  const Vec n = shifted - 12582912.0f;
  const Vec r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Vec y = all(1.0f / 5040);
  y = y * r + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const IntVec power = (reinterpret_cast<IntVec>(shifted) << 23) + (127 << 23);
  return y * reinterpret_cast<Vec>(power);
}

INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

struct Moments {
  float mean, deviation_inverse;
};

// Mean first and squares about it second: no cancellation.
INLINE Moments moments(const float *row, int64_t channels, double epsilon) {
  Vec sums = {};
  for_vectors(channels, [&](int64_t c, int64_t lanes) INLINE_LAMBDA { sums += get(row + c, lanes); });
  const float mean = sum_of(sums) / float(channels);
  Vec squares = {};
  int64_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) {
    const Vec off = load(row + c) - mean;
    squares += off * off;
  }
  float total = sum_of(squares);
  for (; c < channels; ++c) total += (row[c] - mean) * (row[c] - mean);
  return {mean, 1.0f / __builtin_sqrtf(total / float(channels) + float(epsilon))};
}

void norm_row(const vheatir_norm_job &job, int64_t row) {
  const int64_t at = row * job.channels;
  const float *x = job.x + row * job.x_row, *gate = job.gate ? job.gate + row * job.gate_row : nullptr;
  if (job.addend) {
    for_vectors(job.channels, [&](int64_t c, int64_t lanes) INLINE_LAMBDA {
      put(job.sum + at + c, get(x + c, lanes) + get(job.addend + at + c, lanes), lanes);
    });
    x = job.sum + at;
  }
  const Moments of = moments(x, job.channels, job.epsilon);
  for_vectors(job.channels, [&](int64_t c, int64_t lanes) INLINE_LAMBDA {
    Vec y = (get(x + c, lanes) - of.mean) * of.deviation_inverse;
    y = y * get(job.weight + c, lanes) + get(job.bias + c, lanes);
    if (gate) {
      const Vec z = get(gate + c, lanes);
      y *= z * sigmoid(z);
    }
    if (job.residual) y += get(job.residual + at + c, lanes);
    put(job.result + at + c, y, lanes);
  });
}

// Gradients of one row; those of weight and bias are added to `grad_weight` and `grad_bias`.
void norm_row_backward(const vheatir_norm_gradient_job &job, int64_t row, float *grad_weight, float *grad_bias) {
  const int64_t at = row * job.channels;
  const float *x = job.x + row * job.x_row, *gate = job.gate ? job.gate + row * job.gate_row : nullptr;
  const Moments of = moments(x, job.channels, job.epsilon);
  float *grad_x = job.grad_x + at;
  Vec sums = {}, products = {};  // of the gradient of the normalized values, and with those values
  for_vectors(job.channels, [&](int64_t c, int64_t lanes) INLINE_LAMBDA {
    const Vec normalized = (get(x + c, lanes) - of.mean) * of.deviation_inverse, weight = get(job.weight + c, lanes);
    Vec grad = get(job.grad + at + c, lanes);
    if (gate) {
      const Vec z = get(gate + c, lanes), s = sigmoid(z);
      const Vec affine = normalized * weight + get(job.bias + c, lanes);
      put(job.grad_gate + at + c, grad * affine * s * (1.0f + z * (1.0f - s)), lanes);
      grad *= z * s;
    }
    put(grad_bias + c, get(grad_bias + c, lanes) + grad, lanes);
    put(grad_weight + c, get(grad_weight + c, lanes) + grad * normalized, lanes);
    grad *= weight;
    put(grad_x + c, grad, lanes);
    sums += grad;  // lanes beyond the channels hold zeros
    products += grad * normalized;
  });
  const float mean = sum_of(sums) / float(job.channels), product = sum_of(products) / float(job.channels);
  for_vectors(job.channels, [&](int64_t c, int64_t lanes) INLINE_LAMBDA {
    const Vec normalized = (get(x + c, lanes) - of.mean) * of.deviation_inverse;
    Vec grad = (get(grad_x + c, lanes) - mean - normalized * product) * of.deviation_inverse;
    if (job.grad_sum) grad += get(job.grad_sum + at + c, lanes);
    put(grad_x + c, grad, lanes);
  });
}

// Chunks, not threads, have sums of their own: their order is fixed.
void norm_chunk_backward(const vheatir_norm_gradient_job &job, int64_t chunk) {
  float *grad_weight = job.grad_weight + chunk * job.channels, *grad_bias = job.grad_bias + chunk * job.channels;
  memset(grad_weight, 0, size_t(job.channels) * 4);
  memset(grad_bias, 0, size_t(job.channels) * 4);
  const int64_t end = (chunk + 1) * VHEATIR_NORM_CHUNK;
  for (int64_t row = chunk * VHEATIR_NORM_CHUNK; row < job.rows && row < end; ++row) {
    norm_row_backward(job, row, grad_weight, grad_bias);
  }
}

}  // namespace

extern "C" void VHEATIR_OF_VERSION(vheatir_norm)(const vheatir_norm_job *job) {
  const int threads = int(job->threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const SubnormalsAreZero on_this_thread;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < job->rows; ++row) norm_row(*job, row);
  }
}

extern "C" void VHEATIR_OF_VERSION(vheatir_norm_gradient)(const vheatir_norm_gradient_job *job) {
  const int64_t chunks = (job->rows + VHEATIR_NORM_CHUNK - 1) / VHEATIR_NORM_CHUNK;
  const int threads = int(job->threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const SubnormalsAreZero on_this_thread;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) norm_chunk_backward(*job, chunk);
  }
}
