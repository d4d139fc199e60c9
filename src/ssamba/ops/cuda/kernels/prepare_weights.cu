// The weights of PAIRS pairs for inference in one launch: the norm's scale and shift folded into the input product, and
// other tensors converted. In float32, rounded once.
//
// Macros: PAIRS, side by side in the grid's y; types (as elements.cuh) I_DTYPE of the input product, A_DTYPE of scale
// and shift, O_DTYPE of what is folded; VALUES are loaded at once. The first blocks, of THREADS, fold, a row of the
// product in each warp; the others convert BLOCK elements each, tensor after tensor.

#include "ssamba/elements.cuh"
#include "ssamba/prepare_weights_args.cuh"

#define STEP (32 * VALUES)
#define AHEAD 2  // pieces of a row whose loads are under way at once

__device__ __forceinline__ void fold(const PrepareWeightsArgs &a, const PairWeights &pair, int row, int lane) {
  const long long start = (long long)row * a.width, of_block = (long long)(row / a.inner % a.blocks) * a.width;
  float sum = 0.0f;
  for (int first = lane * VALUES; first < a.width; first += AHEAD * STEP) {
    float w[AHEAD][VALUES], scale[AHEAD][VALUES], shift[AHEAD][VALUES];
#pragma unroll
    for (int p = 0; p < AHEAD; ++p)
      if (first + p * STEP < a.width) {
        load_values<I_DTYPE, VALUES>(pair.in_proj, start + first + p * STEP, w[p]);
        load_values<A_DTYPE, VALUES>(pair.scale, of_block + first + p * STEP, scale[p]);
        load_values<A_DTYPE, VALUES>(pair.shift, of_block + first + p * STEP, shift[p]);
      }
#pragma unroll
    for (int p = 0; p < AHEAD; ++p)
      if (first + p * STEP < a.width) {
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
          sum += w[p][i] * shift[p][i];
          w[p][i] *= scale[p][i];
        }
        store_values<O_DTYPE, VALUES>(pair.weight, start + first + p * STEP, w[p]);
      }
  }
  sum = warp_sum(sum);
  if (lane == 0) store_values<O_DTYPE, 1>(pair.bias, row, &sum);
}

// Elements first, first + THREADS, ... of a block.
template <int FROM, int TO> __device__ __forceinline__ void convert(const Conversion &one, long long first) {
  constexpr int EACH = BLOCK / THREADS;
  float v[EACH];
#pragma unroll
  for (int i = 0; i < EACH; ++i)
    if (first + i * THREADS < one.count) load_values<FROM, 1>(one.source, first + i * THREADS, v + i);
#pragma unroll
  for (int i = 0; i < EACH; ++i)
    if (first + i * THREADS < one.count) store_values<TO, 1>(one.target, first + i * THREADS, v + i);
}

template <int FROM> __device__ __forceinline__ void convert_from(const Conversion &one, long long first) {
  if (one.target_type == 0) convert<FROM, 0>(one, first);
  else if (one.target_type == 1) convert<FROM, 1>(one, first);
  else convert<FROM, 2>(one, first);
}

extern "C" __global__ void __launch_bounds__(THREADS) prepare_weights(const __grid_constant__ PrepareWeightsArgs a) {
  const PairWeights &pair = a.pairs[blockIdx.y];
  const int folding = (a.rows + THREADS / 32 - 1) / (THREADS / 32), block = blockIdx.x;
  if (block < folding) {
    int row = block * (THREADS / 32) + threadIdx.x / 32;
    if (row < a.rows) fold(a, pair, row, threadIdx.x % 32);
    return;
  }
  long long before = (long long)(block - folding) * BLOCK;
  int i = 0;
  for (; i < a.count; ++i) {
    long long padded = (pair.conversions[i].count + BLOCK - 1) / BLOCK * BLOCK;
    if (before < padded) break;
    before -= padded;
  }
  if (i == a.count) return;
  const Conversion one = pair.conversions[i];
  const long long first = before + threadIdx.x;
  if (one.source_type == 0) convert_from<0>(one, first);
  else if (one.source_type == 1) convert_from<1>(one, first);
  else convert_from<2>(one, first);
}
