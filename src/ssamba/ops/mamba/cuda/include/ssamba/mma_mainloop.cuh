// The main loop of scan_forward_mma.cu: a warp's recurrence over its steps.
//
// Between the steps of the recurrence run the elementwise part of the next eight steps (with SPLIT 2: of the warp's
// half of the next batch), the gate of the current ones, and the output of those before. So nothing waits for memory,
// a product or a special function alone.
#pragma once

#include "ssamba/mma_warp_state.cuh"

// What runs between the steps of the recurrence: the elementwise part of the next steps, the gate of the current ones,
// and the output of those before. STEP: 0 to 7 or, with SPLIT 2, to 15.
struct Interleaved {
  const ChannelParams &c;
  const FragmentAddrs &at;
  int stage, block, stage_now, block_now;  // of the next steps, of the current ones
  float *delta_at, *gate;
  StepBlock &to;
  const float *sum;
  Outputs &outputs;
  Elementwise work;

  template <int STEP> __device__ __forceinline__ void after_step() {
    if constexpr (STEP % SPLIT == SPLIT - 1) work.part<STEP / SPLIT>(c, at, stage, block, delta_at, to);
    if constexpr (SPLIT == 1 && STEP == 5) __syncwarp();  // part 5 has written delta
    if constexpr (OUTPUTS && STEP == SPLIT) outputs.store(sum, gate);
    if constexpr (OUTPUTS && STEP == 6 * SPLIT) load_gate(at, stage_now, block_now, gate);
  }
};

// delta of four steps (TIED: log2 r and r of two) of this lane's channels g and g + 8. POWERS: r of two steps of both
// channels, and their first decays.
__device__ __forceinline__ void read_deltas(float (*d)[4], const float *delta) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float4 four = *(const float4 *)(delta + i * 8 * DR);
    d[i][0] = four.x; d[i][1] = four.y; d[i][2] = four.z; d[i][3] = four.w;
  }
}

// B and C of the current steps, as fragments.
struct BcFragments {
  unsigned b[4], c[4];
};

#if TIED
// The decays of a lane's states at step t of those in d. In float32 throughout: near 1, 16 bits would not do.
template <int t> __device__ __forceinline__ void powers_of(const WarpState &w, const float (*d)[4], float *decay) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float r = d[i][t % 2 * 2 + 1], power = ex2(d[i][t % 2 * 2] * w.first);
#pragma unroll
    for (int n = 0; n < 2 * NJ; ++n, power *= r) decay[n / 2 * 4 + i * 2 + n % 2] = power;
  }
}
#define DECAY(i) decay[i]
#else
#define DECAY(i) ex2(d[i / 2 % 2][t % 4] * w.a2[i])
#endif

// Steps STEP to the end of its eight, with `between` after each. d: as read_deltas reads the first steps; delta: where
// that of all is; later: where that of the steps after these eight is.
template <int STEP, class Work>
__device__ __forceinline__ void advance(WarpState &w, SmemAddr b_rows, float (*d)[4], const float *delta,
                                        const float *later, StepBlock &eight, Work &between, BcFragments &bc) {
  constexpr int EACH = 4 / NJ, t = STEP % 8, AT = t % EACH * NJ;  // EACH: steps whose B one ldmatrix loads
  constexpr int HELD = 4 / DV;                                    // steps in d
  float *h = w.h;
#if SAVES
  w.saved.before<t>(h);
#endif
  if constexpr (PHASE == 3 && t % HELD == 0)
#pragma unroll
    for (int i = 0; i < 2; ++i) w.total[i] += TIED ? d[i][0] + d[i][2] : (d[i][0] + d[i][1]) + (d[i][2] + d[i][3]);
#if TIED
  float decay[NJ * 4];
  powers_of<t>(w, d, decay);
#endif
#if !ADDS
#pragma unroll
  for (int i = 0; i < NJ * 4; ++i) h[i] *= DECAY(i);
  if constexpr (t % HELD == HELD - 1 && t < 7) read_deltas(d, delta + (t + 1) * DV);
#endif
  if constexpr (t % EACH == 0) {
    ldmatrix_x4_trans(bc.b, smem_offset(b_rows, WINDOW * t * 8));
    if constexpr (OUTPUTS) ldmatrix_x4(bc.c, smem_offset(b_rows, (TILES_OF_STATES * SLOTS + WINDOW * t) * 8));
  }
#if !ADDS
#pragma unroll
  for (int j = 0; j < NJ; ++j) mma_m16n8k8(h + 4 * j, eight.drive[0], eight.drive[1], bc.b[AT + j]);
#else
  float into[NJ * 4];
#pragma unroll
  for (int j = 0; j < NJ; ++j) mma_m16n8k8_zero(into + 4 * j, eight.drive[0], eight.drive[1], bc.b[AT + j]);
#pragma unroll
  for (int i = 0; i < NJ * 4; ++i) h[i] = h[i] * DECAY(i) + into[i];
  if constexpr (t % HELD == HELD - 1 && t < 7) read_deltas(d, delta + (t + 1) * DV);
#endif
#if OUTPUTS && NJ == 2
  mma_m16n8k16(eight.sum, pack2_finite(h[0], h[1]), pack2_finite(h[2], h[3]), pack2_finite(h[4], h[5]),
               pack2_finite(h[6], h[7]), bc.c[AT], bc.c[AT + 1]);
#elif OUTPUTS
  mma_m16n8k8(eight.sum, pack2_finite(h[0], h[1]), pack2_finite(h[2], h[3]), bc.c[AT]);
#endif
  between.template after_step<STEP>();
  if constexpr (t < 7)
    advance<STEP + 1>(w, b_rows, d, delta, later, eight, between, bc);
  else if (later)
    read_deltas(d, later);
}

#if SPLIT == 1
// Block BLOCK of 8 steps of the batch at s0, and the elementwise part of the block after it.
template <int BLOCK>
__device__ __forceinline__ void run_block(WarpState &w, int s0, StepBlock *eight, float (*d)[4], float *gate) {
  constexpr int OTHER = BLOCK ^ 1;
#if EARLY_ARRIVAL
  if (BLOCK == 0) w.arrive();
#endif
  if (BLOCK == 1) w.next_batch(s0);
  Interleaved between = {w.c,  w.at,         BLOCK ? w.next : w.now, OTHER, w.now, BLOCK, w.delta_at,
                         gate, eight[OTHER], eight[OTHER].sum,       w.outputs};
  BcFragments bc;
  SmemAddr b_rows = smem_offset(smem_bytes(w.at.b, w.now), BLOCK * 8 * STEP_VALUES);
  advance<0>(w, b_rows, d, w.delta + 8 * DV * BLOCK, w.delta + 8 * DV * OTHER, eight[BLOCK], between, bc);
  if (BLOCK == 1) w.advance_stage();
}

// What is left after the last block, `eight`.
__device__ __forceinline__ void finish(WarpState &w, const StepBlock &eight, const float *gate) {
#if PHASE == 4
  w.saved.save(w.h);
#elif PHASE != 3
  w.outputs.store(eight.sum, gate);
#endif
  cp_async_wait<0>();  // zeros, copied for steps beyond the end
}

__device__ __forceinline__ void run_mainloop(WarpState &w) {
  StepBlock eight[2] = {};
  float d[2][4], gate[4] = NO_GATE;
  w.load_first_batches();
  w.prepare(eight[0]);
  __syncwarp();
  read_deltas(d, w.delta);
#pragma unroll 1
  for (int s0 = w.begin; s0 < w.hi; s0 += STEPS) {
    run_block<0>(w, s0, eight, d, gate);
    if (w.hi - s0 <= 8) return finish(w, eight[0], gate);
    run_block<1>(w, s0, eight, d, gate);
  }
  finish(w, eight[1], gate);
}
#else
// Adds the other warp's share of the sums over states of this warp's half of a batch.
__device__ __forceinline__ void add_other_half(const WarpState &w, float *sum, int parity) {
  float4 more = w.group_shared->sum[parity][w.half ^ 1][w.lane];
  sum[0] += more.x; sum[1] += more.y; sum[2] += more.z; sum[3] += more.w;
}

__device__ __forceinline__ void run_mainloop(WarpState &w) {
  StepBlock mine;  // this warp's half of a batch
  float d[2][4], gate[4] = NO_GATE;
  float sum[4] = {};  // this warp's share of the output of its half of the batch before
  int parity = 0;
  w.load_first_batches();
  w.prepare(mine);
  w.group_shared->drive[0][w.half][w.lane] = make_uint2(mine.drive[0], mine.drive[1]);
  // Code for as many batches as it takes until stage and parity are the first again: all offsets are constants then.
  constexpr int BATCHES = STAGES % 2 ? 2 * STAGES : STAGES;
#pragma unroll 1
  for (int s0 = w.begin; s0 < w.hi;) {
    w.first_stages();
    parity = 0;
#pragma unroll
    for (int i = 0; i < BATCHES && s0 < w.hi; ++i, s0 += STEPS) {
      w.next_batch(s0);
      int next_parity = parity ^ 1;
      if (PHASE != 3 && s0 > w.begin) add_other_half(w, sum, next_parity);
      StepBlock eight[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint2 drive = w.group_shared->drive[parity][n][w.lane];
        eight[n].drive[0] = drive.x; eight[n].drive[1] = drive.y;
#pragma unroll
        for (int i = 0; i < 4; ++i) eight[n].sum[i] = 0.0f;
      }
      float begin[4] = {mine.sum[0], mine.sum[1], mine.sum[2], mine.sum[3]};
      const float *delta = w.delta + parity * 16 * DR;
      read_deltas(d, delta);
      Interleaved between = {w.c,  w.at, w.next, 0,   w.now, 0, w.delta_at + next_parity * 16 * DR,
                             gate, mine, sum,    w.outputs};
      SmemAddr b_rows = smem_bytes(w.at.b, w.now);
      BcFragments bc;
      advance<0>(w, b_rows, d, delta, delta + 8 * DV, eight[0], between, bc);
      advance<8>(w, smem_offset(b_rows, 8 * STEP_VALUES), d, delta + 8 * DV, nullptr, eight[1], between, bc);
      w.advance_stage();
      w.group_shared->drive[next_parity][w.half][w.lane] = make_uint2(mine.drive[0], mine.drive[1]);
#if PHASE != 3
      float theirs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[i] = begin[i] + (w.half ? eight[1].sum[i] : eight[0].sum[i]);
        theirs[i] = w.half ? eight[0].sum[i] : eight[1].sum[i];
      }
      w.group_shared->sum[parity][w.half][w.lane] = make_float4(theirs[0], theirs[1], theirs[2], theirs[3]);
#endif
      parity = next_parity;
    }
  }
  cp_async_wait<0>();  // zeros, copied for steps beyond the end
  if (PHASE == 3 || w.begin >= w.hi) return;
  __syncthreads();
  add_other_half(w, sum, parity ^ 1);
  w.outputs.store(sum, gate);
}
#endif
