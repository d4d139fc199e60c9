// LayerNorm, z's projection, gate and output projection of the mixer for Hopper (compute capability 9.0).
//
// A block processes tiles of 128 tokens. Two consumer warp groups have 64 tokens each and keep what they need of them
// in registers: the normalised residual stream (matrix a of z's product) and the accumulators of the output product.
// For 64 channels at a time z is computed, gates y, and is in that layout the matrix a of the output product. The
// groups take turns: while one's products run, the other applies the gate. One producer thread starts the copies of
// both weights' and y's next channels by tensor maps, in a ring of STAGES stages, across the border of two tiles, too.
//
// Two blocks are a cluster, and each loads half of every weight for both: once for 256 tokens.
//
// Given: D, width of the residual stream; X channels; STAGES; THREADS; WIDE, a float32 stream; JOIN, which adds the
// output to the stream (times `scale`) and normalises the sum; NEXT, which also multiplies that by the next pair's
// weights and stores x, the product, in its place (needs JOIN).

#include "ssamba/gated_output_tile.cuh"
#include "ssamba/programmatic_launch.cuh"

// A consumer warp group.
struct ConsumerGroup {
  const Args &a;
  char *raw;
  SmemAddr shared;
  int group, lane;
  PipelineState pipe;

  __device__ __forceinline__ SmemAddr at() const { return shared + pipe.stage * STAGE; }
  __device__ __forceinline__ void wait_full() { mbarrier_wait(shared + BARS_AT + pipe.stage * 8, pipe.phase); }
  // Frees the stage in both blocks of the cluster: the copies of either write to both.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane < 2) mbarrier_arrive(shared + BARS_AT + (STAGES + pipe.stage) * 8, lane);
    pipe.advance();
  }
  __device__ __forceinline__ void begin_products() { group_barrier_sync(group); wgmma_fence(); }
  __device__ __forceinline__ void pass_turn() {
    wgmma_commit_group();
    group_barrier_arrive(1 - group);
  }
  __device__ __forceinline__ void end_products() {
    pass_turn();
    wgmma_wait_group();
  }

  // Loads column 8 j + 2 q + i of token 8 row + g of the residual stream to v[j][2 row + i], the layout of
  // accumulators and of the matrix a of a product. first: the warp's first token.
  __device__ __forceinline__ void load_stream(float (*v)[4], long long first, int row_offset) {
    int g = lane / 4, q = lane % 4;
#if WIDE
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      bool there = first + row * 8 + g < a.rows;
      const float *from = a.stream + (first + row * 8 + g) * D + q * 2;
#pragma unroll
      for (int j = 0; j < TILES; ++j) {
        float2 two = there ? load_pair(from + j * 8) : make_float2(0.0f, 0.0f);
        v[j][2 * row] = two.x; v[j][2 * row + 1] = two.y;
      }
    }
#else
    wait_full();
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const char *from = raw + pipe.stage * STAGE + j / 8 * TOKENS * 128 + row_offset + row * 1024;
        float2 two = load_pair((const T *)(from + ((j % 8 ^ g) * 16)));
        v[j][2 * row] = two.x; v[j][2 * row + 1] = two.y;
      }
    release();
#endif
  }

  // The normalised stream as the matrix a of z's product. In v remains what the output is added to.
  __device__ __forceinline__ void normalise(unsigned (*normed)[4], float (*v)[4], float *mean, float *rstd) {
    mean_and_rstd(v, a.eps, mean, rstd);
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float lo = (v[j][2 * row] - mean[row]) * rstd[row], hi = (v[j][2 * row + 1] - mean[row]) * rstd[row];
        normed[j / 2][j % 2 * 2 + row] = pack2_finite(lo, hi);
#if JOIN
        v[j][2 * row] *= a.scale; v[j][2 * row + 1] *= a.scale;
#else
        v[j][2 * row] = v[j][2 * row + 1] = 0.0f;
#endif
      }
  }

#if WIDE
  __device__ __forceinline__ void store_stream(const float (*sum)[4], long long first) {
    int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int row = 0; row < 2; ++row)
      if (first + row * 8 + g < a.rows)
#pragma unroll
        for (int j = 0; j < TILES; ++j)
          *(float2 *)(a.stream + (first + row * 8 + g) * D + j * 8 + q * 2) =
              make_float2(sum[j][2 * row], sum[j][2 * row + 1]);
  }
#endif
#if NEXT
  // Starts the product that makes BX channels of the next pair's x, and waits for it.
  __device__ __forceinline__ void begin_next(float (*x)[4], unsigned (*normed)[4], int chunk) {
    init_z<BX>(x, (const T *)(raw + NEXT_BIAS_AT) + chunk * BX + lane % 4 * 2);
    wait_full();
    begin_products();
    mma_z<BX>(x, normed, at());
    pass_turn();
  }
  __device__ __forceinline__ void end_next(float (*x)[4]) {
    wgmma_wait_group();
    fence_operands<BX / 8>(x);
    release();
  }

  // Stores the stream, and the next pair's x: the product of the normalised stream. While a product runs, what the one
  // before it made is stored: at first the stream, rounded and so in half of its registers.
  __device__ __forceinline__ void epilogue(float (*sum)[4], float *mean, float *rstd, long long first, char *at) {
    unsigned normed[D / 16][4];
#if WIDE
    store_stream(sum, first);
#else
    unsigned rounded[TILES][2];
#endif
    mean_and_rstd(sum, a.eps, mean, rstd);
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float lo = sum[j][2 * row], hi = sum[j][2 * row + 1];
#if !WIDE
        rounded[j][row] = pack2(lo, hi);
#endif
        normed[j / 2][j % 2 * 2 + row] = pack2((lo - mean[row]) * rstd[row], (hi - mean[row]) * rstd[row]);
      }
    long long row = first + lane / 8, left = a.rows - row;
    float even[BX / 8][4], odd[BX / 8][4];
    begin_next(even, normed, 0);
#if !WIDE
    store_tokens<D, D>(rounded, a.stream + row * D + lane % 8 * 8, at, lane, left);
#endif
    end_next(even);
    T *to = a.x + row * X + lane % 8 * 8;
#pragma unroll 1
    for (int c = 1;; c += 2) {
      begin_next(odd, normed, c);
      store_tokens<X, BX>(even, to + (c - 1) * BX, at, lane, left);
      end_next(odd);
      if (c + 1 == NEXT_CHUNKS) break;
      begin_next(even, normed, c + 1);
      store_tokens<X, BX>(odd, to + c * BX, at, lane, left);
      end_next(even);
    }
    store_tokens<X, BX>(odd, to + (NEXT_CHUNKS - 1) * BX, at, lane, left);
  }
#else
  // Stores a matrix of D columns. at: 2,048 bytes of shared memory for this warp alone, which transpose it; to: a
  // reference, since reading it anew each time takes fewer registers.
  __device__ __forceinline__ void store_rows(const float (*v)[4], T *const &to, long long first, char *at) {
#pragma unroll
    for (int k = 0; k < D / 64; ++k) store_columns<D>(v + k * 8, to + first * D + k * 64, at, lane, a.rows - first);
  }
  // Stores the results. at: see store_rows.
  __device__ __forceinline__ void epilogue(float (*sum)[4], float *mean, float *rstd, long long first, char *at) {
#if JOIN
#if WIDE
    store_stream(sum, first);
#else
    store_rows(sum, a.stream, first, at);
#endif
    mean_and_rstd(sum, a.eps, mean, rstd);
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[j][i] = (sum[j][i] - mean[i / 2]) * rstd[i / 2];
#endif
    store_rows(sum, a.out, first, at);
  }
#endif

  // One tile: the main loop goes over the channels, BN at a time.
  __device__ __forceinline__ void tile(int number, int warp) {
    int g = lane / 4, q = lane % 4;
    long long first = (long long)number * TOKENS + warp * 16;
    float sum[TILES][4], mean[2], rstd[2];
    const T *biases = (const T *)(raw + BIAS_AT) + q * 2;
    int row_offset = (warp * 16 + g) * 128 + q * 4;
    load_stream(sum, first, row_offset);
    unsigned normed[D / 16][4];
    normalise(normed, sum, mean, rstd);
    float z[BN / 8][4];
    unsigned gated[BN / 16][4];
    init_z<BN>(z, biases);
    wait_full();
    begin_products();
    mma_z<BN>(z, normed, at());
    end_products();
    fence_operands<BN / 8>(z);
    release();
#pragma unroll 1
    for (int c = 1; c < CHUNKS; ++c) {
      wait_full();
      apply_gate(gated, z, raw + pipe.stage * STAGE + Y_AT + row_offset, g);
      init_z<BN>(z, biases + c * BN);
      begin_products();
      mma_out(sum, gated, at() + WO_AT);
      mma_z<BN>(z, normed, at());
      end_products();
      fence_operands<BN / 8>(z);
      release();
    }
    wait_full();
    char *y = raw + pipe.stage * STAGE + Y_AT;
    apply_gate(gated, z, y + row_offset, g);
    begin_products();
    mma_out(sum, gated, at() + WO_AT);
    end_products();
    fence_operands<TILES>(sum);
#if NEXT
    release();
    epilogue(sum, mean, rstd, first, raw + TRANSPOSE_AT + warp * 2048);
#else
    y += warp * 2048;  // this warp has read its part of y: the memory is used to transpose the results
    epilogue(sum, mean, rstd, first, y);
    fence_proxy_async();
    release();
#endif
  }
};

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)
    gated_output(const __grid_constant__ Args a) {
  SMEM_BYTES_1024(raw);
  SmemAddr shared = smem_addr((const T *)raw);
  int tiles = (int)((a.rows + TOKENS - 1) / TOKENS), rank = cluster_ctarank();
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(shared + BARS_AT + s * 8, 1);
      mbarrier_init(shared + BARS_AT + (STAGES + s) * 8, 16);  // warps of both blocks
    }
    fence_mbarrier_init();
  }
  wait_for_kernel_before();
#if !NEXT
  for (int i = threadIdx.x; i < X / 8; i += THREADS) ((uint4 *)(raw + BIAS_AT))[i] = ((const uint4 *)a.bz)[i];
#endif
  __syncthreads();
  cluster_sync();
  int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (warp >= 8) {
    lower_registers<24>();
    if (warp == 8 && lane == 0) produce(a, shared, tiles);
    __syncwarp();
  } else {
    raise_registers<240>();
#if NEXT
    // While the first copies are under way.
    for (int i = threadIdx.x; i < X / 8; i += 256) {
      ((uint4 *)(raw + BIAS_AT))[i] = ((const uint4 *)a.bz)[i];
      ((uint4 *)(raw + NEXT_BIAS_AT))[i] = ((const uint4 *)a.bx)[i];
    }
    both_groups_sync();
#endif
    ConsumerGroup group = {a, raw, shared, warp / 4, lane};
    if (group.group == 1) group_barrier_arrive(0);
#pragma unroll 1
    for (int tile = blockIdx.x; tile - rank < tiles; tile += gridDim.x) group.tile(tile, warp);
  }
  cluster_sync();  // the other block's copies and arrivals need this block's shared memory
}
