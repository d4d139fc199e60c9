// Backward scan for 16-bit types and 16 states, with states and adjoint in the fragments of tensor-core products.
//
// A warp processes 16 channels from the last step to the first, in batches of 16 steps whose rows are copied to shared
// memory while the batch before is computed, eight steps at a time (mma_backward.cuh). A block has some clips one after
// another, as equal shares as there are, without a gap: the next clip's last batch follows this one's first. Each block
// writes the sums over its channels (dB, dC) apart, without atomics: its warps leave theirs in shared memory, and after
// the barrier of the next batch all of them add these up. Sums over time are those of all of the block's clips.
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

// The sums over channels of eight steps to shared memory. to: step 2 q, dB or dC, of this lane, whose two states are
// eight places apart, so that all banks are met.
__device__ __forceinline__ void put_sums(float *to, const float *sums) {
#pragma unroll
  for (int n = 0; n < 4; ++n) to[n % 2 * SUMS_ROW + n / 2 * 8] = sums[n];
}
// The value of dB and dC (of 2 N) whose sum lies at an even place of a step's row; the next one follows.
__device__ __forceinline__ int value_at(int place) {
  bool exchanged = place < N ? MOVM & 2 : MOVM & 1;
  return exchanged ? place / N * N + place % 8 / 2 * 4 + place % N / 8 * 2 : place;
}

// The sums of the block over the steps of a batch to memory. to: the first of them; step: from one to the next.
__device__ __forceinline__ void store_batch_sums(const float *sums, T *to, int step, int steps, int thread) {
  constexpr int TWOS = STEPS * N, ROUNDS = (TWOS + THREADS - 1) / THREADS;
#pragma unroll
  for (int i = 0; i < ROUNDS; ++i) {
    int n = thread + i * THREADS, s = n / N, place = n % N * 2;
    if (TWOS % THREADS && n >= TWOS) break;
    float2 total = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      float2 more = *(const float2 *)(sums + w * BATCH_SUMS + s * SUMS_ROW + place);
      total.x += more.x; total.y += more.y;
    }
    if (s < steps) *(unsigned *)(to + (s * step + value_at(place))) = pack2(total.x, total.y);
  }
}

// The sums over time, from the four lanes of each channel.
__device__ __forceinline__ void store_channel_sums(const ScanArgs &a, long long to, int e, const ChannelSums &sums,
                                                   const float2 *gate_sums, bool write) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#if TIED
    float v[3 + TOKEN_SUMS] = {sums.rate[i], sums.skip[i], sums.bias[i]};
#else
    float v[3 + TOKEN_SUMS] = {0.0f, sums.skip[i], sums.bias[i]};
#endif
#if TOKEN_SUMS
#if TIED
    v[3] = sums.gate[i];
#else
    v[3] = i ? gate_sums->y : gate_sums->x;
#endif
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

// Where a lane reads saved states and stores results of eight steps. Pointers stay at the last eight of the block's
// first clip, and offsets of 32 bits go on.
struct Places {
  const T *saved;
  T *dz, *du, *ddt;
  int saved_step, dz_step, du_step;  // from eight steps to those before
  int saved_at, dz_at, du_at;

  __device__ __forceinline__ void keep() {
    dz = kept(dz); du = kept(du); ddt = kept(ddt);
    saved_step = per_thread(saved_step); dz_step = per_thread(dz_step); du_step = per_thread(du_step);
    saved_at = dz_at = du_at = 0;
  }
  // To the last eight steps of a clip.
  __device__ __forceinline__ void to_clip(int clip, const ScanArgs &a) {
    dz_at = clip * (int)a.dzb; du_at = clip * (a.L * a.E);
  }
};

// This lane's saved states of channels g and g + 8.
__device__ __forceinline__ void load_states(const T *from, uint2 *to) {
  to[0] = *(const uint2 *)from; to[1] = *(const uint2 *)(from + 8 * N);
}

// The recurrences over the first COUNT of eight steps. last: the saved states before them, for which those at `saved`
// then stand; sums: see finish, and over channels.
template <int COUNT>
__device__ __forceinline__ void run_steps(Recurrence &w, uint2 *last, const T *saved, const Positions &at, float *b_sum,
                                          float *rate_sum, float *dB, float *dC) {
  unsigned states[COUNT][4];
  w.rebuild<COUNT>(last, at, states, dC);
  end_stretch(w.never == -1);
  load_states(saved, last);
  if (AGAIN) __syncwarp();  // so that the compiler reads rates again
  w.adjoint<COUNT>(states, at, b_sum, rate_sum, dB);
  end_stretch(w.never == -2);
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) scan_backward_mma(const ScanArgs a) {
  SHARED_BYTES(raw);
  BackwardStage *stages = (BackwardStage *)raw;  // two
  int thread = thread_index(), lane = thread % 32, warp = thread / 32, g = lane / 4, q = lane % 4;
  WarpShared *own = (WarpShared *)(stages + 2) + warp;
  float *sums = (float *)((WarpShared *)(stages + 2) + WARPS);  // [TIED ? 2 : 1][WARPS][STEPS][SUMS_ROW]
  int r = (int)blockIdx.z >= a.K, k = blockIdx.z - r * a.K, back = REVERSED(r, k), sign = back ? -1 : 1;
  int share = blockIdx.y, b = share * a.count, clips = min(a.B - b, a.count);  // the first clip, and how many there are
  int e_block = blockIdx.x * CB, e0 = e_block + warp * 16;
  bool on = e0 < a.E, gate = ALTERNATING || r == 0;
  if (!on) e0 = 0;
  long long dir_block = (long long)r * a.K + k, base = dir_block * a.B + b;
  // No copy writes between the rows of B and C, nor to the padding of the low-rank dt: these stay zero.
  constexpr int MIXED = (int)(sizeof(Stage::low) + sizeof(Stage::bc)) / 16;
  for (int i = thread; i < 2 * MIXED; i += THREADS)
    *((uint4 *)stages[i / MIXED].forward.low + i % MIXED) = make_uint4(0, 0, 0, 0);
  if (WINDOWS)
    for (int i = lane; i < 2 * WEIGHTS / 8; i += 32) *((uint4 *)own->weights + i) = make_uint4(0, 0, 0, 0);

  ChannelParams c;
  load_channel_params(c, a, dir_block * a.E + e0 + g, q);
  int last_batch = (a.L - 1) / STEPS * STEPS, s0 = last_batch, t0 = back ? a.L - 1 - s0 : s0;  // t0: its first token
  long long y_row = (long long)a.K * a.E, y_at = ((long long)b * a.L * a.K + k) * a.E + t0 * y_row + e_block;
  long long x_at = b * a.xb + k * a.xk + t0 * a.xt + e_block, z_at = b * a.zb + k * a.zk + t0 * a.zt + e_block;
  BackwardCopies copies = {a.x + x_at, a.z + z_at, a.y + y_at, a.dy + y_at, a.p + (base * a.L + t0) * P,
                           sign * (int)a.xt, sign * (int)a.zt, sign * (int)y_row, sign * P, gate};
  SmemAddr stage = smem_addr((const T *)stages);
  copies.start(stage, thread, a.E - e_block);
  FragmentAddrs at;
  at.init(stage, lane, warp, 0);
  SmemAddr gates = smem_offset(stage, GATE_AT + lane / 16 * ROWS_OF + lane % 8 * XR + warp * 16 + lane / 8 % 2 * 8);
  Recurrence w;
  w.never = a.count;
  w.init(a, own, dir_block * a.E + e0 + g, lane);
  ChannelSums total = {};
#if TIED
  float2 *gate_sums = nullptr;
#else
  float2 *gate_sums = own->gate + lane;
  *gate_sums = make_float2(0.0f, 0.0f);
#endif

  // Outputs of this lane: step g of eight, channels 2 q and 2 q + 1.
  int last_eight = (a.L - 1) / EIGHT, first = back ? a.L - 1 : 0, token = first + sign * (last_eight * EIGHT + g);
  int e = e0 + 2 * q, limit = per_thread(on ? a.L - g : 0);
  long long du_at = (base * a.L + token) * a.E + e;
  Places places = {a.ckpt + ((base * (last_eight + 1) + last_eight) * a.E + e0 + g) * N + 4 * q,
                   a.dz + b * a.dzb + k * a.dzk + token * a.dzt + e, a.du + du_at, a.ddt + du_at,
                   a.E * N, EIGHT * sign * (int)a.dzt, EIGHT * sign * a.E};
  places.keep();
  T *dbc = a.dbc + ((blockIdx.x * (long long)(a.R * a.K * a.B) + base) * a.L + first) * 2 * N;
  float *rates = own->rates + DELTA_ROW(g) * RATE_ROW + q * 2 * DV;
  T *weights = own->weights + (WINDOWS ? (EIGHT + 1) * g * 8 + 2 * q : 0);
  float *sums_to = sums + warp * BATCH_SUMS + 2 * q * SUMS_ROW + g;
  float gain = !ALTERNATING && a.R == 2 ? 0.5f : 1.0f;
  __syncthreads();
  copies.copy<false>(0, s0, a.L);
  cp_async_commit();
  int now = 0, parity = 0;
  int sums_at = 0, sums_steps = 0;  // where the sums of the batch before go, and how many of its steps exist
  uint2 last[2];  // the saved states of the next eight steps
  load_states(places.saved, last);
  int clip = 0, to_next = clips > 1 ? (2 * last_eight + 1) * (a.E * N) : 0;  // from a clip's first states to the next
#pragma unroll 1
  while (true) {
    cp_async_wait<0>();
    __syncthreads();
    if (s0 >= 2 * STEPS) {
      copies.copy<true>(STAGE - now, s0 - STEPS, a.L);
    } else if (s0 || clip + 1 < clips) {
      if (s0 == 0) copies.next_clip(a, last_batch / STEPS + 1);
      copies.copy<false>(STAGE - now, s0 ? s0 - STEPS : last_batch, a.L);
    }
    cp_async_commit();
    store_batch_sums(sums + BUFFER(parity ^ 1) * WARPS * BATCH_SUMS, dbc + sums_at, sign * 2 * N, sums_steps, thread);
    if (!TIED) __syncthreads();
#pragma unroll 1
    for (int block = s0 + EIGHT < a.L; block >= 0; --block) {
      int step = s0 + block * EIGHT;
      bool write = step < limit;
      w.b_rows = smem_bytes(at.b, now + block * (2 * EIGHT * STEP_VALUES));
      Positions positions;
      prepare(c, at, gates, now, block, gain, gate, places.dz + places.dz_at, write, rates, weights, gate_sums,
              positions, total);
      __syncwarp();
      float dB[4] = {}, dC[4] = {}, b_sum[4] = {}, rate_sum[4] = {};
      places.saved_at += step ? -places.saved_step : to_next;
      const T *saved = places.saved + places.saved_at;
      if (step == a.L - 1)  // one step, as where a CLS token follows whole eights
        run_steps<1>(w, last, saved, positions, b_sum, rate_sum, dB, dC);
      else
        run_steps<EIGHT>(w, last, saved, positions, b_sum, rate_sum, dB, dC);
      finish(c, positions, b_sum, rate_sum, places.du + places.du_at, places.ddt + places.du_at, write, total);
      places.dz_at -= places.dz_step; places.du_at -= places.du_step;
      float *of_block = sums_to + BUFFER(parity) * WARPS * BATCH_SUMS + block * EIGHT * SUMS_ROW;
      put_sums(of_block, dB);
      put_sums(of_block + N, dC);
      __syncwarp();
    }
    sums_at = (clip * a.L + sign * s0) * 2 * N;
    sums_steps = a.L - s0;
    now = STAGE - now; parity ^= 1;
    if ((s0 -= STEPS) >= 0) continue;
    if (++clip == clips) break;
    s0 = last_batch;
    places.to_clip(clip, a);
    if (clip + 1 == clips) to_next = 0;
    w.start();
  }
  __syncthreads();
  store_batch_sums(sums + BUFFER(parity ^ 1) * WARPS * BATCH_SUMS, dbc + sums_at, sign * 2 * N, sums_steps, thread);
  long long of_share = (long long)share * (a.R * a.K) + dir_block;
  store_channel_sums(a, of_share, e0 + g, total, gate_sums, on && q == 0);
#if !TIED
  if (on) w.store_rate_sums(a.da + (of_share * a.E + e0 + g) * N + 4 * q);
#endif
}
