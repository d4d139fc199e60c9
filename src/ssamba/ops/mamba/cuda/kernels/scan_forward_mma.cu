// Forward scan for 16-bit types and 16 or 8 states, with the states in the fragments of tensor-core products.
//
// A warp processes 16 channels; their states are the accumulators of 16 x 8 products: lane 4 g + q holds states 2 q
// and 2 q + 1 (and + 8) of channels g and g + 8. A step multiplies them by their decays in float32 and leaves the rest
// to products: delta u B is one whose inner dimension is time, where B is zero at all steps but one; the sum over
// states of h C is one whose columns are eight steps, where C is zero at all steps but one. ldmatrix reads those zeros
// from shared memory: step t is in row 9 t among rows of zeros, so a constant offset gives the window of eight rows for
// it. The elementwise part (convolution, delta, gate) has the same layout, lane 4 g + q holding channels g
// and g + 8 at steps 2 q and 2 q + 1 of eight, so only delta is exchanged between lanes.
//
// PHASE 0: one direction, the whole sequence; 1: first half, ungated output; 2: second half, mean with the other
// direction's output, gated; 3: end states of chunks alone; 4: the states before every 8 steps, from which the
// backward starts, in place of scan_states.cu: a lane then holds four states in a row (QUADS); with SAVES the phases
// that make outputs save them, too. SPLIT 2 gives 8 of the
// states to each of two warps: for few channels. CHUNKED cuts each half of the time into `count` chunks that are
// computed in parallel: for fewer still. PHASE 3 then leaves the state at the end of each chunk, as if it had begun
// with zeros, and its sum of delta; the other phases compute their first states from these. GATE 0 leaves the gate to
// the caller, and z unread.
//
// TIED: a channel has one rate, and state n decays with r^(n + 1). r is computed once for a channel and step, in the
// elementwise part; a lane raises it to its first state's power and multiplies on, so that a step takes two special
// functions a lane where eight states take eight. A lane then holds four states in a row (QUADS).

#include "ssamba/mma_mainloop.cuh"
#include "ssamba/programmatic_launch.cuh"

// The directions meet where a batch of direction 0 ends. The first batch of direction 1 begins before its first step,
// so that one of its batches ends there, too: so the states are never updated by steps after the end of a half.
struct Half {
  int begin, middle;  // begin of the first batch; first step of the second half
};

__device__ __forceinline__ Half halves(const ScanArgs &a, int r) {
  if (a.R == 1) return {0, a.L};
  int meeting = a.L / 2 / STEPS * STEPS;
  return r ? Half{meeting - (a.L + STEPS - 1) / STEPS * STEPS + a.L - meeting, a.L - meeting} : Half{0, meeting};
}

// The first step of a chunk. The last chunk ends where the direction ends.
__device__ __forceinline__ int chunk_start(int chunk, int count, Half half, int L) {
  int from = chunk < count ? half.begin : half.middle, steps = (chunk < count ? half.middle : L) - from;
  int each = ((steps + count - 1) / count + STEPS - 1) / STEPS * STEPS;
  return from + min((chunk < count ? chunk : chunk - count) * each, steps);
}

// The decays and first states of a lane's two channels; with CHUNKED the states of a sequence's first step.
__device__ __forceinline__ void load_states(WarpState &w, const ScanArgs &a, long long ch, long long state_at, int half,
                                            int q) {
#if TIED
  w.first = QUADS ? 4 * q + 1 : 8 * half + 2 * q + 1;
#endif
#pragma unroll
  for (int i = 0; i < NJ * 4; i += 2) {
    int n = i / 4 * 8, side = i / 2 % 2 * 8;
    float2 two;
#if !TIED
#if QUADS
    two = *(const float2 *)(a.a_log + (ch + side) * N + n / 4 + q * 4);
#else
    two = *(const float2 *)(a.a_log + (ch + side) * N + n + half * 8 + q * 2);
#endif
    w.a2[i] = -LOG2E * ex2(LOG2E * two.x); w.a2[i + 1] = -LOG2E * ex2(LOG2E * two.y);
#endif
    two = PHASE == 2 && !CHUNKED ? *(const float2 *)(a.state + state_at + side * N + n) : make_float2(0.0f, 0.0f);
    w.h[i] = two.x; w.h[i + 1] = two.y;
  }
}

// log2 of the decay of state i of a lane over the steps whose delta (TIED: log2 r) sums up to total.
__device__ __forceinline__ float decay_over(const WarpState &w, float total, int i) {
#if TIED
  return total * (w.first + (i / 4 * 2 + i % 2));
#else
  return total * w.a2[i];
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) scan_fragments(const ScanArgs a) {
  SHARED_BYTES(raw);
  Stage *stages = (Stage *)raw;
  int thread = thread_index(), lane = thread % 32, warp = thread / 32, g = lane / 4, q = lane % 4;
  int half = warp % SPLIT, group = warp / SPLIT;
  WarpState w;
  SmemAddr first_stage = smem_addr((const T *)stages);
  w.group_shared = (GroupShared *)(stages + STAGES) + group;
  w.lane = lane; w.half = half;
  int b = blockIdx.y / a.K, k = blockIdx.y % a.K, r = blockIdx.z % a.R, back = REVERSED(r, k);
  int e_block = blockIdx.x * CB, e0 = e_block + group * 16;
  w.on = e0 < a.E;
  if (!w.on) e0 = 0;
  long long dir_block = (long long)r * a.K + k, base = dir_block * a.B + b;
  Half halved = halves(a, r);
#if PHASE == 4
  int lo = 0, hi = (a.count - 1) * 8;  // what follows the last saved state is not needed
#else
  int lo = PHASE == 2 ? halved.middle : halved.begin, hi = PHASE == 1 ? halved.middle : a.L;
#endif
#if CHUNKED
  int chunk = blockIdx.z / a.R + (PHASE == 2 ? a.count : 0);
  lo = chunk_start(chunk, a.count, halved, a.L);
  hi = chunk_start(chunk + 1, a.count, halved, a.L);
#endif
  // No copy writes between the rows of B and C, nor to the padding of the low-rank dt: these stay zero.
  constexpr int MIXED = (int)(sizeof(Stage::low) + sizeof(Stage::bc)) / 16;
#pragma unroll 1
  for (int i = thread; i < MIXED; i += THREADS)
#pragma unroll
    for (int stage = 0; stage < STAGES; ++stage) ((uint4 *)stages[stage].low)[i] = make_uint4(0, 0, 0, 0);

  long long ch = dir_block * a.E + e0 + g;
  load_channel_params(w.c, a, ch, q);
  wait_for_kernel_before();
  w.total[0] = w.total[1] = 0.0f;
  long long state_at = (base * a.E + e0 + g) * N + half * 8 + q * 2;
  load_states(w, a, ch, state_at, half, q);
#if CHUNKED  // a.da: end states of the chunks, a.dvec: their sums of delta
  long long channels = (long long)a.R * a.K * a.B * a.E;
  if (PHASE != 3)
    for (int before = 0; before < chunk; ++before)
#pragma unroll
      for (int i = 0; i < NJ * 4; ++i) {
        int side = i / 2 % 2 * 8;
        float total = a.dvec[before * channels + base * a.E + e0 + g + side];
        long long at = before * channels * N + state_at + side * N + i / 4 * 8 + i % 2;
        w.h[i] = ex2(decay_over(w, total, i)) * w.h[i] + a.da[at];
      }
#endif
  // Step s is token t_first + sign s.
  int t_first = back ? a.L - 1 : 0, sign = back ? -1 : 1;
  long long y_row = (long long)a.K * a.E, y_at = ((long long)b * a.L * a.K + k) * a.E + t_first * y_row;
  w.copies = {
      a.x + b * a.xb + k * a.xk + e_block + t_first * a.xt + (long long)(lo * sign) * a.xt,
      a.z + b * a.zb + k * a.zk + e_block + t_first * a.zt + (long long)(lo * sign) * a.zt,
      a.y + y_at + e_block + lo * sign * y_row,
      sign * (int)a.xt, sign * (int)a.zt, sign * (int)y_row, sign * P};
  w.copies.start(first_stage, thread, a.E - e_block, a.p + (base * a.L + t_first + lo * sign) * P);
  int first = max(lo, 0);
  w.outputs.start(a.y + y_at + e0 + 2 * q + (long long)first * sign * y_row, sign * (int)y_row, lo - first,
                  half * 8 + g, hi - first, w.on);
#if SAVES
  w.saved.start(a.ckpt + (base * a.count * a.E + e0 + g) * N + 4 * q, a.E * N, lo, r, w.on);
#endif
  w.begin = lo; w.hi = hi;
#if EARLY_ARRIVAL
  static_assert(SPLIT == 1, "a warp's half of a batch is read until the batch ends");
  w.barrier = smem_bytes(first_stage, STAGES * STAGE + GROUPS * (int)sizeof(GroupShared));
  w.parity = 0;
  if (thread == 0) mbarrier_init(w.barrier, WARPS);  // of each warp one lane arrives
#endif
  w.at.init(first_stage, lane, group, half);
  w.delta = w.group_shared->delta[0] + DELTA_ROW(g) * DR;
  w.delta_at = w.delta + (half * 8 + q * 2) * DV;
  __syncthreads();
  run_mainloop(w);
  if ((PHASE == 3 || (PHASE == 1 && !CHUNKED)) && w.on) {
    float *to = a.state + state_at;
#if PHASE == 3
    to = a.da + chunk * channels * N + state_at;
    if (q == 0 && half == 0)
#pragma unroll
      for (int i = 0; i < 2; ++i) a.dvec[chunk * channels + base * a.E + e0 + g + i * 8] = w.total[i];
#endif
#pragma unroll
    for (int i = 0; i < NJ * 4; i += 2)
      *(float2 *)(to + i / 2 % 2 * 8 * N + i / 4 * 8) = make_float2(w.h[i], w.h[i + 1]);
  }
}
