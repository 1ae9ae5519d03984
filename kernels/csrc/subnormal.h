// Subnormal numbers, those below the smallest normal float32 (1.2e-38), are zero while a thread computes: processors
// work on them many times slower than on others, and decays of strong conduction are full of them.
#pragma once
#include <stdint.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

// As operands and as results, on this thread, until the object is gone; then all is as it was before. Its own functions
// are barriers for the compiler, which does not know that arithmetic depends on them.
class SubnormalsAreZero {
 public:
  SubnormalsAreZero() : before_(state()) { set(before_ | kFlush); }
  ~SubnormalsAreZero() { set(before_); }
  SubnormalsAreZero(const SubnormalsAreZero &) = delete;
  SubnormalsAreZero &operator=(const SubnormalsAreZero &) = delete;

 private:
#if defined(__SSE2__)
  typedef unsigned int State;
  static constexpr State kFlush = 0x8040;  // MXCSR: results to zero, operands are zero
  static State state() { return _mm_getcsr(); }
  static void set(State state) {
    asm volatile("" ::: "memory");
    _mm_setcsr(state);
    asm volatile("" ::: "memory");
  }
#elif defined(__aarch64__)
  typedef uint64_t State;
  static constexpr State kFlush = 1 << 24;  // FPCR.FZ: both
  static State state() {
    State state;
    asm volatile("mrs %0, fpcr" : "=r"(state));
    return state;
  }
  static void set(State state) { asm volatile("msr fpcr, %0" ::"r"(state) : "memory"); }
#else  // no such flags are known: subnormal numbers are computed with
  typedef int State;
  static constexpr State kFlush = 0;
  static State state() { return 0; }
  static void set(State) {}
#endif

  const State before_;
};

}  // namespace
