// The states from which the backward starts: every CKPT steps the state goes to memory in the activations' type, [R K,
// B, count, E, NP].
//
// The recurrence of scan_forward.cu with the same distribution of channels over lanes, without output: no C, no gate,
// no second direction to add. Only whole batches run: what follows the last saved state is not needed.

#include "ssamba/scan_recurrence.cuh"

// What a lane stores at once: at most 16 bytes.
#define PIECE (SPT * sizeof(T) < 16 ? SPT * sizeof(T) : 16)
struct __align__(PIECE) Piece { T v[PIECE / sizeof(T)]; };

__device__ __forceinline__ void save_state(T *to, const float *h) {
  constexpr int EACH = sizeof(Piece) / sizeof(T);
#pragma unroll
  for (int i = 0; i < SPT; i += EACH) {
    Piece piece;
#pragma unroll
    for (int v = 0; v < EACH; ++v) piece.v[v] = pack(h[i + v]);
    *(Piece *)(to + i) = piece;
  }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS) scan_states(const ScanArgs a) {
  __shared__ __align__(16) Low low[2][TT * RW];
  __shared__ __align__(16) float bc[2][TT * 2 * NP];
  __shared__ __align__(16) float wlow_all[WARPS][MMA ? KT * NT * 64 : RANK * CW];
  __shared__ __align__(16) float dts_all[WARPS][16 * CW];
  const auto [lane, warp, s, c, b, k, back, r, e0, e, on, dir_block, base] = lane_place(a);
  float *wlow = wlow_all[warp], *dts = dts_all[warp];
  for (int i = threadIdx.x; i < 2 * TT * 2 * NP; i += WARPS * 32) bc[0][i] = 0.0f;
  for (int i = threadIdx.x; i < 2 * TT * RW; i += WARPS * 32) low[0][i] = 0;
  put_weights(a, dir_block, e0, wlow, lane);

  long long ch = dir_block * a.E + e;
  float tap[W], conv_b = a.conv_b[ch], dt_b = a.dt_bias[ch], h[SPT], a2[RATES];
#pragma unroll
  for (int j = 0; j < W; ++j) tap[j] = a.conv_w[ch * W + j];
  if (TIED) a2[0] = -LOG2E * ex2(LOG2E * a.a_log[ch]);
#pragma unroll
  for (int i = 0; i < SPT; ++i) {
    if (!TIED) a2[i] = s * SPT + i < N ? -LOG2E * ex2(LOG2E * a.a_log[ch * N + s * SPT + i]) : 0.0f;
    h[i] = 0.0f;
  }
  const T *x_at = a.x + b * a.xb + k * a.xk + e + (back ? a.L - 1 : 0) * a.xt, *p_rows = a.p + base * a.L * P;
  int x_step = back ? -(int)a.xt : (int)a.xt, stop = (a.count - 1) * CKPT;
  T *to = a.ckpt + (base * a.count * a.E + e) * NP + s * SPT;

  float X[HIST + EW];
  T next[EW];
#pragma unroll
  for (int i = 0; i < HIST; ++i) {
    int step = (i - HIST) * LPC + s;
    X[i] = step >= 0 && step < a.L ? load(x_at[step * x_step]) : 0.0f;
  }
  TileLoader loader;
  if (stop > 0) {
    loader.fetch(p_rows, a.L, back, 0, stop);
#pragma unroll
    for (int i = 0; i < EW; ++i) next[i] = x_at[(i * LPC + s) * x_step];
  }
  __syncthreads();
  if (stop > 0) loader.put(low[0], bc[0]);
  for (int s0 = 0, buf = 0; s0 < stop; s0 += TT, buf ^= 1) {
    __syncthreads();
    bool more = s0 + TT < stop;
    if (more) loader.fetch(p_rows, a.L, back, s0 + TT, stop);
#pragma unroll 1
    for (int g = 0; g < min(TT, stop - s0); g += BATCH) {
      if (BATCH == 16 || g % 16 == 0) {
        __syncwarp();
        expand_dt(low[buf] + g * RW, wlow, dts, lane);
        __syncwarp();
      }
      if (g % CKPT == 0) {
        if (on) save_state(to, h);
        to += (long long)a.E * NP;
      }
#pragma unroll
      for (int i = 0; i < EW; ++i) X[HIST + i] = load(next[i]);
      if (s0 + g + BATCH < stop) {
#pragma unroll
        for (int i = 0; i < EW; ++i) next[i] = x_at[(s0 + g + BATCH + i * LPC + s) * x_step];
      }
      float delta[EW], drive[EW];
#pragma unroll
      for (int i = 0; i < EW; ++i) {
        delta[i] = softplus(dts[((BATCH < 16 ? g % 16 : 0) + i * LPC + s) * CW + c] + dt_b);
        drive[i] = delta[i] * activation(X, tap, conv_b, i, s);
      }
#pragma unroll
      for (int i = 0; i < HIST; ++i) X[i] = X[EW + i];
#pragma unroll
      for (int i = 0; i < BATCH; ++i) {
        float d = LPC == 1 ? delta[i] : __shfl_sync(0xffffffffu, delta[i / LPC], i % LPC, LPC);
        float f = LPC == 1 ? drive[i] : __shfl_sync(0xffffffffu, drive[i / LPC], i % LPC, LPC);
        const float *m = bc[buf] + (g + i) * 2 * NP + s * 2 * SPT;
        LOAD_DECAYS(d)
#pragma unroll
        for (int n = 0; n < SPT; ++n) h[n] = DECAY(d, n) * h[n] + f * m[n];
      }
    }
    if (more) loader.put(low[buf ^ 1], bc[buf ^ 1]);
  }
  if (on) save_state(to, h);
}
