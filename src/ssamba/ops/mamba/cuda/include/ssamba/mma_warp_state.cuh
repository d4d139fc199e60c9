// What a warp of scan_forward_mma.cu keeps through its main loop: registers, stages, and how it waits for them.
#pragma once

#include "ssamba/mma_copies.cuh"
#include "ssamba/mma_outputs.cuh"
#include "ssamba/mma_saved_states.cuh"

#if STAGES < 3
#error "the current batch, the next one, whose elementwise part is computed ahead, and one being copied need 3 stages"
#endif

// ADDS: delta u B is computed by a product of its own, and added by the FMA that decays the states. From step to step
// this is a shorter chain than a product that accumulates in the states, but it has a product's latency before it,
// which only many warps hide. Given, for measurements: 0, a product that accumulates.
#ifndef ADDS
#define ADDS (SPLIT == 1 && !CHUNKED)
#endif
#define STAGE ((int)sizeof(Stage))
// With SPLIT 1 a warp arrives at the barrier of a batch when it has read the batch before, and waits eight steps later,
// so that warps may be that far apart.
#define EARLY_ARRIVAL (SPLIT == 1)

// The state of a warp's main loop.
struct WarpState {
  ChannelParams c;
  FragmentAddrs at;
  BatchCopies copies;
  GroupShared *group_shared;
  float h[NJ * 4];
#if TIED
  float first;  // the decays of this lane's states are r^first, r^(first + 1), ...
#else
  float a2[NJ * 4];  // log2 of the states' decay for each unit of delta
#endif
  float total[2];           // PHASE 3: sums of delta (TIED: of log2 r)
  float *delta, *delta_at;  // where this lane reads delta (TIED: log2 r and r), and where it writes it
#if SAVES
  SavedStates saved;
#endif
  Outputs outputs;              // of the eight steps (with SPLIT 2: of the batch) before the current ones
  int begin, hi, lane, half;    // begin: of the first batch, which may lie before the first step
  int now, next, free;                       // offsets of the current stage, the next and the one to fill, in bytes
  bool on;                                   // whether the channels exist
#if EARLY_ARRIVAL
  SmemAddr barrier;
  int parity;  // of the batch
#endif

  // Goes on to the next batch: the stage of the one before it is free then.
  __device__ __forceinline__ void advance_stage() {
    int after = STAGES == 3 ? free : next == (STAGES - 1) * STAGE ? 0 : next + STAGE;
    free = now; now = next; next = after;
  }
#if EARLY_ARRIVAL
  // The warp has read the batch before this for the last time, and its copies of the next batch have arrived.
  __device__ __forceinline__ void arrive() {
    cp_async_wait<STAGES - 3>();
    mbarrier_arrive_warp(barrier, lane);
  }
#endif
  // Waits for the next batch, and starts the copies of the one that takes the place of the batch before this.
  __device__ __forceinline__ void next_batch(int s0) {
#if EARLY_ARRIVAL
    mbarrier_wait(barrier, parity);
    parity ^= 1;
#else
    cp_async_wait<STAGES - 3>();
    __syncthreads();
#endif
    if (hi - s0 >= STAGES * STEPS)
      copies.copy<true>(free, s0 + (STAGES - 1) * STEPS, hi);
    else
      copies.copy<false>(free, s0 + (STAGES - 1) * STEPS, hi);
    cp_async_commit();
  }
  __device__ __forceinline__ void load_first_batches() {
#pragma unroll 1
    for (int i = 0; i < STAGES - 1; ++i) {
      copies.copy<false>(i * STAGE, begin + i * STEPS, hi);
      cp_async_commit();
    }
    first_stages();
    cp_async_wait<STAGES - 2>();
    __syncthreads();
  }
  __device__ __forceinline__ void first_stages() {
    now = 0; next = STAGE; free = (STAGES - 1) * STAGE;
  }
  // The elementwise part of the first 8 steps of the first batch, or of the warp's half of it.
  __device__ __forceinline__ void prepare(StepBlock &to) {
    Elementwise work;
    work.all(c, at, 0, 0, delta_at, to);
  }
};
