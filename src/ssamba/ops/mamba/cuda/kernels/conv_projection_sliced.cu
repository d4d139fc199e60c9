// Convolution, SiLU and projection as in conv_projection.cu, for few tokens: what counts is how long one block takes.
//
// SLICES warps share ROWS tokens of a direction and take turns at the groups of 16 channels, so a launch has more and
// shorter blocks; their sums meet in shared memory at the end and are added in a fixed order. STAGES parts of EC
// channels are under way at once, so memory's latency is paid once. What needs no x (the ends of clips) is computed
// while the first stages come.
//
// Given: those of conv_projection.cu, and ROWS (16 or 32), SLICES, STAGES (2 or more), EC (64 or 128).

#define THREADS (32 * WARPS)
#include "ssamba/conv_projection_tile.cuh"
#include "ssamba/programmatic_launch.cuh"

#define TOKENS (ROWS * WARPS / (DIRS * SLICES))
#define FRAGMENTS (HALVES * NT)        // of 16 tokens and 8 outputs: four values a lane

struct __align__(16) Stage {
  T x[(TOKENS + 2 * REACH) * XR], w[DIRS][NT * 8 * XR];  // rows from P on are never written: nobody reads their sums
  float tap[DIRS][EC * W], bias[DIRS][EC];
};

// A thread's share of the copies of EC channels: 8 channels of every AT_ONCE-th row of x and w, and a channel's taps
// and bias.
#define EACH (EC / 8)
#define AT_ONCE (THREADS / EACH)
#define X_ROUNDS ((TOKENS + 2 * REACH + AT_ONCE - 1) / AT_ONCE)
#define W_ROUNDS ((P + AT_ONCE - 1) / AT_ONCE)
#define TAP_ROUNDS ((DIRS * EC + THREADS - 1) / THREADS)
struct StageCopies {
  const T *x[X_ROUNDS], *w[DIRS * W_ROUNDS];
  const float *tap[TAP_ROUNDS], *bias[TAP_ROUNDS];
  int row, part, e, channels;          // e: channels sent for so far, of `channels`
  unsigned there;                      // bit i: row i * AT_ONCE of x exists

  __device__ __forceinline__ StageCopies(const ConvProjectionArgs &a, int b, int k, int t0)
      : row(threadIdx.x / EACH), part(threadIdx.x % EACH * 8), e(0), channels(a.E), there(0) {
    const T *first = a.x + b * a.xb + k * a.xk + part;
#pragma unroll
    for (int i = 0; i < X_ROUNDS; ++i) {
      int t = t0 - REACH + row + i * AT_ONCE;
      x[i] = first + t * a.xt;
      if (t >= 0 && t < a.L) there |= 1u << i;
    }
#pragma unroll
    for (int i = 0; i < DIRS * W_ROUNDS; ++i)
      w[i] = a.w + ((long long)(i / W_ROUNDS * a.K + k) * P + row + i % W_ROUNDS * AT_ONCE) * a.E + part;
#pragma unroll
    for (int i = 0; i < TAP_ROUNDS; ++i) {
      int n = threadIdx.x + i * THREADS;
      long long channel = (long long)(n / EC * a.K + k) * a.E + n % EC;
      tap[i] = a.conv_w + channel * W; bias[i] = a.conv_b + channel;
    }
  }
  // Sends for the next EC channels, or for nothing where there are no more.
  __device__ __forceinline__ void copy(Stage &stage) {
    if (e < channels) {
      bool in = e + part < channels;
      SmemAddr to = smem_addr(stage.x + row * XR + part);
#pragma unroll
      for (int i = 0; i < X_ROUNDS; ++i)
        if ((i + 1) * AT_ONCE <= TOKENS + 2 * REACH || row < TOKENS + 2 * REACH - i * AT_ONCE)
          cp_async<16>(smem_offset(to, i * AT_ONCE * XR), x[i] + e, in && (there >> i & 1));
      to = smem_addr(stage.w[0] + row * XR + part);
#pragma unroll
      for (int i = 0; i < DIRS * W_ROUNDS; ++i) {
        int from_row = i % W_ROUNDS * AT_ONCE;
        if (from_row + AT_ONCE <= P || row < P - from_row)
          cp_async<16>(smem_offset(to, (i / W_ROUNDS * NT * 8 + from_row) * XR), w[i] + e, in);
      }
#pragma unroll
      for (int i = 0; i < TAP_ROUNDS; ++i) {
        int n = threadIdx.x + i * THREADS;
        bool wanted = e + n % EC < channels;
        if (n < DIRS * EC) {
          cp_async<16>(smem_addr((const T *)(stage.tap[0] + n * W)), (const T *)(tap[i] + e * W), wanted);
          cp_async<4>(smem_addr((const T *)(stage.bias[0] + n)), (const T *)(bias[i] + e), wanted);
        }
      }
    }
    e += EC;
    cp_async_commit();
  }
};

// The sums of fragment f of the warps from `warp` on, every DIRS-th, in this order.
__device__ __forceinline__ float4 add_slices(const float4 *parts, int warp, int f, int lane) {
  float4 sum = parts[(warp * FRAGMENTS + f) * 32 + lane];
#pragma unroll
  for (int s = 1; s < SLICES; ++s) {
    float4 more = parts[((warp + s * DIRS) * FRAGMENTS + f) * 32 + lane];
    sum.x += more.x; sum.y += more.y; sum.z += more.z; sum.w += more.w;
  }
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) conv_proj(const ConvProjectionArgs a) {
  SHARED_BYTES(raw);
  Stage *stages = (Stage *)raw;
  float4 *parts = (float4 *)(stages + STAGES);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  int k = blockIdx.y, b = blockIdx.z, t0 = blockIdx.x * TOKENS;
  int r = warp % DIRS, slice = warp / DIRS % SLICES, warp_row = warp / (DIRS * SLICES) * ROWS;
  int sign = REVERSED(r, k) ? -1 : 1;
  wait_for_kernel_before();
  StageCopies copies(a, b, k, t0);
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) copies.copy(stages[i]);
  float sum[HALVES][NT][4];
#pragma unroll
  for (int i = 0; i < FRAGMENTS * 4; ++i) sum[i / (NT * 4)][i / 4 % NT][i % 4] = 0.0f;
  // This lane's row for ldmatrix: tokens 0-7, 8-15, then the same of the next 8 channels; outputs likewise.
  int x_at = (warp_row + REACH + lane % 16) * XR + lane / 16 * 8;
  int w_at = (lane / 16 * 8 + lane % 8) * XR + lane / 8 % 2 * 8;
  int first = (t0 + warp_row) % a.clip;
  bool within = first >= REACH && first + ROWS - 1 + REACH < a.clip;  // all tokens and neighbours are of one clip
  unsigned there = neighbours(first, a.clip, g, sign);
  int now = 0;
#pragma unroll 1
  for (int e0 = 0; e0 < a.E; e0 += EC) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    const Stage &stage = stages[now];
    int before = now ? now - 1 : STAGES - 1;
    SmemAddr x_row[W], w_row = smem_addr(stage.w[0] + r * NT * 8 * XR + w_at);
#pragma unroll
    for (int d = 0; d < W; ++d) x_row[d] = smem_addr(stage.x + x_at - d * sign * XR);
    const float *taps = stage.tap[0] + (r * EC + q * 2) * W, *biases = stage.bias[0] + r * EC + q * 2;
    for (int tile = slice * 16; tile < EC && e0 + tile < a.E; tile += SLICES * 16) {
      unsigned near[HALVES][W][4], u[HALVES][4];
      load_neighbours(near, x_row, tile, within, there);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 *tap = (const float4 *)(taps + (tile + half * 8) * W);
        float4 m = tap[0], n = tap[1];
        float2 bias = *(const float2 *)(biases + tile + half * 8);
#pragma unroll
        for (int h = 0; h < HALVES; ++h)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) u[h][i] = convolve(near[h], i, m, n, bias);
      }
      project(sum, u, smem_offset(w_row, tile));
    }
    copies.copy(stages[before]);
    now = now + 1 < STAGES ? now + 1 : 0;
  }
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) {
    const float *four = sum[f / NT][f % NT];
    parts[(warp * FRAGMENTS + f) * 32 + lane] = make_float4(four[0], four[1], four[2], four[3]);
  }
  __syncthreads();
  T *p = a.p + (((long long)(r * a.K + k) * a.B + b) * a.L + t0 + warp_row + g) * P + 2 * q;
#pragma unroll 1
  for (int f = slice; f < FRAGMENTS; f += SLICES) {
    float4 four = add_slices(parts, warp - slice * DIRS, f, lane);
    int row = f / NT * 16, output = f % NT * 8, left = a.L - (t0 + warp_row + row + g);
    if (output + 2 * q < P) {
      T *to = p + row * P + output;
      if (left > 0) *(unsigned *)to = pack2_finite(four.x, four.y);
      if (left > 8) *(unsigned *)(to + 8 * P) = pack2_finite(four.z, four.w);
    }
  }
}
