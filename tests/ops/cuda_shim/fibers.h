// Runs the threads of a block on one CPU thread: each is a fiber (ucontext) that runs until it waits for others. The
// blocks of a cluster run at once.
#pragma once

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace fibers {

// SSAMBA_SKEWED changes the order, so that a kernel that relies on luck fails. Odd: the last warp runs first. Not 0: a
// warp runs as far as block barriers let it before the next warp does. 3 and 4: asynchronous copies come as late as
// they may.
static int skewed = 0;  // as it is when a kernel is launched

constexpr int kMaxThreads = 1024, kStackBytes = 65536;
enum State { kReady, kAtBlockBarrier, kAtWarpBarrier, kAtClusterBarrier, kDone };

struct Dim { int x, y, z; };
static Dim thread_index, block_index, grid;

static ucontext_t scheduler, contexts[kMaxThreads];
static std::vector<char *> stacks;
static State states[kMaxThreads];
static int blocks = 1, threads, current;  // of a cluster; of a block; the one that runs, of the cluster
static int first_block;                   // x of the cluster's first block
static long idle;                         // polls since anything else happened
static void (*body)();
static void (*at_start)();  // of a cluster, if not null: what a multiprocessor forgets

static void wait_in(State state) {
  states[current] = state;
  idle = 0;
  swapcontext(&contexts[current], &scheduler);
}

static void deadlock() {
  fprintf(stderr, "deadlock: threads wait at barriers that the others never reach\n");
  abort();
}

// Lets the others run, for a thread that waits for what they write.
static void poll() {
  if (++idle > 1000L * blocks * threads) deadlock();
  swapcontext(&contexts[current], &scheduler);
}

// The current thread's block in its cluster.
static int rank() { return current / threads; }

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
        current = i;
        thread_index.x = i % threads;
        block_index.x = first_block + i / threads;
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

static void run_cluster() {
  int all = blocks * threads;
  if (at_start) at_start();
  for (int i = 0; i < all; ++i) {
    getcontext(&contexts[i]);
    contexts[i].uc_stack.ss_sp = stacks[i];
    contexts[i].uc_stack.ss_size = kStackBytes;
    contexts[i].uc_link = &scheduler;
    makecontext(&contexts[i], run_thread, 0);
    states[i] = kReady;
  }
  while (true) {
    bool any = false;
    for (int n = 0; n < all; n += 32) {
      int first = skewed & 1 ? (all - 1) / 32 * 32 - n : n;
      any |= run_warp(first, first + 32 < all ? first + 32 : all);
    }
    if (all_in(kDone, 0, all)) return;
    for (int first = 0; first < all; first += threads)
      if (all_in(kAtBlockBarrier, first, first + threads)) {
        resume(first, first + threads);
        any = true;
      }
    if (all_in(kAtClusterBarrier, 0, all)) {
      resume(0, all);
      any = true;
    }
    if (!any) deadlock();
  }
}

// One cluster after the other. Blocks of clusters have whole warps.
static void launch(Dim blocks_of_grid, int threads_of_block, void (*kernel)()) {
  threads = threads_of_block;
  skewed = getenv("SSAMBA_SKEWED") ? atoi(getenv("SSAMBA_SKEWED")) : 0;
  body = kernel;
  grid = blocks_of_grid;
  while ((int)stacks.size() < blocks * threads) stacks.push_back((char *)malloc(kStackBytes));
  for (int z = 0; z < grid.z; ++z)
    for (int y = 0; y < grid.y; ++y)
      for (int x = 0; x < grid.x; x += blocks) {
        first_block = x;
        block_index = {x, y, z};
        run_cluster();
      }
}

}  // namespace fibers
