// The heat operator on channels-last maps: transform along W, transform along H, decay, and both back.
//
// Small planes with whole tiles of channels are done in work space that stays in the level 2 cache, tile by tile, or
// some neighboring tiles together where spectra are kept or read as well; what is small differs for these. All others
// take three passes over memory, in place in the target: rows, columns in blocks of neighboring tiles with the
// decay and the way back, rows. The columns do not care where a pixel ends: their tiles are cut from the W * C values
// of a row, so that only the last tile of all can be narrow.
//
// Compiled once for each instruction set.
#ifdef _OPENMP
#include <omp.h>
#endif

#include "passes.h"
#include "subnormal.h"

namespace {

// `lines` rows of one tile of channels, from the source to full tiles in a plane or to `lanes` channels in the middle.
void rows_in(const vheatir_job &job, const Cut &cut, const Scratch &scratch, int64_t image, int64_t h, int64_t lines,
             int64_t channel, Rows to) {
  const int64_t lanes = least(kTile, cut.channels - channel);
  const Rows staged = {scratch.staged, kTile, 0};
  for (int64_t next = h + lines; !cut.in_planes && next < least(h + 2 * lines, cut.height); ++next) {
    foresee<false>(source_at(job, image, next, channel), job.source_pixel * bytes_of(job.source_type), cut.width);
    foresee<true>(to.first + (next - h) * to.line, to.row * 4, cut.width);
  }
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
  for (int64_t next = h + lines; !cut.in_planes && next < least(h + 2 * lines, cut.height); ++next) {
    foresee<true>(target_at(job, cut, image, next, channel), cut.channels * bytes_of(job.target_type), cut.width);
  }
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

INLINE void foresee_source(const vheatir_job &job, const Cut &cut, Plane plane, Part part) {
  const int64_t size = bytes_of(job.source_type);
  foresee_part<false>(source_at(job, plane.image, part.first_line, plane.first * kTile), job.source_row * size,
                      job.source_pixel * size, plane.tiles * kTile * size, cut.width, part);
}

INLINE void foresee_target(const vheatir_job &job, const Cut &cut, Plane plane, Part part) {
  const int64_t size = bytes_of(job.target_type);
  if (!job.target) return;
  foresee_part<true>(target_at(job, cut, plane.image, part.first_line, plane.first * kTile), cut.row * size,
                     cut.channels * size, plane.tiles * kTile * size, cut.width, part);
}

// One plane of (H, W, tiles, 16); `next` is the one after it, without tiles where there is none. Memory is asked for bit
// by bit between the transforms: the processor can wait for a few lines only at a time. Of a small plane all is
// asked for one plane in advance, of grouped tiles the next chunk of rows; for large planes of one tile it does not pay.
class PlaneWork {
 public:
  PlaneWork(const vheatir_job &job, const Cut &cut, const Scratch &scratch, Plane plane, Plane next)
      : job_(job),
        cut_(cut),
        scratch_(scratch),
        plane_(plane),
        next_(next),
        chunks_(ratio_up(cut.height, cut.width_lines)),
        blocks_(ratio_up(cut.width * plane.tiles, cut.block_tiles)) {}

  void operator()() const {
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      for (int64_t i = 0; i < plane_.tiles; ++i) rows_forward(chunk, i);
    }
    columns();
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      for (int64_t i = 0; i < plane_.tiles; ++i) rows_back(chunk, i);
    }
  }

 private:
  bool grouped() const { return plane_.tiles > 1; }
  int64_t lines_of(int64_t chunk) const { return least(cut_.width_lines, cut_.height - chunk * cut_.width_lines); }

  Part of_chunk(int64_t chunk, int64_t tile) const {
    return {tile, plane_.tiles, chunk * cut_.width_lines, lines_of(chunk)};
  }

  // A small plane: target lines are asked for in the first two of the three phases, the next source in the last two.
  Part of_plane(int64_t number) const { return {number, chunks_ + blocks_, 0, cut_.height}; }

  Rows in_plane(int64_t chunk, int64_t tile) const {
    float *first = scratch_.plane + chunk * cut_.width_lines * cut_.plane_row + tile * kTile;
    return {first, plane_.tiles * kTile, cut_.plane_row};
  }

  void rows_forward(int64_t chunk, int64_t i) const {
    if (cut_.small_planes) {
      foresee_target(job_, cut_, plane_, of_plane(chunk));
    } else if (grouped() && chunk + 1 < chunks_) {
      foresee_source(job_, cut_, plane_, of_chunk(chunk + 1, i));
    }
    rows_in(job_, cut_, scratch_, plane_.image, chunk * cut_.width_lines, lines_of(chunk), (plane_.first + i) * kTile,
            in_plane(chunk, i));
  }

  void columns() const {
    const Weighing weigh(job_, cut_, plane_.image);
    const Rows block = {scratch_.block, kTile, cut_.height * kTile};
    int64_t starts[kMostPlaneTiles], next_tile = 0, next_start = plane_.first * kTile;
    for (int64_t number = 0; number < blocks_; ++number) {
      const int64_t done = number * cut_.block_tiles;
      const int64_t tiles = least(cut_.block_tiles, cut_.width * plane_.tiles - done);
      for (int64_t i = 0; i < tiles; ++i) {
        starts[i] = next_start, next_start += kTile;
        if (++next_tile == plane_.tiles) next_tile = 0, next_start += cut_.channels - plane_.tiles * kTile;
      }
      const Rows columns = {scratch_.plane + done * kTile, cut_.plane_row, kTile};
      transform<false>(job_.along_height, columns, block, tiles, scratch_.space);
      if (cut_.small_planes) foresee_target(job_, cut_, plane_, of_plane(chunks_ + number));
      weigh(scratch_.block, starts, tiles);
      if (cut_.small_planes && next_.tiles) foresee_source(job_, cut_, next_, of_plane(number));
      if (job_.target) transform<true>(job_.along_height, block, columns, tiles, scratch_.space);
    }
  }

  void rows_back(int64_t chunk, int64_t i) const {
    const bool last = chunk + 1 == chunks_;
    if (cut_.small_planes) {
      if (next_.tiles) foresee_source(job_, cut_, next_, of_plane(blocks_ + chunk));
    } else if (grouped() && last) {
      if (next_.tiles) foresee_source(job_, cut_, next_, {i, plane_.tiles, 0, lines_of(0)});
    } else if (grouped()) {
      foresee_target(job_, cut_, plane_, of_chunk(chunk + 1, i));
    }
    if (!job_.target) return;
    rows_out(job_, cut_, scratch_, plane_.image, chunk * cut_.width_lines, lines_of(chunk), (plane_.first + i) * kTile,
             in_plane(chunk, i));
  }

  const vheatir_job &job_;
  const Cut &cut_;
  const Scratch &scratch_;
  const Plane plane_, next_;
  const int64_t chunks_, blocks_;
};

// Neighboring columns of an (H, W * C) image, in place.
void do_block(const vheatir_job &job, const Cut &cut, const Scratch &scratch, int64_t image, float *middle,
              int64_t tile) {
  const int64_t tiles = least(cut.block_tiles, cut.row_tiles - tile), size = cut.height * kTile;
  const Weighing weigh(job, cut, image);
  int64_t starts[kMostBlockTiles];
  for (int64_t i = 0; i < tiles; ++i) starts[i] = (tile + i) * kTile;
  // Row by row: one after the other, the columns of a width that is a power of two would crowd a few sets of the cache.
  const int64_t whole = least(tiles, cut.row / kTile - tile);
  for (int64_t h = 0; h < cut.height; ++h) {
    foresee<true>(middle + least(h + kRowsAhead, cut.height - 1) * cut.row + tile * kTile, kTile * 4, whole);
    for (int64_t i = 0; i < whole; ++i) {
      copy_tile(middle + h * cut.row + (tile + i) * kTile, scratch.block + i * size + h * kTile);
    }
  }
  const int64_t rest = (tile + whole) * kTile;
  if (whole < tiles) {
    load_tiles(middle + rest, VHEATIR_FLOAT32, cut.row, cut.height, cut.row - rest, scratch.block + whole * size);
  }
  for (int64_t i = 0; i < tiles; i += cut.height_lines) {
    const Rows lines = {scratch.block + i * size, kTile, size};
    transform<false>(job.along_height, lines, lines, least(cut.height_lines, tiles - i), scratch.space);
  }
  weigh(scratch.block, starts, tiles);
  if (!job.target) return;
  for (int64_t i = 0; i < tiles; i += cut.height_lines) {
    const Rows lines = {scratch.block + i * size, kTile, size};
    transform<true>(job.along_height, lines, lines, least(cut.height_lines, tiles - i), scratch.space);
  }
  for (int64_t h = 0; h < cut.height; ++h) {
    foresee<true>(middle + least(h + kRowsAhead, cut.height - 1) * cut.row + tile * kTile, kTile * 4, whole);
    for (int64_t i = 0; i < whole; ++i) {
      copy_tile(scratch.block + i * size + h * kTile, middle + h * cut.row + (tile + i) * kTile);
    }
  }
  if (whole < tiles) {
    store_tiles(scratch.block + whole * size, cut.height, cut.row - rest, middle + rest, VHEATIR_FLOAT32, cut.row);
  }
}

void do_all_planes(const vheatir_job &job, const Cut &cut, const Scratch &scratch) {
  const int64_t groups = ratio_up(cut.channel_tiles, cut.group), count = groups * job.batch;
  // Images of one group follow each other: its decay stays in the cache.
  const auto plane_of = [&](int64_t i) -> Plane {
    const int64_t first = i / job.batch * cut.group;
    return {i % job.batch, first, i < count ? least(cut.group, cut.channel_tiles - first) : 0};
  };
  // With a gradient one thread adds up all images of a tile, so that the order of the sum is fixed.
  const int64_t together = job.decay_gradient ? job.batch : 1;
#pragma omp for schedule(static)
  for (int64_t start = 0; start < count; start += together) {
    for (int64_t i = start; i < start + together; ++i) PlaneWork(job, cut, scratch, plane_of(i), plane_of(i + 1))();
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

extern "C" int VHEATIR_OF_VERSION(vheatir_conduct)(const vheatir_job *job) {
  const Cut cut(*job);
  const int threads = job->threads;
  const int64_t size = job->batch * cut.image;
  ask_for_large_pages(job->target, size * bytes_of(job->target_type));
  ask_for_large_pages(job->keep_spectrum, size * 4);
  ask_for_large_pages(job->workspace, cut.image * 4);
  // Whole pages for each thread, so that no two of them share a cache line.
  const int64_t per_thread = ratio_up(cut.per_thread(), 1024) * 1024;
  float *memory = kept.at_least(size_t(per_thread * threads));
  if (!memory) return -1;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const SubnormalsAreZero on_this_thread;
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
