// The heat operator on channels-last maps: transform along W, transform along H, decay, and both back.
//
// Small planes with whole tiles of channels are done tile by tile in a plane that stays in the level 2 cache. All
// others take three passes over memory, in place in the target: rows, columns in blocks of neighbouring tiles with the
// decay and the way back, rows. The columns do not care where a pixel ends: their tiles are cut from the W * C values
// of a row, so that only the last tile of all can be narrow.
//
// Compiled once for each instruction set, with VHEATIR_ENTRY as the name of its entry.
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "transform.h"

namespace {

constexpr int64_t kSpaceBytes = 16 << 10;   // work space of a transform: lines are added until it is used up
constexpr int64_t kPlaneBytes = 512 << 10;  // planes up to here stay in the level 2 cache
constexpr int64_t kBlockBytes = 256 << 10;  // likewise a block of columns
constexpr int64_t kMostBlockTiles = 16;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t ratio_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t lines_at_once(const vheatir_plan &plan) { return most(1, kSpaceBytes / (plan.slots * kTile * 4)); }

// Sizes of a job, and how it is cut.
struct Cut {
  explicit Cut(const vheatir_job &job) {
    height = job.height, width = job.width, channels = job.channels;
    row = width * channels, image = height * row;
    channel_tiles = ratio_up(channels, kTile), row_tiles = ratio_up(row, kTile);
    width_lines = lines_at_once(job.along_width), height_lines = lines_at_once(job.along_height);
    // An odd number of cache lines between rows, or the columns of a plane would crowd a few sets of the cache.
    plane_row = (width | 1) * kTile;
    in_planes = channels % kTile == 0 && height * plane_row * 4 <= kPlaneBytes;
    block_tiles = in_planes ? least(height_lines, width) : most(1, least(kMostBlockTiles, kBlockBytes / (height * kTile * 4)));
    block_tiles = least(block_tiles, row_tiles);
    space = most(width_lines * job.along_width.slots, height_lines * job.along_height.slots) * kTile;
    staged = width * kTile;
    block = block_tiles * height * kTile;
  }
  int64_t per_thread() const { return space + staged + block + (in_planes ? height * plane_row : 0); }

  int64_t height, width, channels, row, image, channel_tiles, row_tiles;
  int64_t width_lines, height_lines, plane_row, block_tiles;
  int64_t space, staged, block;  // floats of each part of a thread's memory
  bool in_planes;
};

// One thread's memory.
struct Scratch {
  Scratch(const Cut &cut, float *memory)
      : space(memory), staged(space + cut.space), block(staged + cut.staged), plane(block + cut.block) {}
  float *space, *staged, *block, *plane;
};

// The decay of `tiles` tiles from `tile` on, applied to a block of (tiles, H, 16) spectra; before that the spectrum is
// kept, or multiplied with the other spectrum and summed.
class Weighing {
 public:
  Weighing(const vheatir_job &job, const Cut &cut, int64_t image)
      : job_(job), cut_(cut), sum_started_(image > 0), offset_(image * cut.image) {}

  // The block's tile i is tile `tile` + i * pitch of a row.
  void operator()(float *block, int64_t tile, int64_t pitch, int64_t tiles) const {
    if (job_.keep_spectrum) {
      each(block, tile, pitch, tiles, [&](float *x, int64_t, int64_t at, int64_t lanes, int64_t) INLINE_LAMBDA {
        put(job_.keep_spectrum + offset_ + at, get(x, kTile), lanes);
      });
    }
    if (job_.decay_gradient) {
      each(block, tile, pitch, tiles, [&](float *x, int64_t, int64_t at, int64_t lanes, int64_t) INLINE_LAMBDA {
        Tile product = get(job_.other_spectrum + offset_ + at, lanes);
        const Tile spectrum = get(x, kTile);
        float *sum = job_.decay_gradient + at;
        repeat<kVectors>([&](auto v) INLINE_LAMBDA { product.part[v] *= spectrum.part[v]; });
        if (sum_started_) {
          const Tile before = get(sum, lanes);
          repeat<kVectors>([&](auto v) INLINE_LAMBDA { product.part[v] += before.part[v]; });
        }
        put(sum, product, lanes);
      });
    }
    if (job_.decay_order == VHEATIR_DECAY_MAPS) {
      each(block, tile, pitch, tiles, [&](float *x, int64_t, int64_t at, int64_t lanes, int64_t) INLINE_LAMBDA {
        multiply(x, get(job_.decay + at, lanes));
      });
    } else if (job_.decay_order == VHEATIR_DECAY_TILES) {
      each(block, tile, pitch, tiles, [&](float *x, int64_t h, int64_t, int64_t lanes, int64_t start) INLINE_LAMBDA {
        multiply(x, get(job_.decay + start * cut_.height + h * lanes, lanes));
      });
    } else if (job_.decay_order == VHEATIR_DECAY_SHARED) {
      each(block, tile, pitch, tiles, [&](float *x, int64_t h, int64_t, int64_t lanes, int64_t start) INLINE_LAMBDA {
        const float *decay = job_.decay + h * cut_.width;
        if (cut_.channels % kTile == 0) {
          repeat<kVectors>([&](auto v) INLINE_LAMBDA {
            store(x + v * kWidth, load(x + v * kWidth) * decay[start / cut_.channels]);
          });
          return;
        }
        float values[kTile] = {};
        for (int64_t lane = 0; lane < lanes; ++lane) values[lane] = decay[(start + lane) / cut_.channels];
        multiply(x, get(values, kTile));
      });
    }
  }

 private:
  struct Tile {
    Vec part[kVectors];
  };

  static INLINE Tile get(const float *from, int64_t lanes) {
    float padded[kTile];
    if (lanes < kTile) {
      for (int64_t lane = 0; lane < kTile; ++lane) padded[lane] = lane < lanes ? from[lane] : 0;
      from = padded;
    }
    Tile tile;
    repeat<kVectors>([&](auto v) INLINE_LAMBDA { tile.part[v] = load(from + v * kWidth); });
    return tile;
  }

  static INLINE void put(float *to, const Tile &tile, int64_t lanes) {
    float padded[kTile];
    float *whole = lanes < kTile ? padded : to;
    repeat<kVectors>([&](auto v) INLINE_LAMBDA { store(whole + v * kWidth, tile.part[v]); });
    for (int64_t lane = 0; lanes < kTile && lane < lanes; ++lane) to[lane] = padded[lane];
  }

  static INLINE void multiply(float *x, const Tile &factor) {
    repeat<kVectors>([&](auto v) INLINE_LAMBDA { store(x + v * kWidth, load(x + v * kWidth) * factor.part[v]); });
  }

  // body(values, h, their place in (H, W * C), lanes, first of them in the row), row by row: neighbours in memory.
  template <class Body>
  INLINE void each(float *block, int64_t tile, int64_t pitch, int64_t tiles, const Body &body) const {
    for (int64_t h = 0; h < cut_.height; ++h) {
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t start = (tile + i * pitch) * kTile;
        float *x = block + (i * cut_.height + h) * kTile;
        if (start + kTile <= cut_.row) {
          body(x, h, h * cut_.row + start, kTile, start);
        } else {
          body(x, h, h * cut_.row + start, cut_.row - start, start);
        }
      }
    }
  }

  const vheatir_job &job_;
  const Cut &cut_;
  bool sum_started_;
  int64_t offset_;
};

const char *source_at(const vheatir_job &job, int64_t image, int64_t h, int64_t channel) {
  const int64_t at = image * job.source_image + h * job.source_row + channel;
  return static_cast<const char *>(job.source) + at * bytes_of(job.source_type);
}

char *target_at(const vheatir_job &job, const Cut &cut, int64_t image, int64_t h, int64_t channel) {
  const int64_t at = image * cut.image + h * cut.row + channel;
  return static_cast<char *>(job.target) + at * bytes_of(job.target_type);
}

// `lines` rows of one tile of channels, from the source to full tiles in a plane or to `lanes` channels in the middle.
void rows_in(const vheatir_job &job, const Cut &cut, const Scratch &scratch, int64_t image, int64_t h, int64_t lines,
             int64_t channel, Rows to) {
  const int64_t lanes = least(kTile, cut.channels - channel);
  const Rows staged = {scratch.staged, kTile, 0};
  if (job.source_type == VHEATIR_FLOAT32 && lanes == kTile) {
    float *first = reinterpret_cast<float *>(const_cast<char *>(source_at(job, image, h, channel)));
    transform<false>(job.along_width, {first, job.source_pixel, job.source_row}, to, lines, scratch.space);
    return;
  }
  for (int64_t line = 0; line < lines; ++line, to.first += to.line) {
    const char *at = source_at(job, image, h + line, channel);
    load_tiles(at, job.source_type, job.source_pixel, cut.width, lanes, scratch.staged);
    transform<false>(job.along_width, staged, lanes == kTile ? to : staged, 1, scratch.space);
    if (lanes < kTile) store_tiles(scratch.staged, cut.width, lanes, to.first, VHEATIR_FLOAT32, to.row);
  }
}

// The way back, into the target.
void rows_out(const vheatir_job &job, const Cut &cut, const Scratch &scratch, int64_t image, int64_t h, int64_t lines,
              int64_t channel, Rows from) {
  const int64_t lanes = least(kTile, cut.channels - channel);
  const Rows staged = {scratch.staged, kTile, 0};
  if (job.target_type == VHEATIR_FLOAT32 && lanes == kTile) {
    float *first = reinterpret_cast<float *>(target_at(job, cut, image, h, channel));
    transform<true>(job.along_width, from, {first, cut.channels, cut.row}, lines, scratch.space);
    return;
  }
  for (int64_t line = 0; line < lines; ++line, from.first += from.line) {
    if (lanes < kTile) load_tiles(from.first, VHEATIR_FLOAT32, from.row, cut.width, lanes, scratch.staged);
    transform<true>(job.along_width, lanes == kTile ? from : staged, staged, 1, scratch.space);
    char *at = target_at(job, cut, image, h + line, channel);
    store_tiles(scratch.staged, cut.width, lanes, at, job.target_type, cut.channels);
  }
}

// One tile of channels of one image, in a plane.
void do_plane(const vheatir_job &job, const Cut &cut, const Scratch &scratch, int64_t image, int64_t channel_tile) {
  const Weighing weigh(job, cut, image);
  for (int64_t h = 0; h < cut.height; h += cut.width_lines) {
    const Rows to = {scratch.plane + h * cut.plane_row, kTile, cut.plane_row};
    rows_in(job, cut, scratch, image, h, least(cut.width_lines, cut.height - h), channel_tile * kTile, to);
  }
  const Rows block = {scratch.block, kTile, cut.height * kTile};
  for (int64_t w = 0; w < cut.width; w += cut.block_tiles) {
    const int64_t lines = least(cut.block_tiles, cut.width - w);
    const Rows columns = {scratch.plane + w * kTile, cut.plane_row, kTile};
    transform<false>(job.along_height, columns, block, lines, scratch.space);
    weigh(scratch.block, w * cut.channel_tiles + channel_tile, cut.channel_tiles, lines);
    if (job.target) transform<true>(job.along_height, block, columns, lines, scratch.space);
  }
  for (int64_t h = 0; job.target && h < cut.height; h += cut.width_lines) {
    const Rows from = {scratch.plane + h * cut.plane_row, kTile, cut.plane_row};
    rows_out(job, cut, scratch, image, h, least(cut.width_lines, cut.height - h), channel_tile * kTile, from);
  }
}

// Neighbouring columns of an (H, W * C) image, in place.
void do_block(const vheatir_job &job, const Cut &cut, const Scratch &scratch, int64_t image, float *middle,
              int64_t tile) {
  const int64_t tiles = least(cut.block_tiles, cut.row_tiles - tile), size = cut.height * kTile;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t start = (tile + i) * kTile, lanes = least(kTile, cut.row - start);
    load_tiles(middle + start, VHEATIR_FLOAT32, cut.row, cut.height, lanes, scratch.block + i * size);
  }
  for (int64_t i = 0; i < tiles; i += cut.height_lines) {
    const Rows lines = {scratch.block + i * size, kTile, size};
    transform<false>(job.along_height, lines, lines, least(cut.height_lines, tiles - i), scratch.space);
  }
  Weighing(job, cut, image)(scratch.block, tile, 1, tiles);
  if (!job.target) return;
  for (int64_t i = 0; i < tiles; i += cut.height_lines) {
    const Rows lines = {scratch.block + i * size, kTile, size};
    transform<true>(job.along_height, lines, lines, least(cut.height_lines, tiles - i), scratch.space);
  }
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t start = (tile + i) * kTile, lanes = least(kTile, cut.row - start);
    store_tiles(scratch.block + i * size, cut.height, lanes, middle + start, VHEATIR_FLOAT32, cut.row);
  }
}

// Memory that a thread keeps from call to call: fresh pages cost more than a small transform.
struct Kept {
  ~Kept() { free(memory); }
  float *at_least(size_t floats) {
    if (floats > size) {
      free(memory);
      memory = nullptr, size = 0;
      void *fresh = nullptr;
      if (posix_memalign(&fresh, 4096, floats * sizeof(float)) != 0) return nullptr;
      memory = static_cast<float *>(fresh), size = floats;
    }
    return memory;
  }
  float *memory = nullptr;
  size_t size = 0;
};
thread_local Kept kept;

void do_all_planes(const vheatir_job &job, const Cut &cut, const Scratch &scratch) {
  if (job.decay_gradient) {  // one thread adds up all images of a tile, so that the order of the sum is fixed
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < cut.channel_tiles; ++tile) {
      for (int64_t image = 0; image < job.batch; ++image) do_plane(job, cut, scratch, image, tile);
    }
  } else {  // images of one tile follow each other: its decay stays in the cache
#pragma omp for schedule(static)
    for (int64_t i = 0; i < cut.channel_tiles * job.batch; ++i) {
      do_plane(job, cut, scratch, i % job.batch, i / job.batch);
    }
  }
}

void do_three_passes(const vheatir_job &job, const Cut &cut, const Scratch &scratch, int64_t image) {
  float *middle = job.workspace;
  if (!middle) {
    middle = (job.target ? static_cast<float *>(job.target) : job.keep_spectrum) + image * cut.image;
  }
  const int64_t chunks = ratio_up(cut.height, cut.width_lines);
#pragma omp for schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t h = chunk * cut.width_lines, lines = least(cut.width_lines, cut.height - h);
    for (int64_t channel = 0; channel < cut.channels; channel += kTile) {
      const Rows to = {middle + h * cut.row + channel, cut.channels, cut.row};
      rows_in(job, cut, scratch, image, h, lines, channel, to);
    }
  }
#pragma omp for schedule(static)
  for (int64_t tile = 0; tile < cut.row_tiles; tile += cut.block_tiles) {
    do_block(job, cut, scratch, image, middle, tile);
  }
  if (!job.target) return;
#pragma omp for schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t h = chunk * cut.width_lines, lines = least(cut.width_lines, cut.height - h);
    for (int64_t channel = 0; channel < cut.channels; channel += kTile) {
      const Rows from = {middle + h * cut.row + channel, cut.channels, cut.row};
      rows_out(job, cut, scratch, image, h, lines, channel, from);
    }
  }
}

}  // namespace

extern "C" int VHEATIR_ENTRY(const vheatir_job *job) {
  const Cut cut(*job);
  const int threads = job->threads;
  // Whole pages for each thread, so that no two of them share a cache line.
  const int64_t per_thread = ratio_up(cut.per_thread(), 1024) * 1024;
  float *memory = kept.at_least(size_t(per_thread * threads));
  if (!memory) return -1;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#ifdef _OPENMP
    const Scratch scratch(cut, memory + omp_get_thread_num() * per_thread);
#else
    const Scratch scratch(cut, memory);
#endif
    if (cut.in_planes) {
      do_all_planes(*job, cut, scratch);
    } else {
      for (int64_t image = 0; image < job->batch; ++image) do_three_passes(*job, cut, scratch, image);
    }
  }
  return 0;
}
