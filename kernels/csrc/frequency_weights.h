// What happens to a spectrum between the two transforms, and how a job is cut to the caches.
#pragma once
#include "transform.h"

namespace {

constexpr int64_t kSpaceBytes = 16 << 10;              // work space of a transform: lines are added until it is used up
constexpr int64_t kPlaneBytes = 1152 << 10;            // planes up to here stay in or near the level 2 cache
constexpr int64_t kPlaneBytesWithSpectra = 128 << 10;  // likewise where spectra are kept or read beside the maps
constexpr int64_t kSmallPlaneBytes = 32 << 10;         // up to here the level 1 cache has room for the next one
constexpr int64_t kStrewnBytes = 1 << 20;              // and above here memory is slow enough to be worth it
constexpr int64_t kTilesAtOnce = 56;                   // in such planes tiles are transformed in lots of about so many
constexpr int64_t kGroupBytes = 640 << 10;             // planes of neighboring tiles are done together up to here
constexpr int64_t kLeastGroup = 8;                     // tiles of a group: shorter runs of memory gain nothing
constexpr int64_t kBlockBytes = 256 << 10;             // a block of columns stays well inside it
constexpr int64_t kMostBlockTiles = 16, kMostPlaneTiles = 64;

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
    const int64_t shares = job.decay_gradient ? 1 : job.batch;  // of one tile, for the threads
    const int64_t plane_bytes = height * plane_row * 4;
    const bool spectra = job.keep_spectrum || job.decay_gradient;
    in_planes = channels % kTile == 0 && channel_tiles * shares >= job.threads &&
                plane_bytes <= (spectra ? kPlaneBytesWithSpectra : kPlaneBytes);
    const int64_t largest = least(kGroupBytes / plane_bytes, channel_tiles);
    group = in_planes && spectra && job.batch > 1 && largest >= kLeastGroup ? group_of(shares, job.threads, largest)
                                                                            : 1;
    plane_row = (width * group | 1) * kTile;
    small_planes = in_planes && group == 1 && plane_bytes <= kSmallPlaneBytes && job.batch * image * 4 >= kStrewnBytes;
    if (small_planes) {
      width_lines = least(width_lines, ratio_up(kTilesAtOnce, width));
      height_lines = least(height_lines, ratio_up(kTilesAtOnce, height));
    }
    block_tiles = in_planes ? least(height_lines, kMostPlaneTiles)
                            : least(kMostBlockTiles, kBlockBytes / (height * kTile * 4));
    block_tiles = most(1, least(block_tiles, in_planes ? width * group : row_tiles));
    space = most(width_lines * job.along_width.slots, height_lines * job.along_height.slots) * kTile;
    staged = width * kTile;
    block = block_tiles * height * kTile;
  }
  // Tiles of channels to a group, at most `largest`; `shares` pieces of work for each. No thread gets more than an eighth
  // above its part; 1 where that leaves groups too small to gain anything.
  int64_t group_of(int64_t shares, int64_t threads, int64_t largest) const {
    for (int64_t groups = ratio_up(channel_tiles, largest);; ++groups) {
      const int64_t tiles = ratio_up(channel_tiles, groups);
      if (tiles < kLeastGroup) return 1;
      const int64_t most_work = ratio_up(groups * shares, threads) * tiles;
      if (most_work * threads * 8 <= channel_tiles * shares * 9) return tiles;
    }
  }
  int64_t per_thread() const { return space + staged + block + (in_planes ? height * plane_row : 0); }

  int64_t height, width, channels, row, image, channel_tiles, row_tiles;
  int64_t width_lines, height_lines, plane_row, block_tiles;
  int64_t space, staged, block;  // floats of each part of a thread's memory
  int64_t group;                 // tiles of channels that are done together in a plane
  bool in_planes, small_planes;
};

// One thread's memory.
struct Scratch {
  Scratch(const Cut &cut, float *memory)
      : space(memory), staged(space + cut.space), block(staged + cut.staged), plane(block + cut.block) {}
  float *space, *staged, *block, *plane;
};

// Asks for `count` cache lines in advance. All functions that do so must be inlined: to GCC (12) a function that only asks
// for memory does nothing, and it drops the calls.
// One tile of a row is strided over pages, which the hardware prefetcher does not follow.
template <bool to_write>
INLINE void foresee(const void *first, int64_t pitch_bytes, int64_t count) {
  const char *at = static_cast<const char *>(first);
  for (int64_t i = 0; i < count; ++i, at += pitch_bytes) __builtin_prefetch(at, to_write, 2);
}

// The decay of some tiles, applied to a block of (tiles, H, 16) spectra; before that the spectrum is
// kept, or multiplied with the other spectrum and summed.
class Weighing {
 public:
  Weighing(const vheatir_job &job, const Cut &cut, int64_t image)
      : job_(job),
        cut_(cut),
        sum_started_(image > 0 && !job.decay_image),
        offset_(image * cut.image),
        decay_(job.decay + image * job.decay_image),
        gradient_(job.decay_gradient + (job.decay_image ? image * cut.image : 0)),
        scale_(float(job.along_height.scale * job.along_width.scale)) {}

  // Tile i of the block belongs to place starts[i] of a row.
  void operator()(float *block, const int64_t *starts, int64_t tiles) const {
    const int64_t size = cut_.height * kTile;
    for (int64_t h = 0; h < cut_.height; ++h) {  // row by row: neighbors in the block are neighbors in memory
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t start = starts[i];
        if (start + kTile <= cut_.row) {
          weigh(block + i * size + h * kTile, h, start, kTile);
        } else {
          weigh(block + i * size + h * kTile, h, start, cut_.row - start);
        }
      }
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

  // One tile of row h, from place `start` of the row on.
  INLINE void weigh(float *x, int64_t h, int64_t start, int64_t lanes) const {
    const int64_t at = h * cut_.row + start;
    Tile spectrum = get(x, kTile);
    repeat<kVectors>([&](auto v) INLINE_LAMBDA { spectrum.part[v] *= scale_; });
    if (job_.keep_spectrum) put(job_.keep_spectrum + offset_ + at, spectrum, lanes);
    if (job_.decay_gradient) {
      Tile sum = sum_started_ ? get(gradient_ + at, lanes) : Tile();
      const Tile other = get(job_.other_spectrum + offset_ + at, lanes);
      repeat<kVectors>([&](auto v) INLINE_LAMBDA { sum.part[v] += other.part[v] * spectrum.part[v]; });
      put(gradient_ + at, sum, lanes);
    }
    const Tile decay = decay_of(h, start, at, lanes);
    repeat<kVectors>([&](auto v) INLINE_LAMBDA { spectrum.part[v] *= decay.part[v] * scale_; });
    put(x, spectrum, kTile);
  }

  INLINE Tile decay_of(int64_t h, int64_t start, int64_t at, int64_t lanes) const {
    switch (job_.decay_order) {
      case VHEATIR_DECAY_MAPS: return get(decay_ + at, lanes);
      case VHEATIR_DECAY_TILES: return get(decay_ + start * cut_.height + h * lanes, lanes);
      case VHEATIR_DECAY_SHARED: {
        const float *decay = decay_ + h * cut_.width;
        const float one = decay[start / cut_.channels];
        float values[kTile];
        for (int64_t lane = 0; lane < kTile; ++lane) {
          const bool same = cut_.channels % kTile == 0 || lane >= lanes;  // a whole tile lies in one pixel
          values[lane] = same ? one : decay[(start + lane) / cut_.channels];
        }
        return get(values, kTile);
      }
      default: return Tile();  // no way back: the product is not used
    }
  }

  const vheatir_job &job_;
  const Cut &cut_;
  bool sum_started_;
  int64_t offset_;
  const float *decay_;
  float *gradient_;
  float scale_;  // of both transforms, there and back
};

}  // namespace
