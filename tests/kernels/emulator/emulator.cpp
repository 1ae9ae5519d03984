// Runs the CUDA kernels block by block; each thread of a block is a fiber.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cuda_kernels.cu"

namespace {
constexpr int MOST_THREADS = 256, STACK = 128 << 10, GUARD = 64;

enum State { READY, AT_BLOCK_BARRIER, AT_WARP, FINISHED };
struct Fiber {
  ucontext_t context;  // to begin with; then jumps, which make no system calls
  jmp_buf place;
  State state;
  bool begun;
};
struct Warp {
  int arrived;
  uint32_t given[2][32][8];  // two, in turn: a lane may give again before the others have read
  const void *rows[2][32];
  int turn[32];
};

Fiber fibers[MOST_THREADS];
Warp warps[MOST_THREADS / 32];
std::vector<char> stacks(MOST_THREADS *(size_t)STACK);
ucontext_t beginning;
jmp_buf scheduler;
int current, thread_number, at_barrier;
long long block_number;
char *memory;
void (*body)(const void *);
const void *body_job;

void leave(State state) {
  fibers[current].state = state;
  if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
}

__attribute__((noinline)) void resume(Fiber &fiber) {
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  swapcontext(&beginning, &fiber.context);
}

void start() {
  body(body_job);
  leave(FINISHED);
}

void arrive_at_warp() {
  Warp &warp = warps[current / 32];
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    for (int i = current / 32 * 32; i < current / 32 * 32 + 32; i++) {
      if (i != current) fibers[i].state = READY;
    }
  } else {
    leave(AT_WARP);
  }
}

// Lets fibers run in an order that depends on the seed; false where they wait for each other for ever.
bool run_block(const unsigned first_seed) {
  unsigned seed = first_seed;
  for (int i = 0; i < thread_number; i++) {
    Fiber &fiber = fibers[i];
    fiber.state = READY;
    fiber.begun = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = &stacks[i * (size_t)STACK];
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
    warps[i / 32].arrived = warps[i / 32].turn[i % 32] = 0;
  }
  at_barrier = 0;
  for (;;) {
    int ran = 0, finished = 0;
    seed = seed * 1664525u + 1013904223u;
    const int shift = seed >> 16, stride = seed & 1 ? 1 : thread_number - 1;
    for (int i = 0; i < thread_number; i++) {
      current = (shift + i * stride) % thread_number;
      if (fibers[current].state == READY) resume(fibers[current]), ran++;
    }
    for (int i = 0; i < thread_number; i++) finished += fibers[i].state == FINISHED;
    if (finished == thread_number) return true;
    if (ran) continue;
    if (at_barrier + finished < thread_number || finished) return false;
    at_barrier = 0;
    for (int i = 0; i < thread_number; i++) fibers[i].state = READY;
  }
}

template <class Job, void (*KERNEL_BODY)(const Job)>
void call(const void *job) {
  KERNEL_BODY(*static_cast<const Job *>(job));
}

struct Entry {
  const char *name;
  void (*body)(const void *);
};
#define PLANE_ENTRY(NAME) {"vheatir_plane_" #NAME, call<vheatir_plane_job, vheatir_plane_##NAME>}
#define LINES_ENTRY(NAME) {"vheatir_lines_" #NAME, call<vheatir_lines_job, vheatir_lines_##NAME>}
const Entry ENTRIES[] = {
    PLANE_ENTRY(32_8),
    PLANE_ENTRY(32_16),
    PLANE_ENTRY(64_8),
    PLANE_ENTRY(64_16),
    LINES_ENTRY(read_64),
    LINES_ENTRY(read_16),
    LINES_ENTRY(halves_64),
    LINES_ENTRY(halves_16),
    LINES_ENTRY(write_64),
    LINES_ENTRY(write_16),
    LINES_ENTRY(floats_32),
    LINES_ENTRY(floats_4),
    {"vheatir_sum_products", call<vheatir_sum_job, vheatir_sum_products>},
};
}  // namespace

namespace emulator {
int thread() { return current; }
int threads() { return thread_number; }
long long block() { return block_number; }
void *shared_memory() { return memory; }

void barrier() {
  at_barrier++;
  leave(AT_BLOCK_BARRIER);
}

void warp_barrier() { arrive_at_warp(); }

const uint32_t (*gather(const uint32_t (&mine)[8]))[8] {
  Warp &warp = warps[current / 32];
  const int turn = warp.turn[current % 32]++ % 2;
  std::copy(mine, mine + 8, warp.given[turn][current % 32]);
  arrive_at_warp();
  return warp.given[turn];
}

const void *const *gather_rows(const void *mine) {
  Warp &warp = warps[current / 32];
  const int turn = warp.turn[current % 32]++ % 2;
  warp.rows[turn][current % 32] = mine;
  arrive_at_warp();
  return warp.rows[turn];
}
}  // namespace emulator

// 0; 1: no such kernel; 2: a barrier that not all threads reach; 3: shared memory was written beyond its end.
extern "C" int emulate(const char *name, long long blocks, int threads, long long shared_bytes, const void *job,
                       unsigned seed) {
  const Entry *entry = std::find_if(std::begin(ENTRIES), std::end(ENTRIES),
                                    [&](const Entry &e) { return name == std::string(e.name); });
  if (entry == std::end(ENTRIES)) return 1;
  body = entry->body, body_job = job, thread_number = threads;
  std::vector<char> shared(shared_bytes + 16 + GUARD);
  memory = shared.data() + (16 - (uintptr_t)shared.data() % 16) % 16;
  for (block_number = 0; block_number < blocks; block_number++) {
    std::fill(shared.begin(), shared.end(), (char)0xff);  // NaN in every type
    if (!run_block(seed)) return 2;
    for (int i = 0; i < GUARD - 16; i++) {
      if (memory[shared_bytes + i] != (char)0xff) return 3;
    }
  }
  return 0;
}
