// Backward scan for 16-bit types and 16 states, with states and adjoint in the fragments of tensor-core products.
//
// A warp processes 16 channels from the last step to the first, in batches of 16 steps whose rows are copied to shared
// memory while the batch before is computed, eight steps at a time (mma_backward.cuh). Each block writes the sums over
// its channels (dB, dC) apart, without atomics: its warps leave theirs in shared memory, and after the barrier of the
// next batch all of them add these up.
//
// Given: N 16, the macros of mma_elementwise.cuh for the phase that saves states, and those of mma_backward.cuh.

#define PHASE 4
#define SPLIT 1
#define CHUNKED 0
#define GATE 0
#if TIED
#include "ssamba/mma_tied_decays.cuh"
#else
#include "ssamba/mma_free_decays.cuh"
#endif

static_assert(QUADS, "a lane has four states in a row");

// The sums of a batch over channels, of each warp. Unless TIED, the room that a second batch would take holds decays.
#define BATCH_SUMS (STEPS * SUMS_ROW)
#define BUFFER(parity) (TIED ? (parity) : 0)

// The sums over channels of eight steps to shared memory. to: step 2 q, dB or dC; g: of this lane.
template <bool IN_REGISTERS> __device__ __forceinline__ void put_sums(float *to, const float *sums, int g) {
  constexpr int NEXT = IN_REGISTERS ? 2 : 8;  // from this lane's first state to its second
  to += IN_REGISTERS ? g / 2 * 4 + g % 2 : g;
#pragma unroll
  for (int n = 0; n < 4; ++n) to[n % 2 * SUMS_ROW + n / 2 * NEXT] = sums[n];
}

// The sums of the block over the steps of a batch to memory. to: the first of them; step: from one to the next.
__device__ __forceinline__ void store_batch_sums(const float *sums, T *to, long long step, int steps, int thread) {
  constexpr int FOURS = STEPS * N / 2, ROUNDS = (FOURS + THREADS - 1) / THREADS;
#pragma unroll
  for (int i = 0; i < ROUNDS; ++i) {
    int n = thread + i * THREADS, s = n / (N / 2), v = n % (N / 2) * 4;
    if (FOURS % THREADS && n >= FOURS) break;
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      float4 more = *(const float4 *)(sums + w * BATCH_SUMS + s * SUMS_ROW + v);
      total.x += more.x; total.y += more.y; total.z += more.z; total.w += more.w;
    }
    if (s < steps) *(uint2 *)(to + s * step + v) = make_uint2(pack2(total.x, total.y), pack2(total.z, total.w));
  }
}

// The sums over time, from the four lanes of each channel.
__device__ __forceinline__ void store_channel_sums(const ScanArgs &a, long long to, int e, const ChannelSums &sums,
                                                   bool write) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#if TIED
    float v[3 + TOKEN_SUMS] = {sums.rate[i], sums.skip[i], sums.bias[i]};
#else
    float v[3 + TOKEN_SUMS] = {0.0f, sums.skip[i], sums.bias[i]};
#endif
#if TOKEN_SUMS
    v[3] = sums.gate[i];
#endif
#pragma unroll
    for (int n = TIED ? 0 : 1; n < 3 + TOKEN_SUMS; ++n) {
      v[n] += __shfl_xor_sync(0xffffffffu, v[n], 1);
      v[n] += __shfl_xor_sync(0xffffffffu, v[n], 2);
    }
    if (!write) continue;
#if TIED
    float rate = -LOG2E * ex2(LOG2E * a.a_log[to % ((long long)a.R * a.K) * a.E + e + 8 * i]);
    a.da[to * a.E + e + 8 * i] = v[0] * rate * LN2;
#endif
#pragma unroll
    for (int n = 0; n < VECTORS; ++n) a.dvec[to * VECTORS * a.E + n * a.E + e + 8 * i] = v[1 + n];
  }
}

// This lane's saved states of channels g and g + 8.
__device__ __forceinline__ void load_states(const T *from, uint2 *to) {
  to[0] = *(const uint2 *)from; to[1] = *(const uint2 *)(from + 8 * N);
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) scan_backward_mma(const ScanArgs a) {
  SHARED_BYTES(raw);
  BackwardStage *stages = (BackwardStage *)raw;  // two
  int thread = thread_index(), lane = thread % 32, warp = thread / 32, g = lane / 4, q = lane % 4;
  WarpShared *own = (WarpShared *)(stages + 2) + warp;
  float *sums = (float *)((WarpShared *)(stages + 2) + WARPS);  // [TIED ? 2 : 1][WARPS][STEPS][SUMS_ROW]
  int b = blockIdx.y / a.K, k = blockIdx.y % a.K, r = blockIdx.z, back = REVERSED(r, k), sign = back ? -1 : 1;
  int e_block = blockIdx.x * CB, e0 = e_block + warp * 16;
  bool on = e0 < a.E, gate = ALTERNATING || r == 0;
  if (!on) e0 = 0;
  long long dir_block = (long long)r * a.K + k, base = dir_block * a.B + b;
  // No copy writes between the rows of B and C, nor to the padding of the low-rank dt: these stay zero.
  constexpr int MIXED = (int)(sizeof(Stage::low) + sizeof(Stage::bc)) / 16;
  for (int i = thread; i < 2 * MIXED; i += THREADS)
    *((uint4 *)stages[i / MIXED].forward.low + i % MIXED) = make_uint4(0, 0, 0, 0);

  ChannelParams c;
  load_channel_params(c, a, dir_block * a.E + e0 + g, q);
  int s0 = (a.L - 1) / STEPS * STEPS, t0 = back ? a.L - 1 - s0 : s0;  // the last batch, and its first token
  long long y_row = (long long)a.K * a.E, y_at = ((long long)b * a.L * a.K + k) * a.E + t0 * y_row + e_block;
  long long x_at = b * a.xb + k * a.xk + t0 * a.xt + e_block, z_at = b * a.zb + k * a.zk + t0 * a.zt + e_block;
  BackwardCopies copies = {{a.x + x_at, a.z + z_at, a.y + y_at, a.p + (base * a.L + t0) * P, sign * (int)a.xt,
                            sign * (int)a.zt, sign * (int)y_row, sign * P}, a.dy + y_at, gate};
  copies.start(thread, a.E - e_block, a.L);
  SmemAddr stage = smem_addr((const T *)stages);
  FragmentAddrs at;
  at.init(stage, lane, warp, 0);
  SmemAddr gates = smem_offset(stage, GATE_AT + lane / 16 * ROWS_OF + lane % 8 * XR + warp * 16 + lane / 8 % 2 * 8);
  Recurrence w;
  w.init(a, own, dir_block * a.E + e0 + g, lane);
  ChannelSums total = {};

  // Outputs of this lane: step g of eight, channels 2 q and 2 q + 1.
  int first = back ? a.L - 1 : 0, e = e0 + 2 * q;
  T *dz_at = a.dz + b * a.dzb + k * a.dzk + first * a.dzt + e;
  long long out_at = (base * a.L + first) * a.E + e;
  const T *saved = a.ckpt + ((base * a.count + (a.L - 1) / EIGHT) * a.E + e0 + g) * N + 4 * q;
  T *dbc = a.dbc + ((blockIdx.x * (long long)(a.R * a.K * a.B) + base) * a.L + first) * 2 * N;
  float *sums_to = sums + warp * BATCH_SUMS + 2 * q * SUMS_ROW;
  float gain = !ALTERNATING && a.R == 2 ? 0.5f : 1.0f;
  __syncthreads();
  copies.copy(stage, s0, a.L);
  cp_async_commit();
  int now = 0, parity = 0;
  uint2 last[2];  // the saved states of the next eight steps
  load_states(saved, last);
#pragma unroll 1
  for (; s0 >= 0; s0 -= STEPS, now = STAGE_VALUES - now, parity ^= 1) {
    cp_async_wait<0>();
    __syncthreads();
    if (s0 > 0) copies.copy(smem_offset(stage, STAGE_VALUES - now), s0 - STEPS, a.L);
    cp_async_commit();
    if (s0 + STEPS < a.L)
      store_batch_sums(sums + BUFFER(parity ^ 1) * WARPS * BATCH_SUMS, dbc + sign * (s0 + STEPS) * 2 * N,
                       sign * 2 * N, a.L - s0 - STEPS, thread);
    if (!TIED) __syncthreads();
#pragma unroll 1
    for (int block = s0 + EIGHT < a.L; block >= 0; --block) {
      int step = s0 + block * EIGHT + g, to = sign * step;
      bool write = on && step < a.L;
      FragmentAddrs here = at;
      here.before = smem_offset(at.before, now + block * EIGHT * XR);
      here.low = smem_offset(at.low, now + block * EIGHT * LR);
      w.b_rows = smem_offset(at.b, now + block * EIGHT * 64);
      Positions positions;
      prepare(c, here, smem_offset(gates, now + block * EIGHT * XR), gain, gate, dz_at + to * (int)a.dzt, write,
              own->rates + g * RATE_ROW + q * 2 * DV, positions, total);
      __syncwarp();
      unsigned states[EIGHT][4];
      float dB[4] = {}, dC[4] = {}, b_sum[4] = {}, rate_sum[4] = {};
      w.rebuild(last, positions, states, dC);
      end_stretch(g == -1);
      if (s0 + block > 0) load_states(saved -= (long long)a.E * N, last);
      __syncwarp();  // so that the compiler reads rates again, rather than keep 64 decays in registers
      w.adjoint(states, positions, b_sum, rate_sum, dB);
      end_stretch(g == -2);
      finish(c, positions, b_sum, rate_sum, a.du + out_at + to * a.E, a.ddt + out_at + to * a.E, write, total);
      float *of_block = sums_to + BUFFER(parity) * WARPS * BATCH_SUMS + block * EIGHT * SUMS_ROW;
      put_sums<(MOVM & 2) != 0>(of_block, dB, g);
      put_sums<(MOVM & 1) != 0>(of_block + N, dC, g);
      __syncwarp();
    }
  }
  __syncthreads();
  store_batch_sums(sums + BUFFER(parity ^ 1) * WARPS * BATCH_SUMS, dbc, sign * 2 * N, a.L, thread);
  long long of_clip = (long long)b * (a.R * a.K) + dir_block;
  store_channel_sums(a, of_clip, e0 + g, total, on && q == 0);
#if !TIED
  if (on) w.store_rate_sums(a.da + (of_clip * a.E + e0 + g) * N + 4 * q);
#endif
}
