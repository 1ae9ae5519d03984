// Gradients of the layers of gate_cpu.cpp, each in one pass over memory: what the forward did not store is computed
// again in the level 2 cache. Compiled once for each instruction set.
#include <stdlib.h>

#include "narrow.h"
#include "subnormal.h"

namespace {

constexpr int64_t kStrip = VHEATIR_GATE_STRIP;
constexpr int64_t kPair = 2 * kWidth;  // the same channels of both halves, side by side

int64_t strips_of(const vheatir_gate_gradient_job &job) { return (job.height + kStrip - 1) / kStrip; }

// A strip of rows of one image, for `lanes` channels of both halves. Two maps in float32 with a rim of zeros, pixels of
// kPair values: the source with two rows more above and below, the gradient of the convolution with one.
template <bool narrow>
struct Strip {
  const vheatir_gate_gradient_job &job;
  int64_t image, first, rows, channel, lanes;
  float *source, *inner;

  int64_t pitch() const { return (job.width + 2) * kPair; }
  bool has(int64_t h) const { return h >= 0 && h < job.height; }
  int64_t pixel(int64_t h, int64_t w) const { return (image * job.height + h) * job.width + w; }

  // One row between its zeros, or zeros: body(w, where the pixel goes).
  template <class Body>
  INLINE void fill(float *row, int64_t h, const Body &body) const {
    if (!has(h)) {
      memset(row, 0, size_t(pitch()) * sizeof(float));
      return;
    }
    memset(row, 0, kPair * sizeof(float));
    memset(row + (job.width + 1) * kPair, 0, kPair * sizeof(float));
    for (int64_t w = 0; w < job.width; ++w) body(w, row + (w + 1) * kPair);
  }

  void widen_source() const {
    for (int64_t i = 0; i < rows + 4; ++i) {
      const int64_t h = first - 2 + i;
      fill(source + i * pitch(), h, [&](int64_t w, float *to) INLINE_LAMBDA {
        const int64_t at = pixel(h, w) * 2 * job.channels + channel;
        store(to, get_lanes<narrow>(job.source, at, lanes));
        store(to + kWidth, get_lanes<narrow>(job.source, at + job.channels, lanes));
      });
    }
  }

  // The convolution again, and from it the gradients of its results: each half's is the gradient times the other half.
  void differentiate_product(const Vec (&one)[9], const Vec (&other)[9], Vec bias_one, Vec bias_other) const {
    for (int64_t i = 0; i < rows + 2; ++i) {
      const int64_t h = first - 1 + i;
      fill(inner + i * pitch(), h, [&](int64_t w, float *to) INLINE_LAMBDA {
        Vec left = bias_one, right = bias_other;
        repeat<9>([&](auto tap) INLINE_LAMBDA {
          const float *from = source + (i + tap / 3) * pitch() + (w + tap % 3) * kPair;
          left += one[tap] * load(from);
          right += other[tap] * load(from + kWidth);
        });
        const Vec grad = get_lanes<narrow>(job.grad, pixel(h, w) * job.channels + channel, lanes);
        store(to, grad * right);
        store(to + kWidth, grad * left);
      });
    }
  }

  void sum_weights(float *grad_weight, float *grad_bias) const {
    Vec one[9] = {}, other[9] = {}, bias_one = {}, bias_other = {};
    for (int64_t i = 1; i <= rows; ++i) {
      for (int64_t w = 0; w < job.width; ++w) {
        const float *at = inner + i * pitch() + (w + 1) * kPair;
        const Vec left = load(at), right = load(at + kWidth);
        bias_one += left;
        bias_other += right;
        repeat<9>([&](auto tap) INLINE_LAMBDA {
          const float *from = source + (i + tap / 3) * pitch() + (w + tap % 3) * kPair;
          one[tap] += left * load(from);
          other[tap] += right * load(from + kWidth);
        });
      }
    }
    repeat<9>([&](auto tap) INLINE_LAMBDA {
      put_lanes<false>(grad_weight, tap * 2 * job.channels + channel, one[tap], lanes);
      put_lanes<false>(grad_weight, (tap * 2 + 1) * job.channels + channel, other[tap], lanes);
    });
    put_lanes<false>(grad_bias, channel, bias_one, lanes);
    put_lanes<false>(grad_bias, job.channels + channel, bias_other, lanes);
  }

  void differentiate_convolution(const Vec (&one)[9], const Vec (&other)[9]) const {
    for (int64_t i = 1; i <= rows; ++i) {
      for (int64_t w = 0; w < job.width; ++w) {
        Vec left = {}, right = {};
        repeat<9>([&](auto tap) INLINE_LAMBDA {
          const float *from = inner + (i + 1 - tap / 3) * pitch() + (w + 2 - tap % 3) * kPair;
          left += one[tap] * load(from);
          right += other[tap] * load(from + kWidth);
        });
        const int64_t at = pixel(first + i - 1, w) * 2 * job.channels + channel;
        put_lanes<narrow>(job.grad_source, at, left, lanes);
        put_lanes<narrow>(job.grad_source, at + job.channels, right, lanes);
      }
    }
  }
};

template <bool narrow>
void do_strip(const vheatir_gate_gradient_job &job, int64_t unit, float *work) {
  const int64_t strips = strips_of(job), first = unit % strips * kStrip, left = job.height - first;
  const int64_t rows = left < kStrip ? left : kStrip;
  for_vectors(job.channels, [&](int64_t channel, int64_t lanes) {
    const Strip<narrow> strip = {job,     unit / strips, first, rows,
                                 channel, lanes,         work,  work + (kStrip + 4) * (job.width + 2) * kPair};
    Vec one[9], other[9];
    repeat<9>([&](auto tap) INLINE_LAMBDA {
      one[tap] = get_lanes<false>(job.weight, tap * 2 * job.channels + channel, lanes);
      other[tap] = get_lanes<false>(job.weight, (tap * 2 + 1) * job.channels + channel, lanes);
    });
    strip.widen_source();
    strip.differentiate_product(one, other, get_lanes<false>(job.bias, channel, lanes),
                                get_lanes<false>(job.bias, job.channels + channel, lanes));
    strip.sum_weights(job.grad_weight + unit * 18 * job.channels, job.grad_bias + unit * 2 * job.channels);
    strip.differentiate_convolution(one, other);
  });
}

// Gradients of a layer norm; those of weight and bias are added to `grad_weight` and `grad_bias`.
template <bool narrow>
void rescale_row_backward(const vheatir_rescale_gradient_job &job, int64_t row, float *grad_weight, float *grad_bias) {
  const int64_t at = row * job.channels;
  const float *x = job.source + at;
  Vec sums = {}, squares = {};
  for_vectors(job.channels, [&](int64_t c, int64_t lanes) INLINE_LAMBDA { sums += get_lanes<false>(x, c, lanes); });
  const float mean = sum_of(sums) / float(job.channels);
  for_vectors(job.channels, [&](int64_t c, int64_t lanes) INLINE_LAMBDA {
    Vec off = get_lanes<false>(x, c, lanes) - mean;
    for (int64_t lane = lanes; lane < kWidth; ++lane) off[lane] = 0;
    squares += off * off;
  });
  const float factor = float(1 / __builtin_sqrt(double(sum_of(squares)) / double(job.channels) + job.epsilon));
  Vec grads = {}, products = {};  // of the gradient of the normalized values, and with those values
  for_vectors(job.channels, [&](int64_t c, int64_t lanes) INLINE_LAMBDA {
    const Vec normalized = (get_lanes<false>(x, c, lanes) - mean) * factor;
    Vec grad = get_lanes<narrow>(job.grad, at + c, lanes);  // zero in lanes beyond the channels, and so are the sums
    put_lanes<false>(grad_bias, c, get_lanes<false>(grad_bias, c, lanes) + grad, lanes);
    put_lanes<false>(grad_weight, c, get_lanes<false>(grad_weight, c, lanes) + grad * normalized, lanes);
    grad *= get_lanes<false>(job.weight, c, lanes);
    grads += grad;
    products += grad * normalized;
  });
  const float grad_mean = sum_of(grads) / float(job.channels), product = sum_of(products) / float(job.channels);
  for_vectors(job.channels, [&](int64_t c, int64_t lanes) INLINE_LAMBDA {
    const Vec normalized = (get_lanes<false>(x, c, lanes) - mean) * factor;
    const Vec grad = get_lanes<narrow>(job.grad, at + c, lanes) * get_lanes<false>(job.weight, c, lanes);
    Vec total = (grad - grad_mean - normalized * product) * factor;
    if (job.grad_sum) total += get_lanes<false>(job.grad_sum, at + c, lanes);
    put_lanes<false>(job.grad_source, at + c, total, lanes);
    if (job.grad_branch) put_lanes<narrow>(job.grad_branch, at + c, total, lanes);
  });
}

template <bool narrow>
void rescale_chunk_backward(const vheatir_rescale_gradient_job &job, int64_t chunk) {
  float *grad_weight = job.grad_weight + chunk * job.channels, *grad_bias = job.grad_bias + chunk * job.channels;
  memset(grad_weight, 0, size_t(job.channels) * sizeof(float));
  memset(grad_bias, 0, size_t(job.channels) * sizeof(float));
  const int64_t end = (chunk + 1) * VHEATIR_NORM_CHUNK;
  for (int64_t row = chunk * VHEATIR_NORM_CHUNK; row < job.rows && row < end; ++row) {
    rescale_row_backward<narrow>(job, row, grad_weight, grad_bias);
  }
}

template <bool narrow>
void product_row(const vheatir_product_job &job, int64_t row) {
  const int64_t one = row * 2 * job.channels, other = one + job.channels, at = row * job.channels;
  for_vectors(job.channels, [&](int64_t c, int64_t lanes) INLINE_LAMBDA {
    const Vec left = get_lanes<narrow>(job.source, one + c, lanes);
    const Vec right = get_lanes<narrow>(job.source, other + c, lanes);
    if (!job.grad) return put_lanes<narrow>(job.target, at + c, left * right, lanes);
    const Vec grad = get_lanes<narrow>(job.grad, at + c, lanes);
    put_lanes<narrow>(job.target, one + c, grad * right, lanes);
    put_lanes<narrow>(job.target, other + c, grad * left, lanes);
  });
}

}  // namespace

extern "C" int VHEATIR_OF_VERSION(vheatir_gate_gradient)(const vheatir_gate_gradient_job *job) {
  const int64_t units = job->batch * strips_of(*job);
  const size_t size = size_t(2 * kStrip + 6) * size_t(job->width + 2) * size_t(kPair) * sizeof(float);
  int short_of_memory = 0;
#pragma omp parallel num_threads(int(job->threads)) if (job -> threads > 1) reduction(| : short_of_memory)
  {
    const SubnormalsAreZero on_this_thread;
    float *const work = static_cast<float *>(malloc(size));
    short_of_memory |= work == nullptr;
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
      if (!work) continue;
      if (job->type == VHEATIR_BFLOAT16) {
        do_strip<true>(*job, unit, work);
      } else {
        do_strip<false>(*job, unit, work);
      }
    }
    free(work);
  }
  return short_of_memory ? -1 : 0;
}

extern "C" void VHEATIR_OF_VERSION(vheatir_rescale_gradient)(const vheatir_rescale_gradient_job *job) {
  const int64_t chunks = (job->rows + VHEATIR_NORM_CHUNK - 1) / VHEATIR_NORM_CHUNK;
#pragma omp parallel num_threads(int(job->threads)) if (job -> threads > 1)
  {
    const SubnormalsAreZero on_this_thread;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      if (job->type == VHEATIR_BFLOAT16) {
        rescale_chunk_backward<true>(*job, chunk);
      } else {
        rescale_chunk_backward<false>(*job, chunk);
      }
    }
  }
}

extern "C" void VHEATIR_OF_VERSION(vheatir_product)(const vheatir_product_job *job) {
#pragma omp parallel num_threads(int(job->threads)) if (job -> threads > 1)
  {
    const SubnormalsAreZero on_this_thread;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < job->rows; ++row) {
      if (job->type == VHEATIR_BFLOAT16) {
        product_row<true>(*job, row);
      } else {
        product_row<false>(*job, row);
      }
    }
  }
}
