// Backward scan for 16-bit inputs where each lane has a channel of its own and there are at most 16 states.
//
// A warp processes 32 channels in tiles of 16 steps from the end. First u, delta and the output's gradient ds of all
// steps; then, eight steps at a time, the states again from the saved one into shared memory, and the adjoint
// recurrence.
//
// The sums over channels (dB, dC) are matrix products. At a step, dC = H ds: H the 16 states by 32 channels as 16-bit
// values, ds a column. Shared memory holds the states of one channel in a row; ldmatrix transposes them to the order
// of the product. The matrix b holds the columns of eight steps; of the eight columns of the result, lanes keep the
// one of their step. So a sum over 32 channels of 16 values costs six instructions. For dB the adjoint dh takes the
// place of the states, and drive = delta u that of ds. Each block writes its partial sums apart, without atomics.
//
// Given, besides the macros of tiles.cuh: WHOLE, whether every lane of every block has a channel.

#include "ssamba/channel_sums.cuh"
#include "ssamba/token_sums.cuh"

// The decays of a channel's states at a step. TIED: log2 r is a2[0] for each unit of delta, and da the sum for it.
#if TIED
#define RATES 1
#define DECAY(delta, i) decay[i]
#define LOAD_DECAYS(delta) \
  float decay[16];         \
  powers<16>((delta) * ch.a2[0], decay);
#else
#define RATES 16
#define DECAY(delta, i) ex2((delta) * ch.a2[i])
#define LOAD_DECAYS(delta)
#endif

// A lane's channel: its parameters, the adjoint state, and sums over time.
struct Channel {
  float tap[W], conv_b, dt_b, skip, dskip, dbias, dz_sum, a2[RATES], carry[16], da[RATES];
};

// Pointers to a lane's channel at some step, and the distances from one step to the next.
struct StepPointers {
  const T *x, *z, *dy, *y;
  T *dz;
  int x_step, z_step, y_step, dz_step;
  __device__ __forceinline__ void advance(int steps) {
    x += (long long)steps * x_step; z += (long long)steps * z_step; dz += (long long)steps * dz_step;
    dy += (long long)steps * y_step; y += (long long)steps * y_step;
  }
};

// Whether a lane writes the gate's gradient: direction 0 does. With one direction all lanes do, without a branch; those
// of channels that do not exist repeat the last one.
#define GATE_HERE (ALTERNATING || (on && r == 0))

// u, delta and ds of eight steps to shared memory and, if `gate`, the gate's gradient to memory. Unless FULL, only the
// first `left` of the steps exist.
template <bool FULL>
__device__ __forceinline__ void prepare(const StepPointers &at, Channel &ch, float *window, float *dts,
                                        unsigned *uds, int left, float gain, bool gate) {
  T x[HALF], z[HALF], dy[HALF], y[HALF];
#pragma unroll
  for (int j = 0; j < HALF; ++j) {
    long long step = FULL ? j : min(j, left - 1);
    x[j] = at.x[step * at.x_step]; z[j] = at.z[step * at.z_step]; dy[j] = at.dy[step * at.y_step];
  }
  if (gate) {
#pragma unroll
    for (int j = 0; j < HALF; ++j) y[j] = at.y[(long long)(FULL ? j : min(j, left - 1)) * at.y_step];
  }
#pragma unroll
  for (int j = 0; j < HALF; ++j) {
    bool live = FULL || j < left;
    window[W - 1 + j] = load(x[j]);
    float v = ch.conv_b, delta = softplus(dts[j * 32] + ch.dt_b);
#pragma unroll
    for (int d = 0; d < W; ++d) v += ch.tap[d] * window[j + d];
    float zv = gate_input(load(z[j])), sig = sigmoid(zv), g = load(dy[j]);
    dts[j * 32] = live ? delta : 0.0f;
    uds[j * 32] = live ? pack2(v * sigmoid(v), g * (zv * sig) * gain) : 0u;
    if (gate && live) {
      float dz = g * load(y[j]) * gate_ratio(zv, sig);
      at.dz[(long long)j * at.dz_step] = pack(dz);
      if (TOKEN_SUMS) ch.dz_sum += dz;
    }
  }
#pragma unroll
  for (int d = 0; d < W - 1; ++d) window[d] = window[HALF + d];
}

// The matrices b of the two products: ds and delta u of eight steps, in the order of sum_channels.
__device__ __forceinline__ void load_weights(const float *dts, const unsigned *uds, unsigned *ds, unsigned *drive,
                                             int lane) {
  int at = lane / 4 * 32 + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint2 v = *(const uint2 *)(uds + at + i * 8);
    float2 d = *(const float2 *)(dts + at + i * 8);
    ds[i] = v.x >> 16 | (v.y & 0xffff0000u);
    drive[i] = pack2(d.x * low_of(v.x), d.y * low_of(v.y));
  }
}

// The states of eight steps from the saved one: row j + 1 is the state after step j.
__device__ __forceinline__ void rebuild(const Channel &ch, const T *saved, char *rows, const float *dts,
                                        const unsigned *uds, const float *bc, int lane) {
  const uint4 *from = (const uint4 *)saved;
#pragma unroll
  for (int half = 0; half < 2; ++half) *(uint4 *)(rows + lane * 32 + (half ^ (lane / 4 & 1)) * 16) = from[half];
  float h[16];
  load_row(rows, lane, h);
#pragma unroll
  for (int j = 0; j < HALF; ++j) {
    float delta = dts[j * 32], drive = delta * low_of(uds[j * 32]);
    LOAD_DECAYS(delta)
#pragma unroll
    for (int i = 0; i < 16; ++i) h[i] = DECAY(delta, i) * h[i] + drive * bc[j * 32 + i];
    store_row(rows + (j + 1) * ROW, lane, h);
  }
}

// Eight steps of the adjoint recurrence. In the end row j + 1 is the gradient of the state after step j. Unless FULL,
// only the first `left` of the steps exist.
template <bool FULL>
__device__ __forceinline__ void adjoint(Channel &ch, char *rows, const float *dts, const unsigned *uds,
                                        const float *bc, T *du_at, T *ddt_at, int e_step, int left, int lane) {
#pragma unroll
  for (int j = HALF - 1; j >= 0; --j) {
    float delta = dts[j * 32], u = low_of(uds[j * 32]), ds = high_of(uds[j * 32]);
    float h[16], dh[16], s1[2] = {0.0f, 0.0f}, s2[2] = {0.0f, 0.0f};
    load_row(rows + j * ROW, lane, h);
    LOAD_DECAYS(delta)
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      dh[i] = ch.carry[i] + bc[j * 32 + 16 + i] * ds;
      s1[i % 2] += dh[i] * bc[j * 32 + i];
      ch.carry[i] = dh[i] * DECAY(delta, i);
      float kept = ch.carry[i] * h[i];
#if TIED
      s2[i % 2] += kept * (i + 1);
#else
      s2[i % 2] += kept * ch.a2[i];
      ch.da[i] += kept * delta;
#endif
    }
#if TIED
    s2[0] = (s2[0] + s2[1]) * ch.a2[0]; s2[1] = 0.0f;
    ch.da[0] += s2[0] * delta;
#endif
    store_row(rows + (j + 1) * ROW, lane, dh);
    float b_sum = s1[0] + s1[1], ddt = ((s2[0] + s2[1]) * LN2 + u * b_sum) * sigmoid_of_softplus(delta);
    ch.dskip += ds * u;
    ch.dbias += ddt;
    if (FULL || j < left) {
      du_at[j * e_step] = pack(delta * b_sum + ch.skip * ds);
      ddt_at[j * e_step] = pack(ddt);
    }
  }
}

__device__ __forceinline__ void load_channel(const ScanArgs &a, long long at, Channel &ch) {
  ch.conv_b = a.conv_b[at]; ch.dt_b = a.dt_bias[at]; ch.skip = a.skip[at];
  ch.dskip = ch.dbias = ch.dz_sum = 0.0f;
#pragma unroll
  for (int j = 0; j < W; ++j) ch.tap[j] = a.conv_w[at * W + j];
#if TIED
  ch.a2[0] = -LOG2E * ex2(LOG2E * a.a_log[at]);
  ch.da[0] = 0.0f;
#pragma unroll
  for (int i = 0; i < 16; ++i) ch.carry[i] = 0.0f;
#else
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    ch.a2[i] = i < N ? -LOG2E * ex2(LOG2E * a.a_log[at * N + i]) : 0.0f;
    ch.carry[i] = ch.da[i] = 0.0f;
  }
#endif
}

__device__ __forceinline__ void store_channel_sums(const ScanArgs &a, long long dir_block, int b, int e,
                                                   const Channel &ch) {
  long long to = (long long)b * (a.R * a.K) + dir_block;
#if TIED
  a.da[to * a.E + e] = ch.da[0] * LN2;
#else
#pragma unroll
  for (int i = 0; i < 16; ++i)
    if (i < N) a.da[(to * a.E + e) * N + i] = ch.da[i] * ch.a2[i] * LN2;
#endif
  a.dvec[to * VECTORS * a.E + e] = ch.dskip;
  a.dvec[to * VECTORS * a.E + a.E + e] = ch.dbias;
  if (TOKEN_SUMS) a.dvec[to * VECTORS * a.E + 2 * a.E + e] = ch.dz_sum;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS) scan_backward(const ScanArgs a) {
  SHARED_BYTES(shared);
  Low *low = (Low *)shared;                                             // [2][16][RW]
  float *bc = (float *)(shared + LOW_BYTES);                            // [2][16][32]
  char *own = shared + LOW_BYTES + 2 * TT * 2 * NP * 4;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *wlow = (float *)(own + warp * OWN_BYTES), *dts = (float *)(own + warp * OWN_BYTES + WEIGHT_BYTES);
  unsigned *uds = (unsigned *)(dts + 32 * TT);                          // u and ds, 16 bits each
  char *rows_at = (char *)(uds + 32 * TT);                              // [9][ROW]
  int b = blockIdx.y / a.K, k = blockIdx.y % a.K, r = blockIdx.z, back = REVERSED(r, k);
  int e0 = (blockIdx.x * WARPS + warp) * 32, e = e0 + lane;
  bool on = e < a.E;
  if (!on) e = a.E - 1;
  long long dir_block = (long long)r * a.K + k, base = dir_block * a.B + b;
  for (int i = threadIdx.x; i < 2 * TT * 2 * NP; i += WARPS * 32) bc[i] = 0.0f;
  for (int i = threadIdx.x; i < 2 * 16 * RW; i += WARPS * 32) low[i] = 0;
  put_weights(a, dir_block, e0, wlow, lane);
  Channel ch;
  load_channel(a, dir_block * a.E + e, ch);

  int first = back ? a.L - 1 : 0, sign = back ? -1 : 1, e_step = sign * a.E;
  long long y_row = (long long)a.K * a.E, y_off = ((long long)b * a.L * a.K + k) * a.E + e + first * y_row;
  const T *p_rows = a.p + base * a.L * P;
  int s0 = (a.L - 1) / TT * TT;
  StepPointers at = {a.x + b * a.xb + k * a.xk + e + first * a.xt, a.z + b * a.zb + k * a.zk + e + first * a.zt,
              a.dy + y_off, a.y + y_off, a.dz + b * a.dzb + k * a.dzk + e + first * a.dzt,
              sign * (int)a.xt, sign * (int)a.zt, sign * (int)y_row, sign * (int)a.dzt};
  at.advance(s0);
  float gain = !on ? 0.0f : a.R == 2 ? 0.5f : 1.0f;
  T *du_at = a.du + (base * a.L + first) * a.E + e, *ddt_at = a.ddt + (base * a.L + first) * a.E + e;
  T *dbc_at = a.dbc + ((blockIdx.x * (long long)(a.R * a.K * a.B) + base) * a.L + first) * 2 * N;

  TileLoader loader;
  loader.fetch(p_rows, a.L, back, s0, a.L);
  __syncthreads();
  loader.put(low, bc);
  for (int buf = 0; s0 >= 0; s0 -= TT, buf ^= 1) {
    int steps = min(TT, a.L - s0);
    const float *bct = bc + buf * TT * 2 * NP;
    __syncthreads();
    if (s0 > 0) loader.fetch(p_rows, a.L, back, s0 - TT, a.L);
    expand_dt(low + buf * 16 * RW, wlow, dts, lane);
    __syncwarp();
    float window[W - 1 + HALF];
#pragma unroll
    for (int d = 0; d < W - 1; ++d) {
      int back = d - (W - 1);
      window[d] = s0 + back >= 0 ? load(at.x[(long long)back * at.x_step]) : 0.0f;
    }
    StepPointers here = at;
#pragma unroll 1
    for (int g = 0; g < steps; g += HALF) {
      float *delta = dts + g * 32 + lane;
      unsigned *ud = uds + g * 32 + lane;
      if (steps - g >= HALF) prepare<true>(here, ch, window, delta, ud, HALF, gain, GATE_HERE);
      else prepare<false>(here, ch, window, delta, ud, steps - g, gain, GATE_HERE);
      here.advance(HALF);
    }
    at.advance(-TT);
#pragma unroll 1
    for (int g = (steps - 1) / HALF * HALF; g >= 0; g -= HALF) {
      unsigned ds[4], drive[4];
      float dB[4], dC[4];
      rebuild(ch, a.ckpt + ((base * a.count + (s0 + g) / HALF) * a.E + e) * NP, rows_at, dts + g * 32 + lane,
              uds + g * 32 + lane, bct + g * 32, lane);
      __syncwarp();
      load_weights(dts + g * 32, uds + g * 32, ds, drive, lane);
      sum_channels(rows_at + ROW, ds, dC, lane);
      __syncwarp();
#if WHOLE  // so no lane has to be kept from writing
      if (steps - g >= HALF)
        adjoint<true>(ch, rows_at, dts + g * 32 + lane, uds + g * 32 + lane, bct + g * 32, du_at + (s0 + g) * e_step,
                      ddt_at + (s0 + g) * e_step, e_step, HALF, lane);
      else
#endif
        adjoint<false>(ch, rows_at, dts + g * 32 + lane, uds + g * 32 + lane, bct + g * 32, du_at + (s0 + g) * e_step,
                       ddt_at + (s0 + g) * e_step, e_step, on ? steps - g : 0, lane);
      __syncwarp();
      load_weights(dts + g * 32, uds + g * 32, ds, drive, lane);
      sum_channels(rows_at + ROW, drive, dB, lane);
      __syncwarp();
      store_sums(dts + g * 32, 0, dB, lane);  // delta of these steps is no longer needed
      store_sums(dts + g * 32, 16, dC, lane);
    }
    __syncthreads();
    for (int n = threadIdx.x; n < steps * 32; n += WARPS * 32) {
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < WARPS; ++w) total += *(const float *)(own + w * OWN_BYTES + WEIGHT_BYTES + n * 4);
      int state = n % 16, is_c = n / 16 % 2;
      if (state < N) dbc_at[sign * (s0 + n / 32) * 2 * N + is_c * N + state] = pack(total);
    }
    if (s0 > 0) loader.put(low + (buf ^ 1) * 16 * RW, bc + (buf ^ 1) * TT * 2 * NP);
  }
  if (on) store_channel_sums(a, dir_block, b, e, ch);
}
