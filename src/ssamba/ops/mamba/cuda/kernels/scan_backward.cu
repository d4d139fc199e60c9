// Backward scan, any type, number of states and tiling. scan_backward_lanes.cu is the fast form of the common sizes.
//
// As in scan_forward.cu a warp processes CW channels, independently of the others but for the sums over channels (dB,
// dC). It goes through tiles of TT steps from the end. For a tile: u, delta and the output's gradient of all steps to
// shared memory; the states again from the saved one, each step's into a history in shared memory (16 bits for 16-bit
// inputs); then the adjoint recurrence. Each block writes its partial sums apart, without atomics.

#include "ssamba/tiles.cuh"
#include "ssamba/token_sums.cuh"

#define HALF_HISTORY (DTYPE != 0 && SPT % 2 == 0)
#define WORDS (HALF_HISTORY ? SPT / 2 : SPT)
#define ROW_BYTES (WORDS * 128 > 8 * NP ? WORDS * 128 : 8 * NP)

// Stores a lane's states as one row of the history, and loads them.
#if HALF_HISTORY
__device__ __forceinline__ void store_row(unsigned *row, int lane, const float *h) {
#pragma unroll
  for (int i = 0; i < WORDS; ++i) row[i * 32 + lane] = pack2(h[2 * i], h[2 * i + 1]);
}
__device__ __forceinline__ void load_row(const unsigned *row, int lane, float *h) {
#pragma unroll
  for (int i = 0; i < WORDS; ++i) {
    unsigned v = row[i * 32 + lane];
    h[2 * i] = load((T)(v & 0xffffu));
    h[2 * i + 1] = load((T)(v >> 16));
  }
}
#else
__device__ __forceinline__ void store_row(unsigned *row, int lane, const float *h) {
#pragma unroll
  for (int i = 0; i < WORDS; ++i) ((float *)row)[i * 32 + lane] = h[i];
}
__device__ __forceinline__ void load_row(const unsigned *row, int lane, float *h) {
#pragma unroll
  for (int i = 0; i < WORDS; ++i) h[i] = ((const float *)row)[i * 32 + lane];
}
#endif

// Sums out[2 SPT] (of one step, the gradient of B, then of C) over the warp's channels into to[s][2 SPT].
__device__ __forceinline__ void sum_channels(float *out, float *to, int lane, int s) {
  constexpr int LEFT = fold_left<2 * SPT, 16, LPC>();
  fold<2 * SPT, 16, LPC>(out, lane);
  int first = fold_at<2 * SPT, 16, LPC>(lane);
#pragma unroll
  for (int i = 0; i < LEFT; ++i) to[s * 2 * SPT + first + i] = out[i];
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS) scan_backward(const ScanArgs a) {
  SHARED_BYTES(shared);
  Low *low = (Low *)shared;                                             // [2][16 rows][RW]
  float *bc = (float *)(shared + LOW_BYTES);                            // [2][TT][2 NP]
  char *own = shared + LOW_BYTES + 2 * TT * 2 * NP * 4;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, s = lane % LPC, c = lane / LPC;
  own += warp * OWN_BYTES;
  float *wlow = (float *)own, *dts = (float *)(own + WEIGHT_BYTES);     // [16][CW]: the raw dt, then delta
  float *us = dts + 16 * CW, *dss = us + TT * CW;                       // u and the output's gradient
  char *history = (char *)(dss + TT * CW);                              // [TT][ROW_BYTES]; later a row is [2 NP] sums
  int b = blockIdx.y / a.K, k = blockIdx.y % a.K, r = blockIdx.z, back = REVERSED(r, k);
  int e0 = (blockIdx.x * WARPS + warp) * CW, e = e0 + c;
  bool on = e < a.E;
  if (!on) e = a.E - 1;
  long long dir_block = (long long)r * a.K + k, base = dir_block * a.B + b;
  for (int i = threadIdx.x; i < 2 * TT * 2 * NP; i += WARPS * 32) bc[i] = 0.0f;
  for (int i = threadIdx.x; i < 2 * 16 * RW; i += WARPS * 32) low[i] = 0;
  put_weights(a, dir_block, e0, wlow, lane);

  long long ch = dir_block * a.E + e;
  float tap[W], conv_b = a.conv_b[ch], dt_b = a.dt_bias[ch], skip = a.skip[ch], dskip = 0.0f, dbias = 0.0f;
  float dz_sum = 0.0f;
#pragma unroll
  for (int j = 0; j < W; ++j) tap[j] = a.conv_w[ch * W + j];
  float a2[SPT], carry[SPT], da[SPT], h[SPT];
#pragma unroll
  for (int i = 0; i < SPT; ++i) {
    int n = s * SPT + i;
    a2[i] = n < N ? -LOG2E * ex2(LOG2E * a.a_log[TIED ? ch : ch * N + n]) * (TIED ? n + 1 : 1) : 0.0f;
    carry[i] = da[i] = 0.0f;
  }
  int t_first = back ? a.L - 1 : 0, sign = back ? -1 : 1;
  const T *x_at = a.x + b * a.xb + k * a.xk + e + t_first * a.xt;
  const T *z_at = a.z + b * a.zb + k * a.zk + e + t_first * a.zt;
  long long y_row = (long long)a.K * a.E;
  long long y_off = ((long long)b * a.L * a.K + k) * a.E + e + t_first * y_row;
  const T *dy_at = a.dy + y_off, *y_at = a.y + y_off;
  T *dz_at = a.dz + b * a.dzb + k * a.dzk + e + t_first * a.dzt;
  T *du_at = a.du + (base * a.L + t_first) * a.E + e, *ddt_at = a.ddt + (base * a.L + t_first) * a.E + e;
  T *dbc_at = a.dbc + ((blockIdx.x * (long long)(a.R * a.K * a.B) + base) * a.L + t_first) * 2 * N;
  int x_step = sign * (int)a.xt, z_step = sign * (int)a.zt, y_step = sign * (int)y_row, e_step = sign * a.E;
  int dz_step = sign * (int)a.dzt;
  const T *p_rows = a.p + base * a.L * P;
  float gain = a.R == 2 ? 0.5f : 1.0f;
  bool gate = on && r == 0 && s == 0;  // whether this lane writes the gate's gradient: direction 0 does

  TileLoader loader;
  int tile = a.count - 1;
  loader.fetch(p_rows, a.L, back, tile * TT, a.L);
  __syncthreads();
  loader.put(low, bc);
  for (int buf = 0; tile >= 0; --tile, buf ^= 1) {
    int s0 = tile * TT, steps = min(TT, a.L - s0);
    const float *bct = bc + buf * TT * 2 * NP + s * 2 * SPT;
    __syncthreads();
    if (tile > 0) loader.fetch(p_rows, a.L, back, s0 - TT, a.L);
#pragma unroll
    for (int i = 0; i < SPT; ++i)
      h[i] = load(a.ckpt[((base * a.count + tile) * a.E + e) * NP + s * SPT + i]);
    expand_dt(low + buf * 16 * RW, wlow, dts, lane);
    __syncwarp();
    // Elementwise, eight steps at a time, so that their loads overlap.
    float window[W - 1 + 8];
#pragma unroll
    for (int d = 0; d < W - 1; ++d) {
      int step = s0 - (W - 1) + d;
      window[d] = step >= 0 ? load(x_at[step * x_step]) : 0.0f;
    }
#pragma unroll 1
    for (int g = 0; g < steps; g += 8) {
      T x[8], z[8], dy[8], y[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        int step = s0 + min(g + j, steps - 1);
        x[j] = x_at[step * x_step]; z[j] = z_at[step * z_step]; dy[j] = dy_at[step * y_step];
        if (gate) y[j] = y_at[step * y_step];
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        window[W - 1 + j] = load(x[j]);
        float v = conv_b, zv = gate_input(load(z[j])), sig = sigmoid(zv), dyv = load(dy[j]);
#pragma unroll
        for (int d = 0; d < W; ++d) v += tap[d] * window[j + d];
        float u = v * sigmoid(v), delta = softplus(dts[(g + j) * CW + c] + dt_b);
        __syncwarp();
        if (s == 0) {
          dts[(g + j) * CW + c] = delta;
          us[(g + j) * CW + c] = u;
          dss[(g + j) * CW + c] = on ? dyv * zv * sig * gain : 0.0f;
        }
        if (gate && g + j < steps) {
          float dz = dyv * load(y[j]) * gate_ratio(zv, sig);
          dz_at[(s0 + g + j) * dz_step] = pack(dz);
          if (TOKEN_SUMS) dz_sum += dz;
        }
      }
#pragma unroll
      for (int d = 0; d < W - 1; ++d) window[d] = window[8 + d];
    }
    __syncwarp();
#pragma unroll 2
    for (int j = 0; j < steps; ++j) {
      store_row((unsigned *)(history + j * ROW_BYTES), lane, h);
      if (j < steps - 1) {
        float delta = dts[j * CW + c], drive = delta * us[j * CW + c];
        const float *m = bct + j * 2 * NP;
#pragma unroll
        for (int i = 0; i < SPT; ++i) h[i] = ex2(delta * a2[i]) * h[i] + drive * m[i];
      }
    }
#pragma unroll 1
    for (int j = steps - 1; j >= 0; --j) {
      float delta = dts[j * CW + c], u = us[j * CW + c], ds = dss[j * CW + c], drive = delta * u;
      const float *m = bct + j * 2 * NP;
      float out[2 * SPT], s1 = 0.0f, s2 = 0.0f;
      __syncwarp();
      load_row((const unsigned *)(history + j * ROW_BYTES), lane, h);
      __syncwarp();
#pragma unroll
      for (int i = 0; i < SPT; ++i) {
        float decay = ex2(delta * a2[i]), dh = carry[i] + m[SPT + i] * ds;
        out[i] = dh * drive;
        s1 += dh * m[i];
        carry[i] = dh * decay;
        float kept = carry[i] * h[i];
        s2 += kept * a2[i];
        da[i] += kept * delta;
        out[SPT + i] = (decay * h[i] + drive * m[i]) * ds;
      }
      sum_channels(out, (float *)(history + j * ROW_BYTES), lane, s);
#pragma unroll
      for (int w = 1; w < LPC; w *= 2) {
        s1 += __shfl_xor_sync(0xffffffffu, s1, w);
        s2 += __shfl_xor_sync(0xffffffffu, s2, w);
      }
      float ddt = (s2 * LN2 + u * s1) * sigmoid_of_softplus(delta);
      dskip += ds * u;
      dbias += ddt;
      if (on && s == 0) {
        int step = s0 + j;
        du_at[step * e_step] = pack(delta * s1 + skip * ds);
        ddt_at[step * e_step] = pack(ddt);
      }
    }
    __syncthreads();
    for (int n = threadIdx.x; n < steps * 2 * NP; n += WARPS * 32) {
      int row = n / (2 * NP), v = n % (2 * NP), state = v / (2 * SPT) * SPT + v % SPT, is_c = v % (2 * SPT) >= SPT;
      const char *from = shared + LOW_BYTES + 2 * TT * 2 * NP * 4 + ((char *)history - own) + row * ROW_BYTES + v * 4;
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) total += *(const float *)(from + w * OWN_BYTES);
      if (state < N) dbc_at[sign * (s0 + row) * 2 * N + is_c * N + state] = pack(total);
    }
    if (tile > 0) loader.put(low + (buf ^ 1) * 16 * RW, bc + (buf ^ 1) * TT * 2 * NP);
  }
#if TIED
  float rate_sum = 0.0f;  // the gradient of the rate that all states share
#pragma unroll
  for (int i = 0; i < SPT; ++i) rate_sum += da[i] * a2[i] * LN2;
#pragma unroll
  for (int w = 1; w < LPC; w *= 2) rate_sum += __shfl_xor_sync(0xffffffffu, rate_sum, w);
#endif
  if (on) {
    long long to = (long long)b * (a.R * a.K) + dir_block;
#if TIED
    if (s == 0) a.da[to * a.E + e] = rate_sum;
#else
#pragma unroll
    for (int i = 0; i < SPT; ++i)
      if (s * SPT + i < N) a.da[(to * a.E + e) * N + s * SPT + i] = da[i] * a2[i] * LN2;
#endif
    if (s == 0) {
      a.dvec[to * VECTORS * a.E + e] = dskip;
      a.dvec[to * VECTORS * a.E + a.E + e] = dbias;
      if (TOKEN_SUMS) a.dvec[to * VECTORS * a.E + 2 * a.E + e] = dz_sum;
    }
  }
}
