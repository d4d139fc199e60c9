// The recurrences of scan_backward_mma.cu where each state of a channel has a rate of its own.
//
// A lane's four states of two channels take eight exponentials a step. With log2 d = delta rate, the states leave
// g = log2 d d h to the adjoint, h before the step. The product of g and dh in 16 bits, of which lanes hold pairs, is
// what both other sums need: over states it gives delta times the gradient of delta, over time that of log(-A). The
// latter is a product with the identity matrix, since tensor cores add up 16-bit values in float32 in fewer
// instructions than others do.
#pragma once

#include "ssamba/mma_backward.cuh"

#define AGAIN (KEEP < 16)  // whether some decays are computed again

// A warp's recurrences.
struct Recurrence : Exchange {
  SmemAddr b_rows;       // windows of B: see FragmentAddrs
  const float *rates;    // delta of channel g
  float4 *kept;          // decays of this lane in shared memory
  float held[EIGHT][8];  // or, with HOLD, in registers
  unsigned identity[2];  // the matrix b of a product that adds up the matrix a
  float a2[8];           // log2 of the states' decay for each unit of delta
  float carry[8];        // the adjoint state
  float a_sum[8];        // sums over time

  __device__ __forceinline__ void init(const ScanArgs &a, WarpShared *own, long long channel, int lane) {
    int q = lane % 4;
    Exchange::init(own->rows[0], own->weights, lane);
    rates = own->rates + DELTA_ROW(g) * RATE_ROW;
    kept = own->kept + lane;
    identity[0] = pack2(g == 2 * q ? 1.0f : 0.0f, g == 2 * q + 1 ? 1.0f : 0.0f);
    identity[1] = per_thread(identity[0]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float4 log = *(const float4 *)(a.a_log + (channel + 8 * i) * N + 4 * q);
#pragma unroll
      for (int n = 0; n < 4; ++n) a2[n / 2 * 4 + i * 2 + n % 2] = -LOG2E * ex2(LOG2E * (&log.x)[n]);
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) a_sum[n] = 0.0f;
    start();
  }
  // To the last step of a clip.
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int n = 0; n < 8; ++n) carry[n] = 0.0f;
  }

  // delta of steps t to t + 3 of both channels.
  __device__ __forceinline__ void read_deltas(int t, float (*to)[4]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float4 four = *(const float4 *)(rates + i * 8 * RATE_ROW + t);
      to[i][0] = four.x; to[i][1] = four.y; to[i][2] = four.z; to[i][3] = four.w;
    }
  }
  // Row i of the decays of step t, of channel g + 8 i: where it is kept, if it is.
  __device__ __forceinline__ static constexpr bool keeps(int t, int i) { return 2 * t + i < KEEP; }
  __device__ __forceinline__ float4 *kept_at(int t, int i) const { return kept + (2 * t + i) * 32; }

  // Decays of step t; delta: of both channels.
  __device__ __forceinline__ void decays(int t, const float (*delta)[4], float *log, float *d) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      log[n] = delta[n / 2 % 2][t % 4] * a2[n];
      d[n] = ex2(log[n]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (!HOLD && keeps(t, i)) *kept_at(t, i) = make_float4(d[2 * i], d[2 * i + 1], d[4 + 2 * i], d[5 + 2 * i]);
#pragma unroll
    for (int n = 0; n < 8; ++n)
      if (HOLD) held[t][n] = d[n];
  }
  // carry times the decays of step t; delta: of both channels, where decays are not kept.
  __device__ __forceinline__ void decay_carry(int t, const float (*delta)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float4 d;
      if (!HOLD && keeps(t, i)) d = *kept_at(t, i);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        int at = n / 2 * 4 + i * 2 + n % 2;
        carry[at] *= HOLD ? held[t][at] : keeps(t, i) ? (&d.x)[n] : ex2(delta[i][t % 4] * a2[at]);
      }
    }
  }

  // From the saved states g of each of the first COUNT of eight steps, and dC.
  template <int COUNT>
  __device__ __forceinline__ void rebuild(const uint2 *saved, const Positions &at, unsigned (*gains)[4], float *dC) {
    unsigned pairs[4] = {saved[0].x, saved[1].x, saved[0].y, saved[1].y}, b[4], weights[4];
    float h[8], delta[2][4];
#pragma unroll
    for (int n = 0; n < 4; ++n) { h[2 * n] = low_half(pairs[n]); h[2 * n + 1] = high_half(pairs[n]); }
    float log[2][8], d[2][8];
    read_deltas(0, delta);
    decays(0, delta, log[0], d[0]);
#pragma unroll
    for (int t = 0; t < COUNT; ++t) {
      int now = t % 2;
      if (t % 2 == 0) ldmatrix_x4_trans(b, smem_offset(b_rows, WINDOW * t * 8));
      select(t, t % 2 == 0, 0, at.ds_t, weights);
#pragma unroll
      for (int n = 0; n < 8; ++n) h[n] *= d[now][n];
#pragma unroll
      for (int n = 0; n < 4; ++n)
        gains[t][n] = pack2_finite(h[2 * n] * log[now][2 * n], h[2 * n + 1] * log[now][2 * n + 1]);
#pragma unroll
      for (int j = 0; j < 2; ++j) mma_m16n8k8(h + 4 * j, at.drive[0], at.drive[1], b[t % 2 * 2 + j]);
      if (t == 3) read_deltas(4, delta);
      if (t < COUNT - 1) decays(t + 1, delta, log[now ^ 1], d[now ^ 1]);
      if (t == 2 || t == 5) end_stretch(never == -3 - t);
#pragma unroll
      for (int n = 0; n < 4; ++n) pairs[n] = pack2_finite(h[2 * n], h[2 * n + 1]);
      add_channels<(MOVM & 1) != 0>(t, t % 2, pairs, weights + t % 2 * 2, dC);
    }
  }

  // The adjoint recurrence of these steps: sums over states of dh B, and of dh g, and dB.
  template <int COUNT>
  __device__ __forceinline__ void adjoint(const unsigned (*gains)[4], const Positions &at, float *b_sum,
                                          float *rate_sum, float *dB) {
    unsigned b[4], c[4], weights[4], products[2][4] = {};  // with one step, those of a second one are zero
    float delta[2][4];
    const unsigned ones = pack2(1.0f, 1.0f);
#pragma unroll
    for (int t = COUNT - 1; t >= 0; --t) {
      if ((t % 4 == 3 || t == COUNT - 1) && !keeps(t, 1)) read_deltas(t / 4 * 4, delta);
      if (t % 2 || t == COUNT - 1) {
        ldmatrix_x4_trans(c, smem_offset(b_rows, TILES_OF_STATES * SLOTS * 8 + WINDOW * (t / 2 * 2) * 8));
        ldmatrix_x4(b, smem_offset(b_rows, WINDOW * (t / 2 * 2) * 8));
      }
      select(t, t % 2 || t == COUNT - 1, 1, at.drive_t, weights);
#pragma unroll
      for (int j = 0; j < 2; ++j) mma_m16n8k8(carry + 4 * j, at.ds[0], at.ds[1], c[t % 2 * 2 + j]);
      unsigned pairs[4];
      pack_pairs(carry, pairs);
      mma_m16n8k16(b_sum, pairs[0], pairs[1], pairs[2], pairs[3], b[t % 2 * 2], b[t % 2 * 2 + 1]);
      add_channels<(MOVM & 2) != 0>(t, (t + 1) % 2, pairs, weights + t % 2 * 2, dB);
#pragma unroll
      for (int n = 0; n < 4; ++n) products[n / 2][(t % 2 ^ 1) * 2 + n % 2] = mul2(pairs[n], gains[t][n]);
      if (t % 2 == 0)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const unsigned *a = products[j];
          mma_m16n8k16(rate_sum, a[0], a[1], a[2], a[3], g == t + 1 ? ones : 0u, g == t ? ones : 0u);
          mma_m16n8k16(a_sum + 4 * j, a[0], a[1], a[2], a[3], identity[0], identity[1]);
        }
      decay_carry(t, delta);
    }
  }

  // The gradient of log(-A), this lane's part of it. to: state 4 q of channel g.
  __device__ __forceinline__ void store_rate_sums(float *to) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float *v = a_sum + 2 * i;
      *(float4 *)(to + i * 8 * N) = make_float4(v[0] * LN2, v[1] * LN2, v[4] * LN2, v[5] * LN2);
    }
  }
};
