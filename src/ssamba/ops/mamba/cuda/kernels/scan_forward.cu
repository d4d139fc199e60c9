// Forward scan, any type, number of states and tiling. scan_forward_mma.cu is the fast form of the common sizes.
//
// A warp processes CW = 32 / LPC channels; LPC lanes share a channel's states, SPT each. With LPC 1 a lane has a
// channel of its own: no shuffles, the fewest instructions. With LPC 8 there are eight times as many warps, which
// fills the GPU when batch times width is small. A block has WARPS * CW channels of one direction r and mixer k of one
// clip.
//
// Time goes in batches of BATCH steps (8 to 32). Each lane of a channel computes every LPC-th step elementwise (u,
// delta, gate, output), so no work is repeated; shuffles distribute delta and delta u, and the folded sum over states
// ends in the lane that computes the step. B and C come through shared memory, double buffered, with one barrier each
// 32 steps.
//
// PHASE 0: one direction, the whole sequence. Of two directions, each first runs over its half of the sequence (PHASE
// 1) and leaves ungated output; then each runs over the other half (PHASE 2), adds what the other direction left
// there, and applies the gate. With CHUNKED (defined or not) each half is cut in `count` chunks that are computed in
// parallel, as in scan_forward_mma.cu: PHASE 3 leaves the state at the end of each, as if it had begun with zeros, and
// its sum of delta, from which the other phases compute their first states.

#include "ssamba/scan_recurrence.cuh"

// How many steps direction r has in its first half.
__device__ __forceinline__ int first_half(const ScanArgs &a, int r) {
  return a.R == 1 ? a.L : (r ? a.L / 2 : (a.L + 1) / 2);
}

#define AHEAD 4                         // with so few, z and y are loaded a batch ahead, too
#define GATED (PHASE == 0 || PHASE == 2)

#ifdef CHUNKED
// The first step of a chunk: those below `count` are of the first half. The last one ends where the direction ends.
__device__ __forceinline__ int chunk_start(const ScanArgs &a, int chunk, int half) {
  int from = chunk < a.count ? 0 : half, steps = (chunk < a.count ? half : a.L) - from;
  int each = ((steps + a.count - 1) / a.count + TT - 1) / TT * TT;
  return from + min((chunk < a.count ? chunk : chunk - a.count) * each, steps);
}

// OWN_DT: a lane computes the low-rank products of its channel for a batch of steps itself, which takes half of the
// instructions of expand_dt without tensor cores.
#define OWN_DT (!MMA && LPC == 1 && RANK % 4 == 0)
__device__ __forceinline__ void own_dt(const Low *low, const float *wlow, float *dt, int lane) {
#pragma unroll
  for (int i = 0; i < BATCH; ++i) dt[i] = 0.0f;
#pragma unroll
  for (int k = 0; k < RANK; k += 4) {
    float w[4];
#pragma unroll
    for (int v = 0; v < 4; ++v) w[v] = wlow[(k + v) * CW + lane];
#pragma unroll
    for (int i = 0; i < BATCH; ++i) {
      float4 four = *(const float4 *)(low + i * RW + k);
      dt[i] += w[0] * four.x; dt[i] += w[1] * four.y; dt[i] += w[2] * four.z; dt[i] += w[3] * four.w;
    }
  }
}

// The states of a lane after the chunks before this one. a.da: end states of the chunks, a.dvec: their sums of delta.
__device__ __forceinline__ void first_states(const ScanArgs &a, int chunk, long long channel, int s, const float *a2,
                                             float *h) {
  long long channels = (long long)a.R * a.K * a.B * a.E;
#pragma unroll 1
  for (int before = 0; before < chunk; ++before, channel += channels) {
    float total = a.dvec[channel];
    LOAD_DECAYS(total)
#pragma unroll
    for (int i = 0; i < SPT; ++i)
      if (s * SPT + i < N) h[i] = DECAY(total, i) * h[i] + a.da[channel * N + s * SPT + i];
  }
}
#endif

extern "C" __global__ void __launch_bounds__(128, MIN_BLOCKS) scan_forward(const ScanArgs a) {
  __shared__ __align__(16) Low low[2][TT * RW];
  __shared__ __align__(16) float bc[2][TT * 2 * NP];
  __shared__ __align__(16) float wlow_all[WARPS][MMA ? KT * NT * 64 : RANK * CW];
  __shared__ __align__(16) float dts_all[WARPS][(BATCH > 16 ? BATCH : 16) * CW];
  const auto [lane, warp, s, c, b, k, back, r, e0, e, on, dir_block, base] = lane_place(a);
  float *wlow = wlow_all[warp], *dts = dts_all[warp];
  for (int i = threadIdx.x; i < 2 * TT * 2 * NP; i += 128) bc[0][i] = 0.0f;
  for (int i = threadIdx.x; i < 2 * TT * RW; i += 128) low[0][i] = 0;
  put_weights(a, dir_block, e0, wlow, lane);

#ifdef CHUNKED
  int half = first_half(a, r), chunk = blockIdx.z / a.R + (PHASE == 2 ? a.count : 0);
  int lo = chunk_start(a, chunk, half), hi = chunk_start(a, chunk + 1, half);
  float total = 0.0f;
#else
  int half = first_half(a, r), lo = PHASE == 2 ? half : 0, hi = PHASE == 1 ? half : a.L;
#endif
  long long ch = dir_block * a.E + e, state_at = (base * a.E + e) * N;
  float tap[W], conv_b = a.conv_b[ch], dt_b = a.dt_bias[ch], skip = a.skip[ch];
#pragma unroll
  for (int j = 0; j < W; ++j) tap[j] = a.conv_w[ch * W + j];
  float h[SPT], a2[RATES];
  if (TIED) a2[0] = -LOG2E * ex2(LOG2E * a.a_log[ch]);
#pragma unroll
  for (int i = 0; i < SPT; ++i) {
    int n = s * SPT + i;
    if (!TIED) a2[i] = n < N ? -LOG2E * ex2(LOG2E * a.a_log[ch * N + n]) : 0.0f;
#ifdef CHUNKED
    h[i] = 0.0f;
#else
    h[i] = PHASE == 2 && n < N ? a.state[state_at + n] : 0.0f;
#endif
  }
#ifdef CHUNKED
  if (PHASE != 3) first_states(a, chunk, base * a.E + e, s, a2, h);
#endif
  // Step s is token t_first + sign s. Pointers are at token t_first of this lane's channel.
  int t_first = back ? a.L - 1 : 0, sign = back ? -1 : 1;
  const T *x_at = a.x + b * a.xb + k * a.xk + e + t_first * a.xt;
  const T *z_at = a.z + b * a.zb + k * a.zk + e + t_first * a.zt;
  long long y_row = (long long)a.K * a.E, y_off = ((long long)b * a.L * a.K + k) * a.E + e + t_first * y_row;
  T *y_at = a.y + y_off;
  int x_step = sign * (int)a.xt, z_step = sign * (int)a.zt, y_step = sign * (int)y_row;
  const T *p_rows = a.p + base * a.L * P;

  float X[HIST + EW];  // x of this lane's steps: the last ones of the batch before, then this batch
  T next[EW];
#pragma unroll
  for (int i = 0; i < HIST; ++i) {
    int step = lo + (i - HIST) * LPC + s;
    X[i] = step >= 0 && step < a.L ? load(x_at[step * x_step]) : 0.0f;
  }
  T z_next[EW], other_next[EW];  // loaded a batch ahead, as x is, where that takes few registers
  TileLoader loader;
  if (lo < hi) {
    loader.fetch(p_rows, a.L, back, lo, hi);
#pragma unroll
    for (int i = 0; i < EW; ++i) {
      int step = min(lo + i * LPC + s, hi - 1);
      next[i] = x_at[step * x_step];
      if (EW <= AHEAD && GATED) z_next[i] = z_at[step * z_step];
      if (EW <= AHEAD && PHASE == 2) other_next[i] = y_at[step * y_step];
    }
  }
  __syncthreads();
  if (lo < hi) loader.put(low[0], bc[0]);
  int buf = 0;
  for (int s0 = lo; s0 < hi; s0 += TT, buf ^= 1) {
    __syncthreads();
    bool more = s0 + TT < hi;
    if (more) loader.fetch(p_rows, a.L, back, s0 + TT, hi);
    int stop = min(TT, hi - s0);
#pragma unroll 1
    for (int g = 0; g < stop; g += BATCH) {
#if OWN_DT
      float dt_own[BATCH];
      own_dt(low[buf] + g * RW, wlow, dt_own, lane);
#else
      if (BATCH >= 16 || g % 16 == 0) {
        __syncwarp();
        expand_dt(low[buf] + g * RW, wlow, dts, lane);
        if (BATCH > 16) expand_dt(low[buf] + (g + 16) * RW, wlow, dts + 16 * CW, lane);
        __syncwarp();
      }
#endif
      int left = hi - s0 - g;  // steps from here to the end
      float u[EW], delta[EW], drive[EW];
      T z[EW], other[EW];
#pragma unroll
      for (int i = 0; i < EW; ++i) {
        X[HIST + i] = load(next[i]);
        if (EW <= AHEAD) { z[i] = z_next[i]; other[i] = other_next[i]; }
      }
      if (left > BATCH) {
#pragma unroll
        for (int i = 0; i < EW; ++i) next[i] = x_at[(s0 + g + min(BATCH + i * LPC + s, left - 1)) * x_step];
      }
#pragma unroll
      for (int i = 0; i < EW; ++i) {
        int step = s0 + g + min((EW <= AHEAD ? BATCH : 0) + i * LPC + s, left - 1);
        T *zt = EW <= AHEAD ? z_next : z, *ot = EW <= AHEAD ? other_next : other;
        if (GATED) zt[i] = z_at[step * z_step];
        if (PHASE == 2) ot[i] = y_at[step * y_step];
      }
#pragma unroll
      for (int i = 0; i < EW; ++i) {
        u[i] = activation(X, tap, conv_b, i, s);
#if OWN_DT
        float dt = softplus(dt_own[i] + dt_b);
#else
        float dt = softplus(dts[((BATCH < 16 ? g % 16 : 0) + i * LPC + s) * CW + c] + dt_b);
#endif
        delta[i] = i * LPC + s < left ? dt : 0.0f;
        drive[i] = delta[i] * u[i];
#ifdef CHUNKED
        total += delta[i];
#endif
      }
#pragma unroll
      for (int i = 0; i < HIST; ++i) X[i] = X[EW + i];
#pragma unroll
      for (int i = 0; i < EW; ++i) {
        float sum[LPC];
#pragma unroll
        for (int j = 0; j < LPC; ++j) {
          float dj = LPC == 1 ? delta[i] : __shfl_sync(0xffffffffu, delta[i], j, LPC);
          float gj = LPC == 1 ? drive[i] : __shfl_sync(0xffffffffu, drive[i], j, LPC);
          const float *m = bc[buf] + (g + i * LPC + j) * 2 * NP + s * 2 * SPT;
          float bv[2 * SPT], acc = 0.0f;
          if constexpr (SPT == 1) *(float2 *)bv = *(const float2 *)m;
          else {
#pragma unroll
            for (int q = 0; q < SPT / 2; ++q) {
              float4 v = ((const float4 *)m)[q];
              bv[4 * q] = v.x; bv[4 * q + 1] = v.y; bv[4 * q + 2] = v.z; bv[4 * q + 3] = v.w;
            }
          }
          LOAD_DECAYS(dj)
#pragma unroll
          for (int n = 0; n < SPT; ++n) {
            h[n] = DECAY(dj, n) * h[n] + gj * bv[n];
            if (PHASE != 3) acc += h[n] * bv[SPT + n];
          }
          sum[j] = acc;
        }
        if (PHASE == 3) continue;
        fold<LPC, LPC / 2, 1>(sum, s);
        float y = sum[0] + skip * u[i];
        if (on && i * LPC + s < left) {
          int step = s0 + g + i * LPC + s;
          if (PHASE == 2) y = 0.5f * (y + load(other[i]));
          if (PHASE == 1) y_at[step * y_step] = pack(y);
          else {
            float zv = gate_input(load(z[i])), sig = sigmoid(zv);
            y_at[step * y_step] = pack(y * zv * sig);
          }
        }
      }
    }
    if (more) loader.put(low[buf ^ 1], bc[buf ^ 1]);
  }
#ifdef CHUNKED
  if (PHASE == 3) {
    long long channel = (long long)chunk * a.R * a.K * a.B * a.E + base * a.E + e;
#pragma unroll
    for (int d = 1; d < LPC; d *= 2) total += __shfl_xor_sync(0xffffffffu, total, d);
    if (on && s == 0) a.dvec[channel] = total;
#pragma unroll
    for (int i = 0; i < SPT; ++i)
      if (on && s * SPT + i < N) a.da[channel * N + s * SPT + i] = h[i];
  }
#else
  if (PHASE == 1 && on) {
#pragma unroll
    for (int i = 0; i < SPT; ++i)
      if (s * SPT + i < N) a.state[state_at + s * SPT + i] = h[i];
  }
#endif
}
