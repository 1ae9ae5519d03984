// Depthwise 3x3 convolution and the product of both halves of its channels, in one pass over memory: the result of the
// convolution, twice as large as that of the product, is never stored. Compiled once for each instruction set.
#include "narrow.h"
#include "subnormal.h"

namespace {

constexpr int64_t kBlock = 64;  // pixels whose rows stay in the level 1 cache while the weights stay in registers

// The pixels of one row that have both neighbors, and so the same arithmetic; the rows above and below may be missing.
struct Line {
  const vheatir_gate_job &job;
  int64_t image, h;

  int64_t channels() const { return 2 * job.channels; }
  int64_t pixel(int64_t dy, int64_t w) const { return ((image * job.height + h + dy) * job.width + w) * channels(); }
  bool has(int64_t dy) const { return h + dy >= 0 && h + dy < job.height; }
  int64_t target(int64_t w) const { return ((image * job.height + h) * job.width + w) * job.channels; }
};

// `kWidth` channels of both halves, for the pixels first <= w < end of a line whose three rows and columns are there.
template <bool narrow>
void inner(const Line &line, int64_t first, int64_t end, int64_t channel) {
  const vheatir_gate_job &job = line.job;
  const int64_t channels = line.channels();
  Vec one[9], other[9];
  repeat<9>([&](auto tap) INLINE_LAMBDA {
    one[tap] = load(job.weight + tap * channels + channel);
    other[tap] = load(job.weight + tap * channels + job.channels + channel);
  });
  const Vec bias_one = load(job.bias + channel), bias_other = load(job.bias + job.channels + channel);
  for (int64_t w = first; w < end; ++w) {
    Vec left = bias_one, right = bias_other;
    repeat<9>([&](auto tap) INLINE_LAMBDA {
      const int64_t at = line.pixel(tap / 3 - 1, w + tap % 3 - 1) + channel;
      left += one[tap] * get<narrow>(job.source, at);
      right += other[tap] * get<narrow>(job.source, at + job.channels);
    });
    put<narrow>(job.target, line.target(w) + channel, left * right);
  }
}

// Any pixels: `body(tap, offset of the source)` for the taps that lie inside the map.
template <class Body>
INLINE void for_taps(const Line &line, int64_t w, const Body &body) {
  for (int64_t tap = 0; tap < 9; ++tap) {
    const int64_t dy = tap / 3 - 1, column = w + tap % 3 - 1;
    if (line.has(dy) && column >= 0 && column < line.job.width) body(tap * line.channels(), line.pixel(dy, column));
  }
}

// The pixels first <= w < end at the rim of the map, in whole vectors of channels below `whole`.
template <bool narrow>
void rim(const Line &line, int64_t first, int64_t end, int64_t whole) {
  const vheatir_gate_job &job = line.job;
  for (int64_t w = first; w < end; ++w) {
    for (int64_t c = 0; c < whole; c += kWidth) {
      Vec left = load(job.bias + c), right = load(job.bias + job.channels + c);
      for_taps(line, w, [&](int64_t weights, int64_t at) INLINE_LAMBDA {
        left += load(job.weight + weights + c) * get<narrow>(job.source, at + c);
        right += load(job.weight + weights + job.channels + c) * get<narrow>(job.source, at + job.channels + c);
      });
      put<narrow>(job.target, line.target(w) + c, left * right);
    }
  }
}

// All pixels of a line, for the channels from `whole` on, which fill no vector.
template <bool narrow>
void last_channels(const Line &line, int64_t whole) {
  const vheatir_gate_job &job = line.job;
  for (int64_t w = 0; w < job.width; ++w) {
    for (int64_t c = whole; c < job.channels; ++c) {
      float left = job.bias[c], right = job.bias[job.channels + c];
      for_taps(line, w, [&](int64_t weights, int64_t at) INLINE_LAMBDA {
        left += job.weight[weights + c] * get_one<narrow>(job.source, at + c);
        right += job.weight[weights + job.channels + c] * get_one<narrow>(job.source, at + job.channels + c);
      });
      put_one<narrow>(job.target, line.target(w) + c, left * right);
    }
  }
}

template <bool narrow>
void do_line(const vheatir_gate_job &job, int64_t image, int64_t h) {
  const Line line = {job, image, h};
  const int64_t whole = job.channels / kWidth * kWidth;
  if (whole < job.channels) last_channels<narrow>(line, whole);
  if (!line.has(-1) || !line.has(1) || job.width < 3) return rim<narrow>(line, 0, job.width, whole);
  rim<narrow>(line, 0, 1, whole);
  rim<narrow>(line, job.width - 1, job.width, whole);
  for (int64_t first = 1; first < job.width - 1; first += kBlock) {
    const int64_t end = first + kBlock < job.width - 1 ? first + kBlock : job.width - 1;
    for (int64_t channel = 0; channel < whole; channel += kWidth) inner<narrow>(line, first, end, channel);
  }
}

// Mean first and squares about it second: no cancellation. The row stays in the level 1 cache.
template <bool narrow>
void rescale_row(const vheatir_rescale_job &job, int64_t row) {
  const int64_t whole = job.channels / kWidth * kWidth, at = row * job.channels;
  const float *x = job.source + at;
  if (job.branch) {
    float *const sum = job.sum + at;
    for (int64_t c = 0; c < whole; c += kWidth) store(sum + c, load(x + c) + get<narrow>(job.branch, at + c));
    for (int64_t c = whole; c < job.channels; ++c) sum[c] = x[c] + get_one<narrow>(job.branch, at + c);
    x = sum;
  }
  if (!job.target) return;
  Vec sums = {};
  float rest = 0;
  for (int64_t c = 0; c < whole; c += kWidth) sums += load(x + c);
  for (int64_t c = whole; c < job.channels; ++c) rest += x[c];
  const float mean = (sum_of(sums) + rest) / float(job.channels);
  sums = Vec{}, rest = 0;
  for (int64_t c = 0; c < whole; c += kWidth) {
    const Vec off = load(x + c) - mean;
    sums += off * off;
  }
  for (int64_t c = whole; c < job.channels; ++c) rest += (x[c] - mean) * (x[c] - mean);
  const double variance = (sum_of(sums) + rest) / float(job.channels);
  const float factor = float(1 / __builtin_sqrt(variance + job.epsilon));
  for (int64_t c = 0; c < whole; c += kWidth) {
    put<narrow>(job.target, at + c, (load(x + c) - mean) * factor * load(job.weight + c) + load(job.bias + c));
  }
  for (int64_t c = whole; c < job.channels; ++c) {
    put_one<narrow>(job.target, at + c, (x[c] - mean) * factor * job.weight[c] + job.bias[c]);
  }
}

}  // namespace

extern "C" void VHEATIR_OF_VERSION(vheatir_rescale)(const vheatir_rescale_job *job) {
  const int threads = int(job->threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const SubnormalsAreZero on_this_thread;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < job->rows; ++row) {
      if (job->type == VHEATIR_BFLOAT16) {
        rescale_row<true>(*job, row);
      } else {
        rescale_row<false>(*job, row);
      }
    }
  }
}

extern "C" void VHEATIR_OF_VERSION(vheatir_gate)(const vheatir_gate_job *job) {
  const int threads = int(job->threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const SubnormalsAreZero on_this_thread;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < job->batch * job->height; ++row) {
      const int64_t image = row / job->height, h = row % job->height;
      if (job->type == VHEATIR_BFLOAT16) {
        do_line<true>(*job, image, h);
      } else {
        do_line<false>(*job, image, h);
      }
    }
  }
}
