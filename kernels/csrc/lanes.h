// A tile is 16 neighboring floats, one cache line: 16 channels, or 16 lines of pixels and channels. Every transform is
// done on each lane alike, so that no lane ever meets another one. This file is compiled once for each instruction set;
// everything is in an unnamed namespace so that the linker cannot mix the versions.
#pragma once
#include <stdint.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

#include "api.h"

// The build gives each version a name, which its entries end in.
#define VHEATIR_JOIN(name, version) name##_##version
#define VHEATIR_JOIN_VALUES(name, version) VHEATIR_JOIN(name, version)
#define VHEATIR_OF_VERSION(name) VHEATIR_JOIN_VALUES(name, VHEATIR_VERSION)

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace {

constexpr int kTile = 16;
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kVectors = kTile / kWidth;

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef float LooseVec __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));  // at any address

INLINE Vec load(const float *from) { return *reinterpret_cast<const LooseVec *>(from); }
INLINE void store(float *to, Vec value) { *reinterpret_cast<LooseVec *>(to) = value; }

template <int i>
struct Index {
  constexpr operator int() const { return i; }
};

// body(0), body(1), ..., body(n - 1) with constants: arrays that are indexed so stay in registers.
template <int n, int i = 0, class Body>
INLINE void repeat(const Body &body) {
  if constexpr (i < n) {
    body(Index<i>());
    repeat<n, i + 1>(body);
  }
}

// Rows of tiles somewhere in memory, for several lines.
struct Rows {
  float *first;
  int64_t row, line;  // floats from one row, one line to the next
};

INLINE float widened(uint16_t bits, int32_t type) {
  uint32_t wide;
  float value;
  if (type == VHEATIR_BFLOAT16) {
    wide = uint32_t(bits) << 16;
    memcpy(&value, &wide, 4);
    return value;
  }
#ifdef __F16C__
  return _cvtsh_ss(bits);
#else
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits & 0x7c00;
  value = float(bits & 0x3ff) * 0x1p-24f;  // a subnormal number, which is a normal float32
  memcpy(&wide, &value, 4);
  if (exponent) wide = (uint32_t(bits & 0x7fff) << 13) + (112 << 23);  // moved into place, the bias corrected
  if (exponent == 0x7c00) wide |= 0x7f800000;                          // infinity and NaN
  wide |= sign;
  memcpy(&value, &wide, 4);
  return value;
#endif
}

// Rounded once, to nearest, ties to even.
INLINE uint16_t narrowed(float value, int32_t type) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (type == VHEATIR_BFLOAT16) {
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);  // NaN stays NaN
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
#ifdef __F16C__
  return uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT));
#else
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65536 or more
  if (bits < 0x38800000) {                                 // subnormal: the sum's last bit is 2^-24
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + (bits >> 13 & 1);
  return uint16_t(sign | (bits - 0x38000000) >> 13);
#endif
}

INLINE int64_t bytes_of(int32_t type) { return type == VHEATIR_FLOAT32 ? 4 : 2; }

INLINE void copy_tile(const float *from, float *to) {
  repeat<kVectors>([&](auto v) INLINE_LAMBDA { store(to + v * kWidth, load(from + v * kWidth)); });
}

// `count` pixels of `lanes` values, `pitch` elements apart, into full tiles; missing lanes become zero.
[[maybe_unused]] void load_tiles(const void *source, int32_t type, int64_t pitch, int64_t count, int64_t lanes,
                                 float *tiles) {
  for (int64_t i = 0; i < count; ++i, tiles += kTile) {
    if (type == VHEATIR_FLOAT32 && lanes == kTile) {
      copy_tile(static_cast<const float *>(source) + i * pitch, tiles);
    } else if (type == VHEATIR_FLOAT32) {
      memcpy(tiles, static_cast<const float *>(source) + i * pitch, size_t(lanes) * 4);
    } else {
      const uint16_t *narrow = static_cast<const uint16_t *>(source) + i * pitch;
      for (int64_t lane = 0; lane < lanes; ++lane) tiles[lane] = widened(narrow[lane], type);
    }
    for (int64_t lane = lanes; lane < kTile; ++lane) tiles[lane] = 0;
  }
}

[[maybe_unused]] void store_tiles(const float *tiles, int64_t count, int64_t lanes, void *target, int32_t type,
                                  int64_t pitch) {
  for (int64_t i = 0; i < count; ++i, tiles += kTile) {
    if (type == VHEATIR_FLOAT32 && lanes == kTile) {
      copy_tile(tiles, static_cast<float *>(target) + i * pitch);
    } else if (type == VHEATIR_FLOAT32) {
      memcpy(static_cast<float *>(target) + i * pitch, tiles, size_t(lanes) * 4);
    } else {
      uint16_t *narrow = static_cast<uint16_t *>(target) + i * pitch;
      for (int64_t lane = 0; lane < lanes; ++lane) narrow[lane] = narrowed(tiles[lane], type);
    }
  }
}

}  // namespace
