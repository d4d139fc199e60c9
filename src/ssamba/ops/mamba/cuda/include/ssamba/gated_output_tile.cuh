// What a consumer warp of gated_output_sm90.cu computes of its 16 tokens: statistics, products, gate, and stores.
#pragma once

#include "ssamba/fast_math.cuh"
#include "ssamba/gated_output_pipeline.cuh"

__device__ __forceinline__ float2 load_pair(const float *at) { return *(const float2 *)at; }
__device__ __forceinline__ float2 load_pair(const T *at) {
  unsigned pair = *(const unsigned *)at;
  return make_float2(low_half(pair), high_half(pair));
}

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

// z += normed w^T of COLUMNS channels; at: w in shared memory.
template <int COLUMNS> __device__ __forceinline__ void mma_z(float (*z)[4], unsigned (*normed)[4], SmemAddr at) {
  SmemDescriptor right = make_descriptor(at);
#pragma unroll
  for (int k = 0; k < D / 16; ++k)
    wgmma<COLUMNS>(z, normed[k], advance_descriptor(right, k / 4 * COLUMNS * 128 + k % 4 * 32));
}

// The accumulators of COLUMNS channels begin with the bias.
template <int COLUMNS> __device__ __forceinline__ void init_z(float (*z)[4], const T *bias) {
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j) {
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
      gated[j / 2][j % 2 * 2 + row] = pack2_finite(lo * by.x, hi * by.y);
    }
}

// sum += gated wo^T of BN channels; at: wo in shared memory.
__device__ __forceinline__ void mma_out(float (*sum)[4], unsigned (*gated)[4], SmemAddr at) {
  SmemDescriptor right = make_descriptor(at);
#pragma unroll
  for (int k = 0; k < BN / 16; ++k) wgmma<D>(sum, gated[k], advance_descriptor(right, k * 32));
}

__device__ __forceinline__ unsigned pair_of(const float *v, int row) { return pack2(v[2 * row], v[2 * row + 1]); }
__device__ __forceinline__ unsigned pair_of(const unsigned *v, int row) { return v[row]; }

// Writes 64 columns of a warp's 16 tokens to its 2,048 bytes of shared memory, a row of 128 bytes for each token. Tile:
// 4 values of 8 columns, or 2 pairs.
template <class Tile> __device__ __forceinline__ void put_columns(const Tile *v, char *at, int lane) {
  char *mine = at + lane / 4 * 128 + lane % 4 * 4;
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int row = 0; row < 2; ++row)
      *(unsigned *)(mine + row * 1024 + ((j ^ lane / 4) * 16)) = pair_of(v[j], row);
  __syncwarp();
}

// Stores 64 columns of a warp's 16 tokens, in rows of 128 bytes. `to`: where they belong in a matrix of WIDTH columns
// at: 2,048 bytes of shared memory for this warp alone.
template <int WIDTH>
__device__ __forceinline__ void store_columns(const float (*v)[4], T *to, char *at, int lane, long long tokens) {
  put_columns(v, at, lane);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    int token = i * 4 + lane / 8, j = lane % 8;
    uint4 eight = *(const uint4 *)(at + token * 128 + ((j ^ token % 8) * 16));
    if (token < tokens) *(uint4 *)(to + token * WIDTH + j * 8) = eight;
  }
  __syncwarp();
}

#if NEXT
// The same of COLUMNS columns with fewer instructions, since addresses are constants apart. to: where this lane's first
// 16 bytes belong, those of token lane / 8; left: tokens from that on. Tile: see put_columns.
template <int WIDTH, int COLUMNS, class Tile>
__device__ __forceinline__ void store_tokens(const Tile *v, T *to, char *at, int lane, long long left) {
#pragma unroll
  for (int k = 0; k < COLUMNS / 64; ++k) {
    put_columns(v + k * 8, at, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int token = i * 4 + lane / 8;
      uint4 eight = *(const uint4 *)(at + token * 128 + ((lane % 8 ^ token % 8) * 16));
      if (i * 4 < left) *(uint4 *)(to + i * 4 * WIDTH + k * 64) = eight;
    }
    __syncwarp();
  }
}
#endif
