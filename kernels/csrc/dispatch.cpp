// Chooses the version of the kernel for this processor. The build defines VHEATIR_X86 where it made all three.
#include "api.h"

#define EXPORT __attribute__((visibility("default")))

extern "C" {

int vheatir_conduct_portable(const vheatir_job *job);

#ifdef VHEATIR_X86
int vheatir_conduct_avx2(const vheatir_job *job);
int vheatir_conduct_avx512(const vheatir_job *job);

static int level() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c")) {
    return 0;
  }
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
             ? 2
             : 1;
}
#else
static int level() { return 0; }
#endif

EXPORT int vheatir_abi(void) { return VHEATIR_ABI; }

EXPORT const char *vheatir_instructions(void) {
  static const char *const names[] = {"portable", "avx2", "avx512"};
  return names[level()];
}

EXPORT int vheatir_conduct(const vheatir_job *job) {
#ifdef VHEATIR_X86
  static const int chosen = level();
  if (chosen == 2) return vheatir_conduct_avx512(job);
  if (chosen == 1) return vheatir_conduct_avx2(job);
#endif
  return vheatir_conduct_portable(job);
}
}
