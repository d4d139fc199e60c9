// Eight steps of the backward scan by tensor cores, for scan_backward_mma.cu: what is elementwise, the states again,
// and the adjoint recurrence.
//
// Lane 4 g + q holds states 4 q to 4 q + 3 of channels g and g + 8 (a tile of two states each, as in
// scan_forward_mma.cu), and in the elementwise part these channels at steps 2 q and 2 q + 1. Sums over states (du, the
// gradient of log r) and what comes into the states are products whose operands lie in that order. Those over channels
// (dB, dC) need states and channels exchanged: by shared memory or in registers.
//
// Given: MOVM, what is exchanged in registers: 0 nothing, 1 what dC needs, 2 what dB needs, 3 both.
#pragma once

#include "ssamba/mma_elementwise.cuh"
#include "ssamba/packed_math.cuh"

#define EIGHT 8                 // steps between saved states
#define RATE_ROW (2 * EIGHT + 4)  // log2 r and r of eight steps of a channel, padded
#define SUMS_ROW (2 * N + 4)    // dB and dC of a step, padded

struct __align__(16) BackwardStage {
  Stage forward;  // x, the low-rank dt, B and C
  T z[STEPS * XR], dy[STEPS * XR], y[STEPS * XR];
};
#define GATE_AT ((int)sizeof(Stage) / 2)
#define ROWS_OF (STEPS * XR)
#define STAGE_VALUES (GATE_AT + 3 * ROWS_OF)
static_assert(sizeof(BackwardStage) == 2 * STAGE_VALUES, "offsets of the arrays of a stage");

// What the lanes of a warp exchange.
struct __align__(16) WarpShared {
  float rates[16 * RATE_ROW];  // log2 r and r
  T rows[2][16 * 16];          // 16 states of each channel; the halves of channels 4 to 7 and 12 to 15 are swapped
};

// Copies of a batch, from the last one to the first.
struct BackwardCopies {
  BatchCopies forward;
  const T *dy;
  bool gate;  // whether y is needed

  __device__ __forceinline__ void start(int thread, int channels, int L) {
    long long before = (long long)(thread / (CB / 8)) * forward.y_step + thread % (CB / 8) * 8;
    forward.start(thread, channels, L);
    dy += before;
  }
  __device__ __forceinline__ void copy(SmemAddr stage, int s0, int L) {
    BatchCopies &f = forward;
    bool wanted = (unsigned)(s0 + f.row) < (unsigned)f.end;
    SmemAddr at = smem_offset(stage, GATE_AT + f.to);
    cp_async<16>(at, f.z, wanted);
    cp_async<16>(smem_offset(at, ROWS_OF), dy, wanted);
    if (gate) cp_async<16>(smem_offset(at, 2 * ROWS_OF), f.y, wanted);
    f.z -= f.z_step; f.y -= f.y_step; dy -= f.y_step;
    f.copy(stage, s0, L);  // moves x and p on, not back
    f.x -= 2 * f.x_step; f.p -= 2 * f.p_step;
  }
};

// A lane's positions of eight steps; [2 i + j] is channel g + 8 i, step 2 q + j. Pairs are two steps, or two channels
// where `_t` says that steps and channels are exchanged: channels 2 q and 2 q + 1 (+ 8 i) of step g.
struct Positions {
  float delta[4], sigma[4];  // sigma: the derivative of delta by dt, a sigmoid
  unsigned u[2], ds[2], drive[2], ds_t[2], drive_t[2];
};

// A lane's sums over time of its two channels.
struct ChannelSums {
  float rate[2], skip[2], bias[2];  // rate: of delta times the gradient of log2 r
};

// Stores values of eight steps, rounded. to: this lane's first channel pair at step g of them.
__device__ __forceinline__ void store_pairs(const float *v, T *to, bool on) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    unsigned row = movmatrix_trans(pack2(v[2 * i], v[2 * i + 1]));
    if (on) *(unsigned *)(to + 8 * i) = row;
  }
}

// The sigmoid of v, small values of v included. Its exponential is that of softplus_poly.
__device__ __forceinline__ float exact_sigmoid(float v) {
  float e = ex2(-LOG2E * fabsf(v));
  return (v > 0.0f ? 1.0f : e) * rcp(1.0f + e);
}

// ds, the gradient of the output before the gate, and in dz that of the gate's argument. zdy, y: pairs of steps.
__device__ __forceinline__ void gate_gradients(const unsigned *zdy, const unsigned *y, float gain, float *ds,
                                               float *dz) {
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    unsigned zs = zdy[n / 2], dys = zdy[2 + n / 2], ys = y[n / 2];
    float z = gate_input(n % 2 ? high_half(zs) : low_half(zs)), dy = n % 2 ? high_half(dys) : low_half(dys);
    float sig = 0.5f * tanh_approx(0.5f * z) + 0.5f;
    ds[n] = dy * (z * sig) * gain;
    dz[n] = dy * (n % 2 ? high_half(ys) : low_half(ys)) * gate_ratio(z, sig);
  }
}

// What is elementwise before the recurrences. rates: where this lane's channel g lies. gates: its row of z.
__device__ __forceinline__ void prepare(const ChannelParams &c, const FragmentAddrs &at, SmemAddr gates, float gain,
                                        bool gate, T *dz_at, bool write, float *rates, Positions &to,
                                        ChannelSums &sums) {
  Elementwise work;
  unsigned zdy[4], y[2];
  float ds[4], dz[4];
  work.read(c, at, 0);
  ldmatrix_x4_trans(zdy, gates);
  ldmatrix_x2_trans(y, smem_offset(gates, 2 * ROWS_OF));
  work.convolve<0>(c);
  work.convolve<1>(c);
  silu2_of_halves(work.v[0], work.v[1]);
  silu2_of_halves(work.v[2], work.v[3]);
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    to.delta[n] = softplus_poly(work.dt[n]);
    to.sigma[n] = exact_sigmoid(work.dt[n]);
  }
  gate_gradients(zdy, y, gain, ds, dz);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float lo = to.delta[2 * i] * c.rate[i], hi = to.delta[2 * i + 1] * c.rate[i], *u = work.v + 2 * i;
    *(float4 *)(rates + i * 8 * RATE_ROW) = make_float4(lo, ex2(lo), hi, ex2(hi));
    to.u[i] = pack2(u[0], u[1]);
    to.ds[i] = pack2(ds[2 * i], ds[2 * i + 1]);
    to.drive[i] = pack2(to.delta[2 * i] * u[0], to.delta[2 * i + 1] * u[1]);
    to.ds_t[i] = movmatrix_trans(to.ds[i]);
    to.drive_t[i] = movmatrix_trans(to.drive[i]);
    sums.skip[i] += ds[2 * i] * u[0] + ds[2 * i + 1] * u[1];
  }
  if (gate) store_pairs(dz, dz_at, write);
}

// A warp's recurrences. Of a lane's eight values, [4 j + 2 i + k] is state 4 q + 2 j + k of channel g + 8 i; pairs
// [2 j + i] are its two states in 16 bits.
struct Recurrence {
  SmemAddr b_rows;      // windows of B: see FragmentAddrs
  const float *rates;   // log2 r and r of channel g
  T *row_to;            // where this lane's states of channel g go, to be exchanged
  SmemAddr row_from;    // the row of ldmatrix for them
  float first;          // 4 q + 1
  unsigned weights[2];  // 4 q + 1 to 4 q + 4
  int g;
  float carry[8];       // the adjoint state

  // r and r^first of a pair of steps, [channel][step]. Well before they are needed: special functions take their time.
  struct Rates {
    float r[2][2], power[2][2];
  };
  __device__ __forceinline__ void read_rates(int t, Rates &to) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float4 d = *(const float4 *)(rates + i * 8 * RATE_ROW + t / 2 * 4);
      to.r[i][0] = d.y; to.r[i][1] = d.w;
      to.power[i][0] = ex2(d.x * first); to.power[i][1] = ex2(d.z * first);
    }
  }
  // The decays of step t.
  __device__ __forceinline__ static void decays(int t, const Rates &of, float *decay) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float p = of.power[i][t % 2];
#pragma unroll
      for (int n = 0; n < 4; ++n, p *= of.r[i][t % 2]) decay[n / 2 * 4 + i * 2 + n % 2] = p;
    }
  }
  // Adds up the channels: sums[states, step t] += values times the weights of step t. Weights of other steps count as
  // zero. Buffers take turns, so that one barrier a step keeps writes behind the reads of two steps ago.
  template <bool IN_REGISTERS>
  __device__ __forceinline__ void add_channels(int t, int buffer, const unsigned *pairs, const unsigned *step_weights,
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
    mma_m16n8k16(sums, m[0], m[1], m[2], m[3], g == t ? step_weights[0] : 0u, g == t ? step_weights[1] : 0u);
  }
  __device__ __forceinline__ static void pack_pairs(const float *v, unsigned *pairs) {
#pragma unroll
    for (int n = 0; n < 4; ++n) pairs[n] = pack2(v[2 * n], v[2 * n + 1]);
  }

  // The states before each of the eight steps from the saved ones, and dC.
  __device__ __forceinline__ void rebuild(const uint2 *saved, const Positions &at, unsigned (*states)[4], float *dC) {
    float h[8];
#pragma unroll
    for (int i = 0; i < 2; ++i) { states[0][i] = saved[i].x; states[0][2 + i] = saved[i].y; }
#pragma unroll
    for (int n = 0; n < 4; ++n) { h[2 * n] = low_half(states[0][n]); h[2 * n + 1] = high_half(states[0][n]); }
    unsigned b[4];
    Rates d[2];  // of this pair of steps and of the next
    read_rates(0, d[0]);
#pragma unroll
    for (int t = 0; t < EIGHT; ++t) {
      float decay[8], into[8];
      if (t % 2 == 0) {
        ldmatrix_x4_trans(b, smem_offset(b_rows, 7 * t * 8));
        if (t < EIGHT - 2) read_rates(t + 2, d[t / 2 % 2 ^ 1]);
      }
      decays(t, d[t / 2 % 2], decay);
#pragma unroll
      for (int j = 0; j < 2; ++j) mma_m16n8k8_zero(into + 4 * j, at.drive[0], at.drive[1], b[t % 2 * 2 + j]);
#pragma unroll
      for (int n = 0; n < 8; ++n) h[n] = h[n] * decay[n] + into[n];
      unsigned pairs[4];
      pack_pairs(h, pairs);
      if (t < EIGHT - 1)
#pragma unroll
        for (int n = 0; n < 4; ++n) states[t + 1][n] = pairs[n];
      add_channels<(MOVM & 1) != 0>(t, t % 2, pairs, at.ds_t, dC);
    }
  }

  // The adjoint recurrence: sums over states of dh B, and of the gradient of log2 r (up to ln 2), and dB.
  __device__ __forceinline__ void adjoint(const unsigned (*states)[4], const Positions &at, float *b_sum,
                                          float *rate_sum, float *dB) {
    unsigned b[4], c[4];
    Rates d[2];
    read_rates(EIGHT - 1, d[1]);
#pragma unroll
    for (int t = EIGHT - 1; t >= 0; --t) {
      float decay[8];
      if (t % 2) {
        ldmatrix_x4_trans(c, smem_offset(b_rows, TILES_OF_STATES * SLOTS * 8 + 7 * (t - 1) * 8));
        ldmatrix_x4(b, smem_offset(b_rows, 7 * (t - 1) * 8));
        if (t > 1) read_rates(t - 2, d[t / 2 % 2 ^ 1]);
      }
      decays(t, d[t / 2 % 2], decay);
#pragma unroll
      for (int j = 0; j < 2; ++j) mma_m16n8k8(carry + 4 * j, at.ds[0], at.ds[1], c[t % 2 * 2 + j]);
      unsigned pairs[4];
      pack_pairs(carry, pairs);
      mma_m16n8k16(b_sum, pairs[0], pairs[1], pairs[2], pairs[3], b[t % 2 * 2], b[t % 2 * 2 + 1]);
      add_channels<(MOVM & 2) != 0>(t, (t + 1) % 2, pairs, at.drive_t, dB);
#pragma unroll
      for (int n = 0; n < 8; ++n) carry[n] *= decay[n];
      pack_pairs(carry, pairs);
#pragma unroll
      for (int n = 0; n < 4; ++n) pairs[n] = mul2(pairs[n], states[t][n]);
      mma_m16n8k16(rate_sum, pairs[0], pairs[1], pairs[2], pairs[3], g == t ? weights[0] : 0u,
                   g == t ? weights[1] : 0u);
    }
  }
};

// What is elementwise after the recurrences: du and the gradient of dt before the softplus.
__device__ __forceinline__ void finish(const ChannelParams &c, const Positions &at, const float *b_sum,
                                       const float *rate_sum, T *du_at, T *ddt_at, bool write, ChannelSums &sums) {
  float du[4], ddt[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    int i = n / 2;
    float u = n % 2 ? high_half(at.u[i]) : low_half(at.u[i]), ds = n % 2 ? high_half(at.ds[i]) : low_half(at.ds[i]);
    ddt[n] = (rate_sum[n] * (c.rate[i] * LN2) + u * b_sum[n]) * at.sigma[n];
    du[n] = at.delta[n] * b_sum[n] + c.skip[i] * ds;
    sums.rate[i] += rate_sum[n] * at.delta[n];
    sums.bias[i] += ddt[n];
  }
  store_pairs(du, du_at, write);
  store_pairs(ddt, ddt_at, write);
}
