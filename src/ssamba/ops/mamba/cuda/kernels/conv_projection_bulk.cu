// Convolution, SiLU and projection as in conv_projection.cu with RUNS, for GPUs with tensor maps (compute capability
// 9.0): copies cost no instructions of the warps, and no barrier of the block is left in the loop.
//
// One thread sends for a stage: a box of x and one of the projection's weights for each direction, of EC = 64 channels.
// They write rows of 128 bytes, swizzled, without the bank conflicts that 16-byte copies of threads have, and zeros for
// tokens and channels that do not exist. A lane's run is four tokens, so ldmatrix reads every fourth token: the map
// splits tokens into RUN-th ones (of a box: all first tokens of runs, then all second ones, ...), so that what it reads
// is eight adjacent rows.
//
// A warp goes on to the next stage as soon as that is there (`full`). Whichever warp is the last to leave a stage sends
// for what comes there next, so warps may be up to STAGES - 1 stages apart and none waits for a stage to be free. Taps
// and biases of all channels, halved, are in shared memory from the beginning.
//
// Given: those of conv_projection.cu, CHANNELS (E rounded up to EC), PART (E % EC), STAGES (2 or more), and UNROLL,
// groups of 16 channels in the loop's body.

#define ROWS 32
#define EC 64
#define XR EC                          // rows are swizzled instead of padded
#define THREADS (32 * WARPS)
#define RUNS 1
#define EXACT_TILES 1                  // the last eight outputs may be read alone
#include "ssamba/conv_projection_bulk_args.cuh"
#include "ssamba/conv_projection_runs.cuh"
#include "ssamba/ptx_sm90.cuh"
#include "ssamba/programmatic_launch.cuh"

#define TOKENS (ROWS * WARPS / DIRS)
#define GROUPS (TOKENS / RUN + 2)      // runs of a block, with one before and one after them
#define X_BYTES (GROUPS * RUN * EC * 2)
#define W_BYTES ((P + 7) / 8 * 1024)
#define STAGE (X_BYTES + DIRS * W_BYTES)
#define TAPS_AT (STAGES * STAGE)
#define BIAS_AT (TAPS_AT + DIRS * CHANNELS * W * 4)
#define BARS_AT (BIAS_AT + DIRS * CHANNELS * 4)  // of each stage: an mbarrier, then counters of warps
#define OUT_RUN (RUN * P * 2 + 16)     // bytes of a run's results at the end
static_assert(WARPS * ROWS / RUN * OUT_RUN <= STAGES * STAGE, "results take the place of stages");
static_assert(X_BYTES % 1024 == 0, "the swizzle repeats every 1,024 bytes");

// Sends for EC channels from e0 on; for one thread. Weights first: they do not come from the kernel before.
__device__ __forceinline__ void send_x(const ConvProjectionBulkArgs &a, SmemAddr stage, SmemAddr full, int e0) {
  tma_load_5d(stage, &a.x, e0, (int)(blockIdx.x * (TOKENS / RUN)) - 1, 0, blockIdx.y, blockIdx.z, full);
}
__device__ __forceinline__ void send_weights(const ConvProjectionBulkArgs &a, SmemAddr stage, SmemAddr full, int e0) {
  mbarrier_expect_tx(full, X_BYTES + DIRS * P * EC * 2);
#pragma unroll
  for (int r = 0; r < DIRS; ++r)
    tma_load_2d(smem_bytes(stage, X_BYTES + r * W_BYTES), &a.w, e0, (r * a.K + blockIdx.y) * P, full);
}

// Puts half of all taps and biases into shared memory; a thread's loads of four channels are under way at once.
#define TAPS_AT_ONCE 4
__device__ __forceinline__ void put_taps(const ConvProjectionBulkArgs &a, int k, char *raw) {
#pragma unroll 1
  for (int i0 = threadIdx.x; i0 < DIRS * CHANNELS; i0 += TAPS_AT_ONCE * THREADS) {
    float4 taps[TAPS_AT_ONCE];
    float biases[TAPS_AT_ONCE];
#pragma unroll
    for (int n = 0; n < TAPS_AT_ONCE; ++n) {
      int i = i0 + n * THREADS, channel = i % CHANNELS;
      long long from = (long long)(i / CHANNELS * a.K + k) * a.E + channel;
      bool there = i < DIRS * CHANNELS && (!PART || channel < a.E);
      taps[n] = there ? *(const float4 *)(a.conv_w + from * W) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      biases[n] = there ? a.conv_b[from] : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < TAPS_AT_ONCE; ++n) {
      int i = i0 + n * THREADS;
      if (i < DIRS * CHANNELS) {
        float4 four = taps[n];
        ((float4 *)(raw + TAPS_AT))[i] = make_float4(0.5f * four.x, 0.5f * four.y, 0.5f * four.z, 0.5f * four.w);
        ((float *)(raw + BIAS_AT))[i] = 0.5f * biases[n];
      }
    }
  }
}

// Computes with the EC channels of a stage.
template <bool WITHIN>
__device__ __forceinline__ void channels(float (*sum)[NT][4], const ConvProjectionBulkArgs &a, int e0, SmemAddr stage,
                                         const int *x_at, int w_at, const float *tap, const float *bias,
                                         unsigned there) {
#pragma unroll UNROLL
  for (int tile = 0; tile < EC; tile += 16) {
    if (PART && e0 + tile >= a.E) break;
    unsigned x[W][4], u[HALVES][4];
#pragma unroll
    for (int i = 0; i < 3; ++i) ldmatrix_x4(x[i], smem_bytes(stage, x_at[i]) ^ tile * 2);
    ldmatrix_x2(x[3], smem_bytes(stage, x_at[3]) ^ tile * 2);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      convolve_run<WITHIN>(u, x, half, tap + (tile + half * 8) * W, bias + tile + half * 8, there);
    project(sum, u, smem_bytes(stage, w_at) ^ tile * 2);
  }
}

// Stores the sums of a warp's tokens, from token t0 on, in pieces of 16 bytes: they meet in `own`, its part of shared
// memory, where 16 bytes after every run keep them free of bank conflicts. Runs exist or do not, as a whole.
__device__ __forceinline__ void store(const ConvProjectionBulkArgs &a, const float (*sum)[NT][4], char *own, int r,
                                      int t0, int lane, int sign) {
  int g = lane / 4, q = lane % 4;
#pragma unroll
  for (int n = 0; n < RUN; ++n)
#pragma unroll
    for (int j = 0; j < NT; ++j) {
      const float *two = sum[n / 2][j] + n % 2 * 2;
      int at = g * OUT_RUN + (sign > 0 ? n : RUN - 1 - n) * P * 2 + (j * 8 + 2 * q) * 2;
      if (j * 8 + 2 * q < P) *(unsigned *)(own + at) = pack2_finite(two[0], two[1]);
    }
  __syncwarp();
  T *to = a.p + (((long long)(r * a.K + blockIdx.y) * a.B + blockIdx.z) * a.L + t0) * P;
  int pieces = min(ROWS, a.L - t0) / RUN * (P / 2);  // P / 2 of a run; none where a.L <= t0
#pragma unroll
  for (int i = 0; i < (ROWS / RUN * (P / 2) + 31) / 32; ++i) {
    int piece = i * 32 + lane;
    if (piece < pieces) ((uint4 *)to)[piece] = *(const uint4 *)(own + piece * 16 + piece / (P / 2) * 16);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    conv_proj(const __grid_constant__ ConvProjectionBulkArgs a) {
  SMEM_BYTES_1024(raw);
  SmemAddr shared = smem_addr((const T *)raw), bars = smem_bytes(shared, BARS_AT);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  int k = blockIdx.y, warp_row = warp / DIRS * ROWS, t0 = blockIdx.x * TOKENS + warp_row;
  int r = warp % DIRS, sign = REVERSED(r, k) ? -1 : 1;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(smem_bytes(bars, 8 * s), 1);
      ((int *)(raw + BARS_AT + 8 * STAGES))[s] = 0;
    }
    fence_mbarrier_init();
#pragma unroll
    for (int s = 0; s < STAGES; ++s)
      if (s * EC < a.E) send_weights(a, smem_bytes(shared, s * STAGE), smem_bytes(bars, 8 * s), s * EC);
    wait_for_kernel_before();  // what other threads read is weights, and they write when x has come
#pragma unroll
    for (int s = 0; s < STAGES; ++s)
      if (s * EC < a.E) send_x(a, smem_bytes(shared, s * STAGE), smem_bytes(bars, 8 * s), s * EC);
  }
  put_taps(a, k, raw);
  float sum[HALVES][NT][4];
#pragma unroll
  for (int i = 0; i < HALVES * NT * 4; ++i) sum[i / (NT * 4)][i / 4 % NT][i % 4] = 0.0f;
  // This lane's rows for ldmatrix in a stage; the 16 bytes at which it reads are swizzled by the row.
  int x_at[W], w_row = lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    int token = RUN + warp_row + run_token(lane, sign, run_slot(lane, i)), row = token % RUN * GROUPS + token / RUN;
    x_at[i] = row * 128 + ((run_part(lane) / 8 ^ row % 8) << 4);
  }
  int w_at = X_BYTES + r * W_BYTES + w_row * 128 + ((lane / 8 % 2 ^ w_row % 8) << 4);
  int first = t0 % a.clip;
  bool within = first >= REACH && first + ROWS - 1 + REACH < a.clip;  // all tokens and neighbours are of one clip
  unsigned there = neighbours(t0, a.clip, g, sign);
  const float *tap = (const float *)(raw + TAPS_AT) + (r * CHANNELS + q * 2) * W;
  const float *bias = (const float *)(raw + BIAS_AT) + r * CHANNELS + q * 2;
  __syncthreads();
  int now = 0, parity = 0;
#pragma unroll 1
  for (int e0 = 0; e0 < a.E; e0 += EC) {
    SmemAddr stage = smem_bytes(shared, now * STAGE), full = smem_bytes(bars, 8 * now);
    mbarrier_wait(full, parity);
    if (within) channels<true>(sum, a, e0, stage, x_at, w_at, tap, bias, there);
    else channels<false>(sum, a, e0, stage, x_at, w_at, tap, bias, there);
    tap += EC * W; bias += EC;
    __syncwarp();
    if (lane == 0 && last_of_round(smem_bytes(bars, 8 * STAGES + 4 * now), WARPS) && e0 + STAGES * EC < a.E)
      send_weights(a, stage, full, e0 + STAGES * EC), send_x(a, stage, full, e0 + STAGES * EC);
    if (++now == STAGES) { now = 0; parity ^= 1; }
  }
  __syncthreads();                       // nobody reads a stage any more, and none is on its way
  store(a, sum, raw + warp * (ROWS / RUN * OUT_RUN), r, t0, lane, sign);
}
