// Chooses the version of the kernel for this processor. The build defines VHEATIR_X86 where it made all three.
#include "api.h"

#define EXPORT __attribute__((visibility("default")))

extern "C" {

int vheatir_conduct_portable(const vheatir_job *job);

#ifdef VHEATIR_X86
int vheatir_conduct_avx2(const vheatir_job *job);
int vheatir_conduct_avx512(const vheatir_job *job);

static int detect() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return !avx2 ? VHEATIR_PORTABLE : !avx512 ? VHEATIR_AVX2 : VHEATIR_AVX512;
}
#else
static int detect() { return VHEATIR_PORTABLE; }
#endif

static int limit = VHEATIR_AVX512;

static int chosen() {
  static const int detected = detect();
  return detected < limit ? detected : limit;
}

EXPORT int vheatir_abi(void) { return VHEATIR_ABI; }

EXPORT int vheatir_instructions(void) { return chosen(); }

EXPORT void vheatir_limit_instructions(int most) { limit = most; }

EXPORT int vheatir_conduct(const vheatir_job *job) {
#ifdef VHEATIR_X86
  if (chosen() == VHEATIR_AVX512) return vheatir_conduct_avx512(job);
  if (chosen() == VHEATIR_AVX2) return vheatir_conduct_avx2(job);
#endif
  return vheatir_conduct_portable(job);
}
}
