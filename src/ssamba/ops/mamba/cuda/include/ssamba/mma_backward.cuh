// Eight steps of the backward scan by tensor cores, for scan_backward_mma.cu: what is elementwise before and
// after the recurrences (mma_tied_decays.cuh, mma_free_decays.cuh), and the sums over channels.
//
// Lane 4 g + q holds states 4 q to 4 q + 3 of channels g and g + 8 (a tile of two states each, as in
// scan_forward_mma.cu), and in the elementwise part these channels at steps 2 q and 2 q + 1. Sums over states (du, the
// gradient of the decays' rates) and what comes into the states are products whose operands lie in that order. Those
// over channels (dB, dC) need states and channels exchanged: by shared memory or in registers.
//
// Given: MOVM, what is exchanged in registers: 0 nothing, 1 what dC needs, 2 what dB needs, 3 both. KEEP: 0 to 16, how
// many of a lane's decays of eight steps of two channels, four states each, are kept in shared memory from the states
// to the adjoint instead of computed again (TIED: none); 17: all of them in registers. WINDOWS: where products that add
// up channels get the weights of one step, zeros at all others: 1 shared memory, 0 selections in registers.
#pragma once

#include "ssamba/mma_backward_copies.cuh"
#include "ssamba/packed_math.cuh"
#include "ssamba/token_sums.cuh"

#define HOLD (KEEP > 16)        // whether decays stay in registers from the states to the adjoint
#define EIGHT 8                 // steps between saved states
#define RATE_ROW (DV * EIGHT + 4)  // delta (TIED: log2 r and r) of eight steps of a channel, padded; see DELTA_ROW
#define SUMS_ROW (2 * N + 4)    // dB and dC of a step, padded
// Weights of channels 0 to 7 of eight steps, then of 8 to 15. Step t has row t of its window of eight rows; the others
// are zeros.
#define WEIGHTS_TILE (EIGHT * EIGHT * 8)
#define WEIGHTS (2 * WEIGHTS_TILE)

// What the lanes of a warp exchange, and what they keep.
struct __align__(16) WarpShared {
  float rates[16 * RATE_ROW];  // delta (TIED: log2 r and r)
  T weights[WINDOWS ? 2 * WEIGHTS : 8];  // ds, then delta u
#if !TIED
  float4 kept[KEEP && KEEP <= 16 ? KEEP * 32 : 1];
  float2 gate[32];             // each lane's sums over time of dz: registers are scarce
#endif
#if MOVM != 3
  T rows[2][16 * 16];          // 16 states of each channel; the halves of channels 4 to 7 and 12 to 15 are swapped
#else
  T rows[1][8];                // nothing
#endif
};

// A lane's positions of eight steps; [2 i + j] is channel g + 8 i, step 2 q + j. Pairs are two steps, or two channels
// where `_t` says that steps and channels are exchanged: channels 2 q and 2 q + 1 (+ 8 i) of step g.
struct Positions {
  float delta[4], sigma[4];  // sigma: the derivative of delta by dt, a sigmoid; unless TIED, over delta
  unsigned u[2], ds[2], drive[2];
  unsigned ds_t[2], drive_t[2];  // unless WINDOWS
};

// A lane's sums over time of its two channels.
struct ChannelSums {
#if TIED
  float rate[2];  // of delta times the gradient of log2 r
#endif
  float skip[2], bias[2];
#if TOKEN_SUMS && TIED
  float gate[2];  // of dz
#endif
};

// Stores values of eight steps, rounded. to: this lane's first channel pair at step g of them.
__device__ __forceinline__ void store_pairs(const float *v, T *to, bool on) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    unsigned row = movmatrix_trans(pack2(v[2 * i], v[2 * i + 1]));
    if (on) i ? store_pair<8>(to, row) : store_pair<0>(to, row);
  }
}

// The sigmoid of v, small values of v included. Its exponential is that of softplus_poly.
__device__ __forceinline__ float exact_sigmoid(float v) {
  float e = ex2(-LOG2E * fabsf(v));
  return (v > 0.0f ? 1.0f : e) * rcp(1.0f + e);
}

// The sigmoid of v over its softplus, delta, which may be zero.
__device__ __forceinline__ float sigmoid_over(float v, float delta) {
  float e = ex2(-LOG2E * fabsf(v));
  return (v > 0.0f ? 1.0f : e) * rcp((1.0f + e) * delta + 1e-30f);
}

// ds, the gradient of the output before the gate, and in dz that of the gate's argument. zdy, y: pairs of steps.
__device__ __forceinline__ void gate_gradients(const unsigned *zdy, const unsigned *y, float gain, float *ds,
                                               float *dz) {
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    unsigned zs = at_least2(zdy[n / 2], MIN_GATE_INPUTS), dys = zdy[2 + n / 2], ys = y[n / 2];  // as gate_input
    float z = n % 2 ? high_half(zs) : low_half(zs), dy = n % 2 ? high_half(dys) : low_half(dys);
    float sig = 0.5f * tanh_approx(0.5f * z) + 0.5f;
    ds[n] = dy * (z * sig) * gain;
    dz[n] = dy * (n % 2 ? high_half(ys) : low_half(ys)) * gate_ratio(z, sig);
  }
}

// What is elementwise before the recurrences. stage, block: bytes of the batch's stage behind the first one, and which
// eight steps of it. gates: the row of z in the first stage; rates: where this lane's channel g lies; weights: step g,
// channels 2 q and 2 q + 1.
__device__ __forceinline__ void prepare(const ChannelParams &c, const FragmentAddrs &at, SmemAddr gates, int stage,
                                        int block, float gain, bool gate, T *dz_at, bool write, float *rates,
                                        T *weights, float2 *gate_sums, Positions &to, ChannelSums &sums) {
  Elementwise work;
  unsigned zdy[4], y[2];
  float ds[4], dz[4];
  FragmentAddrs here = at;
  int rows = stage + block * (2 * EIGHT * XR);
  here.before = smem_bytes(at.before, rows);
  here.low = smem_bytes(at.low, stage + block * (2 * EIGHT * LR));
  gates = smem_bytes(gates, rows);
  work.read(c, here, 0, 0);
  ldmatrix_x4_trans(zdy, gates);
  ldmatrix_x2_trans(y, smem_offset(gates, 2 * ROWS_OF));
  work.convolve<0>(c);
  work.convolve<1>(c);
  silu2_of_halves(work.v[0], work.v[1]);
  silu2_of_halves(work.v[2], work.v[3]);
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    to.delta[n] = softplus_poly(work.dt[n]);
    to.sigma[n] = TIED ? exact_sigmoid(work.dt[n]) : sigmoid_over(work.dt[n], to.delta[n]);
  }
  gate_gradients(zdy, y, gain, ds, dz);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float *u = work.v + 2 * i;
#if TIED
    float lo = to.delta[2 * i] * c.rate[i], hi = to.delta[2 * i + 1] * c.rate[i];
    *(float4 *)(rates + i * 8 * RATE_ROW) = make_float4(lo, ex2(lo), hi, ex2(hi));
#else
    *(float2 *)(rates + i * 8 * RATE_ROW) = make_float2(to.delta[2 * i], to.delta[2 * i + 1]);
#endif
    to.u[i] = pack2(u[0], u[1]);
    to.ds[i] = pack2(ds[2 * i], ds[2 * i + 1]);
    to.drive[i] = pack2_finite(to.delta[2 * i] * u[0], to.delta[2 * i + 1] * u[1]);
    to.ds_t[i] = movmatrix_trans(to.ds[i]);
    to.drive_t[i] = movmatrix_trans(to.drive[i]);
    if (WINDOWS) {
      *(unsigned *)(weights + i * WEIGHTS_TILE) = to.ds_t[i];
      *(unsigned *)(weights + WEIGHTS + i * WEIGHTS_TILE) = to.drive_t[i];
    }
    sums.skip[i] += ds[2 * i] * u[0] + ds[2 * i + 1] * u[1];
  }
  if (gate) store_pairs(dz, dz_at, write);
#if TOKEN_SUMS && TIED  // steps beyond the sequence have zeros
  if (gate) { sums.gate[0] += dz[0] + dz[1]; sums.gate[1] += dz[2] + dz[3]; }
#elif TOKEN_SUMS  // of the second direction nobody reads them
  float2 before = *gate_sums;
  *gate_sums = make_float2(before.x + dz[0] + dz[1], before.y + dz[2] + dz[3]);
#endif
}

// How a warp's recurrences exchange states and channels. Of a lane's eight values, [4 j + 2 i + k] is state
// 4 q + 2 j + k of channel g + 8 i; pairs [2 j + i] are its two states in 16 bits.
struct Exchange {
  T *row_to;          // where this lane's states of channel g go, to be exchanged
  SmemAddr row_from;  // the row of ldmatrix for them
  SmemAddr windows;   // and for weights
  int g, never;       // never: positive, which the compiler does not know; as all threads have it, they stay together

  __device__ __forceinline__ void init(T *rows, T *weights, int lane) {
    int q = lane % 4, row = lane / 16 * 8 + lane % 8;
    g = lane / 4;
    row_to = rows + g * 16 + (q / 2 ^ (g / 4 & 1)) * 8 + q % 2 * 4;
    windows = smem_addr(weights + lane / 8 % 2 * WEIGHTS_TILE + lane / 16 * 64 + lane % 8 * 8);
    // Matrices: states 0 to 7 and 8 to 15 of channels 0 to 7, then of 8 to 15.
    row_from = smem_addr(rows + row * 16 + (lane / 8 % 2 ^ (row / 4 & 1)) * 8);
  }
  // The weights of step t, in a pair of steps that is loaded at its first one; which: ds or delta u, and `all` of it.
  __device__ __forceinline__ void select(int t, bool first, int which, const unsigned *all, unsigned *pair) const {
    if (WINDOWS && first) ldmatrix_x4(pair, smem_offset(windows, which * WEIGHTS + t / 2 * 2 * 64));
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (!WINDOWS) pair[t % 2 * 2 + i] = g == t ? all[i] : 0u;
  }
  // Adds up the channels: sums[states, step t] += values times the weights of step t. Buffers take turns, so that one
  // barrier a step keeps writes behind the reads of two steps ago.
  template <bool IN_REGISTERS>
  __device__ __forceinline__ void add_channels(int t, int buffer, const unsigned *pairs, const unsigned *weights,
                                               float *sums) {
    unsigned m[4];
    if constexpr (IN_REGISTERS) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        m[j] = movmatrix_trans(pairs[2 * j]); m[2 + j] = movmatrix_trans(pairs[2 * j + 1]);
      }
    } else {
      T *to = row_to + buffer * 256;
      *(uint2 *)to = make_uint2(pairs[0], pairs[2]);
      *(uint2 *)(to + 8 * 16) = make_uint2(pairs[1], pairs[3]);
      __syncwarp();
      ldmatrix_x4_trans(m, smem_offset(row_from, buffer * 256));
    }
    mma_m16n8k16(sums, m[0], m[1], m[2], m[3], weights[0], weights[1]);
  }
  __device__ __forceinline__ static void pack_pairs(const float *v, unsigned *pairs) {
#pragma unroll
    for (int n = 0; n < 4; ++n) pairs[n] = pack2(v[2 * n], v[2 * n + 1]);
  }
};

// What is elementwise after the recurrences: du and the gradient of dt before the softplus. rate_sum: sums over states
// of the gradient of the decays' log2, times delta and a state's rate unless TIED.
__device__ __forceinline__ void finish(const ChannelParams &c, const Positions &at, const float *b_sum,
                                       const float *rate_sum, T *du_at, T *ddt_at, bool write, ChannelSums &sums) {
  float du[4], ddt[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    int i = n / 2;
    float u = n % 2 ? high_half(at.u[i]) : low_half(at.u[i]), ds = n % 2 ? high_half(at.ds[i]) : low_half(at.ds[i]);
#if TIED
    ddt[n] = (rate_sum[n] * (c.rate[i] * LN2) + u * b_sum[n]) * at.sigma[n];
    du[n] = at.delta[n] * b_sum[n] + c.skip[i] * ds;
#else
    float drive_sum = at.delta[n] * b_sum[n];
    ddt[n] = (rate_sum[n] * LN2 + u * drive_sum) * at.sigma[n];
    du[n] = drive_sum + c.skip[i] * ds;
#endif
#if TIED
    sums.rate[i] += rate_sum[n] * at.delta[n];
#endif
    sums.bias[i] += ddt[n];
  }
  store_pairs(du, du_at, write);
  store_pairs(ddt, ddt_at, write);
}
