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
// output to the stream (times `scale`) and normalises the sum.

#include "ssamba/common.cuh"
#include "ssamba/fast_math.cuh"
#include "ssamba/gated_output_args.cuh"
#include "ssamba/ptx_sm90.cuh"

#define BN 64                           // channels at a time
#define TILES (D / 8)                   // accumulator tiles of 8 columns
#define TOKENS 128                      // of a tile
#define WO_AT (BN * D * 2)              // byte offsets in a stage: wz, wo, y
#define Y_AT (2 * WO_AT)
#define STAGE (Y_AT + TOKENS * BN * 2)  // bytes of a stage
#define BARS_AT (STAGES * STAGE)        // mbarriers "full" of each stage, then "free"
#define BIAS_AT (BARS_AT + 128)         // z's bias
#define CHUNKS (X / BN)

__device__ __forceinline__ float2 load_pair(const float *at) { return *(const float2 *)at; }
__device__ __forceinline__ float2 load_pair(const T *at) {
  unsigned pair = *(const unsigned *)at;
  return make_float2(low_half(pair), high_half(pair));
}

// The current stage of the ring, and the parity of the rounds through it.
struct PipelineState {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) { stage = 0; phase ^= 1; }
  }
};

// Mean and 1 / standard deviation of this lane's two tokens, each held by four lanes.
__device__ __forceinline__ void mean_and_rstd(const float (*v)[4], float eps, float *mean, float *rstd) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < TILES; ++j) part[j % 4] += v[j][2 * row] + v[j][2 * row + 1];
    float sum = part[0] + part[1] + (part[2] + part[3]);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    mean[row] = sum / D;
    part[0] = part[1] = part[2] = part[3] = 0.0f;
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
      float p = v[j][2 * row] - mean[row], q = v[j][2 * row + 1] - mean[row];
      part[j % 4] += p * p; part[j % 4] += q * q;
    }
    float square = part[0] + part[1] + (part[2] + part[3]);
    square += __shfl_xor_sync(0xffffffffu, square, 1);
    square += __shfl_xor_sync(0xffffffffu, square, 2);
    rstd[row] = rsqrtf(square / D + eps);
  }
}

// The producer. Stages of a tile: the stream, if it has 16 bits; then, for c from 0, y and wo of channels c - 1 with
// wz of channels c, which a consumer reads in one turn. Each block of the cluster loads half of the weights for both.
__device__ __forceinline__ void produce(const GatedOutputArgs &a, SmemAddr shared, int tiles) {
  PipelineState pipe;
  int rank = cluster_ctarank();
  for (int tile = blockIdx.x; tile - rank < tiles; tile += gridDim.x)
    for (int c = WIDE ? 0 : -1; c <= CHUNKS; ++c, pipe.advance()) {
      SmemAddr full = shared + BARS_AT + pipe.stage * 8, at = shared + pipe.stage * STAGE;
      mbarrier_wait(full + STAGES * 8, pipe.phase ^ 1);
      if (c < 0) {
        mbarrier_expect_tx(full, TOKENS * D * 2);
        for (int k = 0; k < D / 64; ++k)
          tma_load_2d(at + k * TOKENS * 128, &a.stream_map, k * 64, tile * TOKENS, full);
        continue;
      }
      mbarrier_expect_tx(full, (c < CHUNKS) * BN * D * 2 + (c > 0) * (BN * D * 2 + TOKENS * BN * 2));
      if (c > 0) {
        tma_load_2d(at + Y_AT, &a.y, (c - 1) * BN, tile * TOKENS, full);
        tma_load_2d_multicast(at + WO_AT + rank * D / 2 * 128, &a.wo, (c - 1) * BN, rank * D / 2, full);
      }
      if (c < CHUNKS)
        for (int k = 0; k < D / 64; ++k)
          tma_load_2d_multicast(at + (k * BN + rank * BN / 2) * 128, &a.wz, k * 64, c * BN + rank * BN / 2, full);
    }
}

__device__ __forceinline__ void mma_z(float (*z)[4], unsigned (*normed)[4], SmemAddr at) {
  SmemDescriptor right = make_descriptor(at);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) wgmma<BN>(z, normed[k], advance_descriptor(right, k / 4 * BN * 128 + k % 4 * 32));
}
__device__ __forceinline__ void init_z(float (*z)[4], const T *bias) {
#pragma unroll
  for (int j = 0; j < BN / 8; ++j) {
    float2 two = load_pair(bias + j * 8);
    z[j][0] = z[j][2] = two.x; z[j][1] = z[j][3] = two.y;
  }
}

// gated = y silu(z), as the matrix a of the output product. y: at this lane's first token and column; the next eight
// tokens are 1,024 bytes further, and the 16-byte pieces of a token are swizzled by its number.
__device__ __forceinline__ void apply_gate(unsigned (*gated)[4], float (*z)[4], const char *y, int g) {
#pragma unroll
  for (int j = 0; j < BN / 8; ++j)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float lo = z[j][2 * row], hi = z[j][2 * row + 1];
      silu2(lo, hi);
      float2 by = load_pair((const T *)(y + row * 1024 + ((j ^ g) * 16)));
      gated[j / 2][j % 2 * 2 + row] = pack2(lo * by.x, hi * by.y);
    }
}
__device__ __forceinline__ void mma_out(float (*sum)[4], unsigned (*gated)[4], SmemAddr at) {
  SmemDescriptor right = make_descriptor(at);
#pragma unroll
  for (int k = 0; k < BN / 16; ++k) wgmma<D>(sum, gated[k], advance_descriptor(right, k * 32));
}

// Stores 64 columns of a warp's 16 tokens, in rows of 128 bytes. at: 2,048 bytes of shared memory for this warp alone.
__device__ __forceinline__ void store_columns(const float (*v)[4], T *to, char *at, int lane, long long tokens) {
  char *mine = at + lane / 4 * 128 + lane % 4 * 4;
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int row = 0; row < 2; ++row)
      *(unsigned *)(mine + row * 1024 + ((j ^ lane / 4) * 16)) = pack2(v[j][2 * row], v[j][2 * row + 1]);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int token = i * 4 + lane / 8, j = lane % 8;
    uint4 eight = *(const uint4 *)(at + token * 128 + ((j ^ token % 8) * 16));
    if (token < tokens) *(uint4 *)(to + token * D + j * 8) = eight;
  }
  __syncwarp();
}

// A consumer warp group.
struct ConsumerGroup {
  const GatedOutputArgs &a;
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
  __device__ __forceinline__ void end_products() {
    wgmma_commit_group();
    group_barrier_arrive(1 - group);
    wgmma_wait_group();
  }

  __device__ __forceinline__ void tile(int number, int warp) {
    int g = lane / 4, q = lane % 4;
    long long first = (long long)number * TOKENS + warp * 16;
    // [j][2 row + i] is column 8 j + 2 q + i of token 8 row + g, in the matrix a of a product as in its accumulators.
    float sum[TILES][4], mean[2], rstd[2];
    const T *biases = (const T *)(raw + BIAS_AT) + q * 2;
    int row_offset = (warp * 16 + g) * 128 + q * 4;
#if WIDE
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      bool there = first + row * 8 + g < a.rows;
      const float *from = a.stream + (first + row * 8 + g) * D + q * 2;
#pragma unroll
      for (int j = 0; j < TILES; ++j) {
        float2 two = there ? load_pair(from + j * 8) : make_float2(0.0f, 0.0f);
        sum[j][2 * row] = two.x; sum[j][2 * row + 1] = two.y;
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
        sum[j][2 * row] = two.x; sum[j][2 * row + 1] = two.y;
      }
    release();
#endif
    mean_and_rstd(sum, a.eps, mean, rstd);
    unsigned normed[D / 16][4];
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float lo = (sum[j][2 * row] - mean[row]) * rstd[row], hi = (sum[j][2 * row + 1] - mean[row]) * rstd[row];
        normed[j / 2][j % 2 * 2 + row] = pack2(lo, hi);
#if JOIN
        sum[j][2 * row] *= a.scale; sum[j][2 * row + 1] *= a.scale;
#else
        sum[j][2 * row] = sum[j][2 * row + 1] = 0.0f;
#endif
      }
    float z[BN / 8][4];
    unsigned gated[BN / 16][4];
    init_z(z, biases);
    wait_full();
    begin_products();
    mma_z(z, normed, at());
    end_products();
    fence_operands<BN / 8>(z);
    release();
#pragma unroll 1
    for (int c = 1; c < CHUNKS; ++c) {
      wait_full();
      apply_gate(gated, z, raw + pipe.stage * STAGE + Y_AT + row_offset, g);
      init_z(z, biases + c * BN);
      begin_products();
      mma_out(sum, gated, at() + WO_AT);
      mma_z(z, normed, at());
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
    // This warp has read its part of y: the memory is used to transpose the results.
    y += warp * 2048;
#if JOIN
#if WIDE
#pragma unroll
    for (int row = 0; row < 2; ++row)
      if (first + row * 8 + g < a.rows)
#pragma unroll
        for (int j = 0; j < TILES; ++j)
          *(float2 *)(a.stream + (first + row * 8 + g) * D + j * 8 + q * 2) =
              make_float2(sum[j][2 * row], sum[j][2 * row + 1]);
#else
#pragma unroll
    for (int k = 0; k < D / 64; ++k) store_columns(sum + k * 8, a.stream + first * D + k * 64, y, lane, a.rows - first);
#endif
    mean_and_rstd(sum, a.eps, mean, rstd);
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[j][i] = (sum[j][i] - mean[i / 2]) * rstd[i / 2];
#endif
#pragma unroll
    for (int k = 0; k < D / 64; ++k) store_columns(sum + k * 8, a.out + first * D + k * 64, y, lane, a.rows - first);
    fence_proxy_async();
    release();
  }
};

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1)
    gated_output(const __grid_constant__ GatedOutputArgs a) {
  extern __shared__ __align__(1024) char raw[];
  SmemAddr shared = smem_addr((const T *)raw);
  int tiles = (int)((a.rows + TOKENS - 1) / TOKENS), rank = cluster_ctarank();
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(shared + BARS_AT + s * 8, 1);
      mbarrier_init(shared + BARS_AT + (STAGES + s) * 8, 16);  // warps of both blocks
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  for (int i = threadIdx.x; i < X / 8; i += THREADS) ((uint4 *)(raw + BIAS_AT))[i] = ((const uint4 *)a.bz)[i];
  __syncthreads();
  cluster_sync();
  int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (warp >= 8) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (warp == 8 && lane == 0) produce(a, shared, tiles);
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    ConsumerGroup group = {a, raw, shared, warp / 4, lane};
    if (group.group == 1) group_barrier_arrive(0);
#pragma unroll 1
    for (int tile = blockIdx.x; tile - rank < tiles; tile += gridDim.x) group.tile(tile, warp);
  }
  cluster_sync();  // the other block's copies and arrivals need this block's shared memory
}
