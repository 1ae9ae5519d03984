// What the passes over channels-last maps share: addresses, memory asked for ahead, and memory kept between calls.
#pragma once
#include <stdlib.h>
#include <sys/mman.h>

#include "frequency_weights.h"

namespace {

constexpr int64_t kRowsAhead = 4;  // rows of a block that are asked for before they are copied

[[maybe_unused]] const char *source_at(const vheatir_job &job, int64_t image, int64_t h, int64_t channel) {
  const int64_t at = image * job.source_image + h * job.source_row + channel;
  return static_cast<const char *>(job.source) + at * bytes_of(job.source_type);
}

[[maybe_unused]] char *target_at(const vheatir_job &job, const Cut &cut, int64_t image, int64_t h, int64_t channel) {
  const int64_t at = image * cut.image + h * cut.row + channel;
  return static_cast<char *>(job.target) + at * bytes_of(job.target_type);
}

// Neighboring tiles of channels of one image.
struct Plane {
  int64_t image, first, tiles;
};

// One of some equal parts of some lines of a plane. Asked for so, memory is run through in its own order, while one tile
// after another would come back to every page for each of them.
struct Part {
  int64_t number, of, first_line, lines;
};

template <bool to_write>
INLINE void foresee_part(const char *rows, int64_t row_bytes, int64_t pixel_bytes, int64_t run_bytes, int64_t width,
                         Part part) {
  const int64_t pixels = part.lines * width;
  const int64_t begin = part.number * pixels / part.of, end = (part.number + 1) * pixels / part.of;
  const char *row = rows + begin / width * row_bytes;
  for (int64_t i = begin, w = begin % width; i < end; ++i) {
    for (int64_t byte = 0; byte < run_bytes; byte += 64) {
      __builtin_prefetch(row + w * pixel_bytes + byte, to_write, 2);
    }
    if (++w == width) w = 0, row += row_bytes;
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

constexpr int64_t kLargeBytes = 16 << 20;  // smaller results mostly get memory that has been used before

// Large results get large pages where the system grants them: fewer page faults, and columns need fewer translations.
[[maybe_unused]] void ask_for_large_pages(void *memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kLargePage = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes)) / kLargePage * kLargePage;
  if (memory == nullptr || bytes < kLargeBytes) return;
  madvise(reinterpret_cast<void *>(first), end - first, MADV_HUGEPAGE);  // a wish: it may fail
#endif
}

}  // namespace
