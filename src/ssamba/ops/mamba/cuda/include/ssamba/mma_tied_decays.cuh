// The recurrences of scan_backward_mma.cu where state n of a channel decays with r^(n + 1).
//
// A lane raises r to its first state's power and multiplies on, once for the states and, unless HOLD, once for the
// adjoint. The gradient of log r is a product over states: the pairs' products with the weights n + 1.
#pragma once

#include "ssamba/mma_backward.cuh"

// How many rows of decays, each of a step and a channel, are computed again: with HOLD, as registers require.
#define AGAIN (!HOLD ? 2 * EIGHT : KT > 2 ? 2 : 0)

// A warp's recurrences.
struct Recurrence : Exchange {
  SmemAddr b_rows;      // windows of B: see FragmentAddrs
  const float *rates;   // log2 r and r of channel g
  float first;          // 4 q + 1
  unsigned weights[2];  // 4 q + 1 to 4 q + 4
  float held[EIGHT][8];  // with HOLD, the decays of eight steps
  float carry[8];       // the adjoint state

  __device__ __forceinline__ void init(const ScanArgs &a, WarpShared *own, long long channel, int lane) {
    Exchange::init(own->rows[0], own->weights, lane);
    rates = own->rates + DELTA_ROW(g) * RATE_ROW;
    first = lane % 4 * 4 + 1;
    weights[0] = pack2(first, first + 1); weights[1] = pack2(first + 2, first + 3);
    start();
  }
  // To the last step of a clip.
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int n = 0; n < 8; ++n) carry[n] = 0.0f;
  }

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
  // Whether the decays of step t and channel g + 8 i are computed again.
  __device__ __forceinline__ static constexpr bool again(int t, int i) { return 2 * t + i < AGAIN; }

  // The states before each of the first COUNT of eight steps from the saved ones, and dC.
  template <int COUNT>
  __device__ __forceinline__ void rebuild(const uint2 *saved, const Positions &at, unsigned (*states)[4], float *dC) {
    float h[8];
#pragma unroll
    for (int i = 0; i < 2; ++i) { states[0][i] = saved[i].x; states[0][2 + i] = saved[i].y; }
#pragma unroll
    for (int n = 0; n < 4; ++n) { h[2 * n] = low_half(states[0][n]); h[2 * n + 1] = high_half(states[0][n]); }
    unsigned b[4], step[4];
    Rates d[2];  // of this pair of steps and of the next
    read_rates(0, d[0]);
#pragma unroll
    for (int t = 0; t < COUNT; ++t) {
      float decay[8], into[8];
      if (t % 2 == 0) {
        ldmatrix_x4_trans(b, smem_offset(b_rows, WINDOW * t * 8));
        if (t < COUNT - 2) read_rates(t + 2, d[t / 2 % 2 ^ 1]);
      }
      select(t, t % 2 == 0, 0, at.ds_t, step);
      decays(t, d[t / 2 % 2], decay);
#pragma unroll
      for (int n = 0; n < 8; ++n) held[t][n] = decay[n];
#pragma unroll
      for (int j = 0; j < 2; ++j) mma_m16n8k8_zero(into + 4 * j, at.drive[0], at.drive[1], b[t % 2 * 2 + j]);
#pragma unroll
      for (int n = 0; n < 8; ++n) h[n] = h[n] * decay[n] + into[n];
      unsigned pairs[4];
      pack_pairs(h, pairs);
      if (t < COUNT - 1)
#pragma unroll
        for (int n = 0; n < 4; ++n) states[t + 1][n] = pairs[n];
      add_channels<(MOVM & 1) != 0>(t, t % 2, pairs, step + t % 2 * 2, dC);
    }
  }

  // The adjoint recurrence of these steps: sums over states of dh B and of the gradient of log2 r (up to ln 2), and dB.
  template <int COUNT>
  __device__ __forceinline__ void adjoint(const unsigned (*states)[4], const Positions &at, float *b_sum,
                                          float *rate_sum, float *dB) {
    unsigned b[4], c[4], step[4];
    Rates d[2];
    if (again(COUNT - 1, 0)) read_rates(COUNT - 1, d[(COUNT - 1) / 2 % 2]);
#pragma unroll
    for (int t = COUNT - 1; t >= 0; --t) {
      float decay[8];
      if (t % 2 || t == COUNT - 1) {
        ldmatrix_x4_trans(c, smem_offset(b_rows, TILES_OF_STATES * SLOTS * 8 + WINDOW * (t / 2 * 2) * 8));
        ldmatrix_x4(b, smem_offset(b_rows, WINDOW * (t / 2 * 2) * 8));
        if (t > 1 && again(t - 3, 0)) read_rates(t - 2, d[t / 2 % 2 ^ 1]);
      }
      select(t, t % 2 || t == COUNT - 1, 1, at.drive_t, step);
      if (again(t, 0)) decays(t, d[t / 2 % 2], decay);
#pragma unroll
      for (int j = 0; j < 2; ++j) mma_m16n8k8(carry + 4 * j, at.ds[0], at.ds[1], c[t % 2 * 2 + j]);
      unsigned pairs[4];
      pack_pairs(carry, pairs);
      mma_m16n8k16(b_sum, pairs[0], pairs[1], pairs[2], pairs[3], b[t % 2 * 2], b[t % 2 * 2 + 1]);
      add_channels<(MOVM & 2) != 0>(t, (t + 1) % 2, pairs, step + t % 2 * 2, dB);
#pragma unroll
      for (int n = 0; n < 8; ++n) carry[n] *= again(t, n / 2 % 2) ? decay[n] : held[t][n];
      pack_pairs(carry, pairs);
#pragma unroll
      for (int n = 0; n < 4; ++n) pairs[n] = mul2(pairs[n], states[t][n]);
      mma_m16n8k16(rate_sum, pairs[0], pairs[1], pairs[2], pairs[3], g == t ? weights[0] : 0u,
                   g == t ? weights[1] : 0u);
    }
  }
};
