// Chooses the version of the kernel for this processor. The build defines VHEATIR_X86 where it made all three.
#ifdef VHEATIR_X86
#include <cpuid.h>
#endif

#include "api.h"

#define EXPORT __attribute__((visibility("default")))

extern "C" {

#define DECLARE(version)                                                   \
  int vheatir_conduct_##version(const vheatir_job *);                      \
  int vheatir_separable_##version(const vheatir_separable_job *);          \
  void vheatir_norm_##version(const vheatir_norm_job *);                   \
  void vheatir_norm_gradient_##version(const vheatir_norm_gradient_job *); \
  void vheatir_gate_##version(const vheatir_gate_job *);                   \
  int vheatir_gate_gradient_##version(const vheatir_gate_gradient_job *);  \
  void vheatir_product_##version(const vheatir_product_job *);             \
  void vheatir_rescale_##version(const vheatir_rescale_job *);             \
  void vheatir_rescale_gradient_##version(const vheatir_rescale_gradient_job *);

DECLARE(portable)

#ifdef VHEATIR_X86
DECLARE(avx2)
DECLARE(avx512)

// By the processor's own answer: the compilers' function takes this name only from GCC 11 and Clang 18 on.
static bool has_f16c() {
  unsigned int a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static int detect() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
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

#ifdef VHEATIR_X86
#define RUN(name, job) \
  (chosen() == VHEATIR_AVX512 ? name##_avx512(job) : chosen() == VHEATIR_AVX2 ? name##_avx2(job) : name##_portable(job))
#else
#define RUN(name, job) name##_portable(job)
#endif

EXPORT int vheatir_conduct(const vheatir_job *job) { return RUN(vheatir_conduct, job); }
EXPORT int vheatir_separable(const vheatir_separable_job *job) { return RUN(vheatir_separable, job); }
EXPORT void vheatir_norm(const vheatir_norm_job *job) { RUN(vheatir_norm, job); }
EXPORT void vheatir_rescale(const vheatir_rescale_job *job) { RUN(vheatir_rescale, job); }
EXPORT void vheatir_gate(const vheatir_gate_job *job) { RUN(vheatir_gate, job); }
EXPORT int vheatir_gate_gradient(const vheatir_gate_gradient_job *job) { return RUN(vheatir_gate_gradient, job); }
EXPORT void vheatir_product(const vheatir_product_job *job) { RUN(vheatir_product, job); }
EXPORT void vheatir_rescale_gradient(const vheatir_rescale_gradient_job *job) { RUN(vheatir_rescale_gradient, job); }
EXPORT void vheatir_norm_gradient(const vheatir_norm_gradient_job *job) { RUN(vheatir_norm_gradient, job); }
}
