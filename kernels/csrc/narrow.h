// Values of float32 or bfloat16 in memory, float32 in registers.
#pragma once
#include "lanes.h"

namespace {

typedef uint32_t Bits __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Narrow __attribute__((vector_size(kWidth * 2)));
typedef uint16_t LooseNarrow __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));

template <bool narrow>
INLINE Vec get(const void *from, int64_t at) {
  if constexpr (narrow) {
    const Narrow bits = *reinterpret_cast<const LooseNarrow *>(static_cast<const uint16_t *>(from) + at);
    return reinterpret_cast<Vec>(__builtin_convertvector(bits, Bits) << 16);
  } else {
    return load(static_cast<const float *>(from) + at);
  }
}

// To bfloat16 rounded once, to nearest, ties to even; NaN stays NaN.
template <bool narrow>
INLINE void put(void *to, int64_t at, Vec value) {
  if constexpr (narrow) {
    const Bits bits = reinterpret_cast<Bits>(value);
    const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
    const Bits chosen = (bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded;
    *reinterpret_cast<LooseNarrow *>(static_cast<uint16_t *>(to) + at) = __builtin_convertvector(chosen, Narrow);
  } else {
    store(static_cast<float *>(to) + at, value);
  }
}

template <bool narrow>
INLINE float get_one(const void *from, int64_t at) {
  if constexpr (narrow) return widened(static_cast<const uint16_t *>(from)[at], VHEATIR_BFLOAT16);
  return static_cast<const float *>(from)[at];
}

template <bool narrow>
INLINE void put_one(void *to, int64_t at, float value) {
  if constexpr (narrow) {
    static_cast<uint16_t *>(to)[at] = narrowed(value, VHEATIR_BFLOAT16);
  } else {
    static_cast<float *>(to)[at] = value;
  }
}

INLINE float sum_of(Vec v) {
  float total = 0;
  for (int lane = 0; lane < kWidth; ++lane) total += v[lane];
  return total;
}

// `lanes` values and zeros.
template <bool narrow>
INLINE Vec get_lanes(const void *from, int64_t at, int64_t lanes) {
  if (lanes >= kWidth) return get<narrow>(from, at);
  float padded[kWidth] = {};
  for (int64_t lane = 0; lane < lanes; ++lane) padded[lane] = get_one<narrow>(from, at + lane);
  return load(padded);
}

template <bool narrow>
INLINE void put_lanes(void *to, int64_t at, Vec value, int64_t lanes) {
  if (lanes >= kWidth) return put<narrow>(to, at, value);
  for (int64_t lane = 0; lane < lanes; ++lane) put_one<narrow>(to, at + lane, value[lane]);
}

// body(channel, lanes) for the vectors of a row; only the last one can have fewer lanes.
template <class Body>
INLINE void for_vectors(int64_t channels, const Body &body) {
  int64_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) body(c, int64_t(kWidth));
  if (c < channels) body(c, channels - c);
}

}  // namespace
