// Runs the threads of a block on one CPU thread: each is a fiber (ucontext) that runs until it waits for others.
#pragma once

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace fibers {

// SSAMBA_SKEWED changes the order, so that a kernel that relies on luck fails. Odd: the last warp runs first. Not 0: a
// warp runs as far as block barriers let it before the next warp does. 3 and 4: cp.async copies as late as it may.
static const int skewed = getenv("SSAMBA_SKEWED") ? atoi(getenv("SSAMBA_SKEWED")) : 0;

constexpr int kMaxThreads = 1024, kStackBytes = 65536;
enum State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Dim { int x, y, z; };
static Dim thread_index, block_index, grid_size;

static ucontext_t scheduler, contexts[kMaxThreads];
static std::vector<char *> stacks;
static State states[kMaxThreads];
static int threads, current;  // of the block; the one that runs
static void (*body)();

static void wait_in(State state) {
  states[current] = state;
  swapcontext(&contexts[current], &scheduler);
}

static void run_thread() {
  body();
  wait_in(kDone);
}

// Whether every thread from `first` to `last` - 1 is in this state.
static bool all_in(State state, int first, int last) {
  for (int i = first; i < last; ++i)
    if (states[i] != state) return false;
  return true;
}

static void resume(int first, int last) {
  for (int i = first; i < last; ++i) states[i] = kReady;
}

// Runs what is ready in one warp, and releases its barriers; whether anything happened.
static bool run_warp(int first, int last) {
  bool any = false, again = true;
  while (again) {
    again = false;
    for (int i = first; i < last; ++i)
      if (states[i] == kReady) {
        current = thread_index.x = i;
        swapcontext(&scheduler, &contexts[i]);
        any = true;
      }
    if (all_in(kAtWarpBarrier, first, last)) {
      resume(first, last);
      any = true;
      again = skewed != 0;
    }
  }
  return any;
}

static void run_block() {
  for (int i = 0; i < threads; ++i) {
    getcontext(&contexts[i]);
    contexts[i].uc_stack.ss_sp = stacks[i];
    contexts[i].uc_stack.ss_size = kStackBytes;
    contexts[i].uc_link = &scheduler;
    makecontext(&contexts[i], run_thread, 0);
    states[i] = kReady;
  }
  while (true) {
    bool any = false;
    for (int n = 0; n < threads; n += 32) {
      int first = skewed & 1 ? (threads - 1) / 32 * 32 - n : n;
      any |= run_warp(first, first + 32 < threads ? first + 32 : threads);
    }
    if (all_in(kDone, 0, threads)) return;
    if (all_in(kAtBlockBarrier, 0, threads)) {
      resume(0, threads);
      any = true;
    }
    if (!any) {
      fprintf(stderr, "deadlock: threads wait at barriers that the others never reach\n");
      abort();
    }
  }
}

// One block after the other.
static void launch(Dim grid, int threads_of_block, void (*kernel)()) {
  threads = threads_of_block;
  body = kernel;
  while ((int)stacks.size() < threads) stacks.push_back((char *)malloc(kStackBytes));
  grid_size = grid;
  for (int z = 0; z < grid.z; ++z)
    for (int y = 0; y < grid.y; ++y)
      for (int x = 0; x < grid.x; ++x) {
        block_index = {x, y, z};
        run_block();
      }
}

}  // namespace fibers
