// Heat conduction with one diffusivity for each channel: along W, then along H, each axis by itself. Two passes over
// memory instead of three, and no decay map: exp(-k w^2) of one axis is a short table for each channel.
//
// Small planes with whole tiles of channels stay in the level 2 cache between both passes, all others take them in place
// in the target: rows, then columns in blocks of neighboring tiles. Columns alone come straight from the source.
//
// Compiled once for each instruction set.
#ifdef _OPENMP
#include <omp.h>
#endif

#include "axis.h"
#include "narrow.h"
#include "passes.h"
#include "subnormal.h"

namespace {

// Like load_tiles and store_tiles, many bfloat16 at once where the tiles are whole.
void read_tiles(const void *source, int32_t type, int64_t pitch, int64_t count, int64_t lanes, float *tiles) {
  if (type != VHEATIR_BFLOAT16 || lanes < kTile) return load_tiles(source, type, pitch, count, lanes, tiles);
  const uint16_t *from = static_cast<const uint16_t *>(source);
  for (int64_t i = 0; i < count; ++i, from += pitch, tiles += kTile) {
    repeat<kVectors>([&](auto v) INLINE_LAMBDA { store(tiles + v * kWidth, get<true>(from, v * kWidth)); });
  }
}

void write_tiles(const float *tiles, int64_t tiles_pitch, int64_t count, int64_t lanes, void *target, int32_t type,
                 int64_t pitch) {
  if (type == VHEATIR_FLOAT32 && lanes == kTile) {
    for (int64_t i = 0; i < count; ++i) copy_tile(tiles + i * tiles_pitch, static_cast<float *>(target) + i * pitch);
    return;
  }
  if (type != VHEATIR_BFLOAT16 || lanes < kTile) {
    for (int64_t i = 0; i < count; ++i, tiles += tiles_pitch) {
      store_tiles(tiles, 1, lanes, static_cast<char *>(target) + i * pitch * bytes_of(type), type, pitch);
    }
    return;
  }
  uint16_t *to = static_cast<uint16_t *>(target);
  for (int64_t i = 0; i < count; ++i, to += pitch, tiles += tiles_pitch) {
    repeat<kVectors>([&](auto v) INLINE_LAMBDA { put<true>(to, v * kWidth, load(tiles + v * kWidth)); });
  }
}

// Contiguous maps of a forward, which the backward reads beside a gradient.
struct Maps {
  const void *first;
  int32_t type;
  const char *at(int64_t element) const { return static_cast<const char *>(first) + element * bytes_of(type); }
  float *floats_at(int64_t element) const { return reinterpret_cast<float *>(const_cast<char *>(at(element))); }
};

// Where things lie in the memory of a call: tables for all threads first, then each thread's own.
struct Layout {
  Layout(const vheatir_separable_job &job, const Cut &cut, bool rows)
      : with_rows(rows), with_sums(job.gradient_height != nullptr) {
    const vheatir_plan &h = job.maps.along_height, &w = job.maps.along_width;
    spectra = 2 * most(lot_floats(h), rows ? lot_floats(w) : 0);
    line = most(cut.height, rows ? cut.width : 0) * kTile;
    const int64_t width = rows ? cut.width : 0;
    in_planes = rows && cut.in_planes;
    whole = cut.channels % kTile == 0;
    columns_out = cut.height * cut.plane_row * 4 <= kStrewnColumnBytes && job.maps.target_type == VHEATIR_FLOAT32;
    plane = in_planes ? cut.height * cut.plane_row : cut.block_tiles * cut.height * kTile;
    own_tables = in_planes ? (cut.height + width) * kTile : whole ? 0 : cut.block_tiles * cut.height * kTile;
    shared_tables = in_planes ? 0 : cut.channel_tiles * (width + (whole ? cut.height : 0)) * kTile;
    space = most(lot_of(h) * h.slots, rows ? lot_of(w) * w.slots : 0) * kTile;
    row_chunk = most(1, least(cut.height, kRowBytes / (most(1, width) * kTile * 4)));
    chunks = ratio_up(cut.height, row_chunk);
    // Of rows, a sum for each chunk and channel; of columns, one for each lane of a row.
    const int64_t row_sums = rows ? chunks * cut.channel_tiles : 0;
    sums = with_sums && !in_planes ? (row_sums + cut.row_tiles) * 2 * kTile : 0;
    shared = ratio_up(shared_tables + sums, 1024) * 1024;
    squares = cut.height + width;
    own = ratio_up(space + spectra + 2 * line + own_tables + plane + squares, 1024) * 1024;
  }
  static constexpr int64_t kRowBytes = 32 << 10;
  // Larger planes take their columns back: written one by one into the target they would crowd a few sets of the cache.
  static constexpr int64_t kStrewnColumnBytes = 320 << 10;
  bool with_rows, with_sums, in_planes, whole, columns_out;
  int64_t spectra, line, plane, own_tables, shared_tables, space, row_chunk, chunks, sums, squares, shared, own;
};

// One thread's work on a call.
class Worker {
 public:
  Worker(const vheatir_separable_job &job, const Cut &cut, const Layout &layout, float *memory, int thread)
      : job_(job), maps_(job.maps), cut_(cut), layout_(layout) {
    result_ = {job.forward_result, job.result_type};
    source_ = {job.forward_source, job.source_type};
    shared_ = memory;
    all_sums_ = reinterpret_cast<Sums *>(memory + layout.shared_tables);
    float *own = memory + layout.shared + thread * layout.own;
    space_ = own, own += layout.space;
    spectra_ = own, own += layout.spectra;
    staged_ = own, own += layout.line;
    beside_ = own, own += layout.line;
    tables_ = own, own += layout.own_tables;
    plane_ = own, own += layout.plane;
    squares_ = own;
    make_squares(cut.height, job.held, squares_);
    if (layout.with_rows) make_squares(cut.width, job.held, squares_ + cut.height);
  }

  void planes() {
    const int64_t count = cut_.channel_tiles * maps_.batch;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) {  // images of one tile follow each other: its tables stay
      plane(i / maps_.batch, i % maps_.batch, i + 1 < count ? i + 1 : -1);
    }
  }

  void passes() {
    for (int64_t image = 0; image < maps_.batch; ++image) {
      if (image == 0 || job_.k_image) make_shared_tables(image);
      if (layout_.with_rows) {
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < layout_.chunks; ++chunk) rows(image, chunk);
      }
#pragma omp for schedule(static)
      for (int64_t tile = 0; tile < cut_.row_tiles; tile += cut_.block_tiles) block(image, tile);
      if (layout_.with_sums) {
#pragma omp single
        add_up(image);
      }
    }
  }

 private:
  Axis along_width(const float *factors) const {
    return {maps_.along_width, squares_ + cut_.height, factors, space_, spectra_};
  }
  Axis along_height(const float *factors) const { return {maps_.along_height, squares_, factors, space_, spectra_}; }

  void make_width(int64_t image, int64_t start, float *factors) const {
    const float *k = job_.k_width + image * job_.k_image;
    make_factors(maps_.along_width, squares_ + cut_.height, k, cut_.channels, start, factors);
  }
  void make_height(int64_t image, int64_t start, float *factors) const {
    make_factors(maps_.along_height, squares_, job_.k_height + image * job_.k_image, cut_.channels, start, factors);
  }

  float *width_table(int64_t tile) const { return shared_ + tile * cut_.width * kTile; }
  float *height_table(int64_t tile) const {
    const int64_t before = layout_.with_rows ? cut_.channel_tiles * cut_.width : 0;
    return shared_ + (before + tile * cut_.height) * kTile;
  }

  void make_shared_tables(int64_t image) const {
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < cut_.channel_tiles; ++tile) {
      if (layout_.with_rows) make_width(image, tile * kTile, width_table(tile));
      if (layout_.whole) make_height(image, tile * kTile, height_table(tile));
    }
  }

  // `lines` rows of one tile of channels, into `to`: full tiles of a plane, or `lanes` channels of the middle.
  void conduct_rows(const Axis &along, int64_t image, int64_t h, int64_t lines, int64_t channel, Rows to, Sums *sums) {
    const int64_t lanes = least(kTile, cut_.channels - channel), at = image * cut_.image + h * cut_.row + channel;
    const bool direct = maps_.source_type == VHEATIR_FLOAT32 && lanes == kTile;
    if (direct && (!sums || result_.type == VHEATIR_FLOAT32)) {
      float *first = reinterpret_cast<float *>(const_cast<char *>(source_at(maps_, image, h, channel)));
      const Rows from = {first, maps_.source_pixel, maps_.source_row};
      if (!sums) return conduct_lines(along, from, to, lines);
      const Rows other = {result_.floats_at(at), cut_.channels, cut_.row};
      return conduct_lines_with_sums(along, from, to, lines, other, false, *sums);
    }
    const Rows staged = {staged_, kTile, 0}, beside = {beside_, kTile, 0};
    for (int64_t line = 0; line < lines; ++line, to.first += to.line) {
      read_tiles(source_at(maps_, image, h + line, channel), maps_.source_type, maps_.source_pixel, cut_.width, lanes,
                 staged_);
      const Rows target = lanes == kTile ? to : staged;
      if (sums) {
        read_tiles(result_.at(at + line * cut_.row), result_.type, cut_.channels, cut_.width, lanes, beside_);
        conduct_lines_with_sums(along, staged, target, 1, beside, false, *sums);
      } else {
        conduct_lines(along, staged, target, 1);
      }
      if (lanes < kTile) store_tiles(staged_, cut_.width, lanes, to.first, VHEATIR_FLOAT32, to.row);
    }
  }

  void rows(int64_t image, int64_t chunk) {
    const int64_t h = chunk * layout_.row_chunk, lines = least(layout_.row_chunk, cut_.height - h);
    for (int64_t tile = 0; tile < cut_.channel_tiles; ++tile) {
      Sums *sums = layout_.with_sums ? all_sums_ + chunk * cut_.channel_tiles + tile : nullptr;
      if (sums) *sums = {};
      const Rows to = {middle(image) + h * cut_.row + tile * kTile, cut_.channels, cut_.row};
      for (int64_t next = h + lines; next < least(h + 2 * lines, cut_.height); ++next) {
        foresee<false>(source_at(maps_, image, next, tile * kTile), maps_.source_pixel * bytes_of(maps_.source_type),
                       cut_.width);
        foresee<true>(to.first + (next - h) * to.line, to.row * 4, cut_.width);
      }
      conduct_rows(along_width(width_table(tile)), image, h, lines, tile * kTile, to, sums);
    }
  }

  float *middle(int64_t image) const {
    return maps_.workspace ? maps_.workspace : static_cast<float *>(maps_.target) + image * cut_.image;
  }

  // Neighboring columns of an (H, W * C) image.
  void block(int64_t image, int64_t tile) {
    const int64_t tiles = least(cut_.block_tiles, cut_.row_tiles - tile), size = cut_.height * kTile;
    const int32_t type = layout_.with_rows ? int32_t(VHEATIR_FLOAT32) : maps_.source_type;
    const char *from = layout_.with_rows ? reinterpret_cast<const char *>(middle(image))
                                         : source_at(maps_, image, 0, 0);
    const int64_t pitch = layout_.with_rows ? cut_.row : maps_.source_row;
    char *to = target_at(maps_, cut_, image, 0, 0);
    // Row by row: one after the other, the columns of a width that is a power of two would crowd a few sets of the cache.
    for (int64_t h = 0; h < cut_.height; ++h) {
      const int64_t ahead = least(h + kRowsAhead, cut_.height - 1) * pitch + tile * kTile;
      foresee<false>(from + ahead * bytes_of(type), 64, ratio_up(tiles * kTile * bytes_of(type), 64));
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t start = (tile + i) * kTile;
        read_tiles(from + (h * pitch + start) * bytes_of(type), type, 0, 1, least(kTile, cut_.row - start),
                   plane_ + i * size + h * kTile);
      }
    }
    for (int64_t i = 0; i < tiles; ++i) conduct_column(image, (tile + i) * kTile, plane_ + i * size);
    for (int64_t h = 0; h < cut_.height; ++h) {
      const int64_t ahead = least(h + kRowsAhead, cut_.height - 1) * cut_.row + tile * kTile;
      foresee<true>(to + ahead * bytes_of(maps_.target_type), 64,
                    ratio_up(tiles * kTile * bytes_of(maps_.target_type), 64));
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t start = (tile + i) * kTile;
        write_tiles(plane_ + i * size + h * kTile, 0, 1, least(kTile, cut_.row - start),
                    to + (h * cut_.row + start) * bytes_of(maps_.target_type), maps_.target_type, 0);
      }
    }
  }

  // One column of whole tiles, in place.
  void conduct_column(int64_t image, int64_t start, float *column) {
    const float *factors = height_table(start % cut_.channels / kTile);
    if (!layout_.whole) {
      make_height(image, start, tables_);
      factors = tables_;
    }
    const Axis along = along_height(factors);
    const Rows lines = {column, kTile, 0};
    if (!layout_.with_sums) return conduct_lines(along, lines, lines, 1);
    const int64_t lanes = least(kTile, cut_.row - start);
    read_tiles(source_.at(image * cut_.image + start), source_.type, cut_.row, cut_.height, lanes, beside_);
    Sums &sums = all_sums_[row_sums() + start / kTile];
    sums = {};
    conduct_lines_with_sums(along, lines, lines, 1, {beside_, kTile, 0}, true, sums);
  }

  int64_t row_sums() const { return layout_.with_rows ? layout_.chunks * cut_.channel_tiles : 0; }

  // In one order, whatever the threads.
  void add_up(int64_t image) const {
    for (int64_t channel = 0; channel < cut_.channels; ++channel) {
      double total = 0;
      for (int64_t chunk = 0; layout_.with_rows && chunk < layout_.chunks; ++chunk) {
        total += all_sums_[chunk * cut_.channel_tiles + channel / kTile].lane[channel % kTile];
      }
      if (layout_.with_rows) job_.gradient_width[image * cut_.channels + channel] = float(total);
      total = 0;
      for (int64_t at = channel; at < cut_.row; at += cut_.channels) {
        total += all_sums_[row_sums() + at / kTile].lane[at % kTile];
      }
      job_.gradient_height[image * cut_.channels + channel] = float(total);
    }
  }

  // All of one tile of channels of one image, in work space. Memory is asked for bit by bit between the transforms: the
  // processor can wait for a few lines only at a time.
  void plane(int64_t tile, int64_t image, int64_t next) {
    float *along_w = tables_, *along_h = tables_ + cut_.width * kTile;
    if (tile != made_for_ || job_.k_image) {
      make_width(image, tile * kTile, along_w);
      make_height(image, tile * kTile, along_h);
      made_for_ = tile;
    }
    Sums sums[2] = {};
    for (int64_t chunk = 0; chunk < layout_.chunks; ++chunk) {
      const int64_t h = chunk * layout_.row_chunk, lines = least(layout_.row_chunk, cut_.height - h);
      if (cut_.small_planes) foresee_target(tile, image, {0, 1, h, lines});
      conduct_rows(along_width(along_w), image, h, lines, tile * kTile,
                   {plane_ + h * cut_.plane_row, kTile, cut_.plane_row}, layout_.with_sums ? sums : nullptr);
    }
    const int64_t lots = ratio_up(cut_.width, kColumns);
    for (int64_t lot = 0; lot < lots; ++lot) {
      if (cut_.small_planes && next >= 0)
        foresee_source(next / maps_.batch, next % maps_.batch, {lot, lots, 0, cut_.height});
      plane_columns(tile, image, lot * kColumns, least(kColumns, cut_.width - lot * kColumns), along_h, sums[1]);
    }
    if (!layout_.columns_out) {
      for (int64_t h = 0; h < cut_.height; ++h) {
        write_tiles(plane_ + h * cut_.plane_row, kTile, cut_.width, kTile,
                    target_at(maps_, cut_, image, h, tile * kTile), maps_.target_type, cut_.channels);
      }
    }
    for (int lane = 0; layout_.with_sums && lane < kTile; ++lane) {
      job_.gradient_width[image * cut_.channels + tile * kTile + lane] = float(sums[0].lane[lane]);
      job_.gradient_height[image * cut_.channels + tile * kTile + lane] = float(sums[1].lane[lane]);
    }
  }

  void plane_columns(int64_t tile, int64_t image, int64_t w, int64_t count, const float *factors, Sums &sums) {
    const Axis along = along_height(factors);
    const Rows from = {plane_ + w * kTile, cut_.plane_row, kTile};
    Rows to = from;
    const int64_t channel = tile * kTile + w * cut_.channels;
    if (layout_.columns_out) {
      to = {reinterpret_cast<float *>(target_at(maps_, cut_, image, 0, channel)), cut_.row, cut_.channels};
    }
    if (!layout_.with_sums) return conduct_lines(along, from, to, count);
    const int64_t at = image * cut_.image + channel;
    if (source_.type == VHEATIR_FLOAT32) {
      const Rows other = {source_.floats_at(at), cut_.row, cut_.channels};
      return conduct_lines_with_sums(along, from, to, count, other, true, sums);
    }
    for (int64_t i = 0; i < count; ++i) {
      read_tiles(source_.at(at + i * cut_.channels), source_.type, cut_.row, cut_.height, kTile, beside_);
      conduct_lines_with_sums(along, {from.first + i * from.line, from.row, 0}, {to.first + i * to.line, to.row, 0}, 1,
                              {beside_, kTile, 0}, true, sums);
    }
  }

  INLINE void foresee_source(int64_t tile, int64_t image, Part part) const {
    const int64_t size = bytes_of(maps_.source_type);
    foresee_part<false>(source_at(maps_, image, part.first_line, tile * kTile), maps_.source_row * size,
                        maps_.source_pixel * size, kTile * size, cut_.width, part);
  }

  INLINE void foresee_target(int64_t tile, int64_t image, Part part) const {
    const int64_t size = bytes_of(maps_.target_type);
    foresee_part<true>(target_at(maps_, cut_, image, part.first_line, tile * kTile), cut_.row * size,
                       cut_.channels * size, kTile * size, cut_.width, part);
  }

  static constexpr int64_t kColumns = 8;  // of a plane, between which memory is asked for

  const vheatir_separable_job &job_;
  const vheatir_job &maps_;
  const Cut &cut_;
  const Layout &layout_;
  Maps result_, source_;
  int64_t made_for_ = -1;
  Sums *all_sums_;
  float *shared_, *space_, *spectra_, *staged_, *beside_, *tables_, *plane_, *squares_;
};

}  // namespace

extern "C" int VHEATIR_OF_VERSION(vheatir_separable)(const vheatir_separable_job *job) {
  const vheatir_job &maps = job->maps;
  const Cut cut(maps);
  const Layout layout(*job, cut, job->k_width != nullptr);
  const int threads = maps.threads;
  ask_for_large_pages(maps.target, maps.batch * cut.image * bytes_of(maps.target_type));
  ask_for_large_pages(maps.workspace, cut.image * 4);
  float *memory = kept.at_least(size_t(layout.shared + layout.own * threads));
  if (!memory) return -1;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const SubnormalsAreZero on_this_thread;
#ifdef _OPENMP
    Worker worker(*job, cut, layout, memory, omp_get_thread_num());
#else
    Worker worker(*job, cut, layout, memory, 0);
#endif
    if (layout.in_planes) {
      worker.planes();
    } else {
      worker.passes();
    }
  }
  return 0;
}
