// Residual addition and layer normalisation of rows, a warp each: sum = scale residual + factor x, out = (sum - mean) /
// sqrt(variance + eps) (weight, bias). In float32, rounded once; the variance is the mean of squares of what is left
// without the mean.
//
// Macros: types (as elements.cuh) X_DTYPE of x, S_DTYPE of residual and sum, O_DTYPE of out, A_DTYPE of weight and
// bias. RESIDUAL, FACTOR (one for each `length` rows), AFFINE: what is given. SUM, STATISTICS: what is written besides
// out. VALUES are loaded at once, PIECES times 32 lanes of them are a row, which a lane holds in registers; with PIECES
// 0 a row of any width is read three times. out may be x, and sum the residual: a lane writes what it alone reads, and
// has read.

#include "ssamba/elements.cuh"
#include "ssamba/layer_norm_args.cuh"

#define STEP (32 * VALUES)

// The sum of VALUES columns from `column` on, whose first is at `at`.
__device__ __forceinline__ void add(const LayerNormArgs &a, long long at, float factor, float *v) {
  load_values<X_DTYPE, VALUES>(a.x, at, v);
  if (FACTOR)
#pragma unroll
    for (int i = 0; i < VALUES; ++i) v[i] *= factor;
  if (RESIDUAL) {
    float r[VALUES];
    load_values<S_DTYPE, VALUES>(a.residual, at, r);
#pragma unroll
    for (int i = 0; i < VALUES; ++i) v[i] += a.scale * r[i];
  }
}

__device__ __forceinline__ float total(const float *v) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < VALUES; ++i) sum += v[i];
  return sum;
}

__device__ __forceinline__ float squares(const float *v, float mean) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < VALUES; ++i) sum += (v[i] - mean) * (v[i] - mean);
  return sum;
}

__device__ __forceinline__ void write(const LayerNormArgs &a, long long at, int column, float *v, float mean,
                                      float rstd) {
  if (SUM) store_values<S_DTYPE, VALUES>(a.sum, at, v);
#pragma unroll
  for (int i = 0; i < VALUES; ++i) v[i] = (v[i] - mean) * rstd;
  if (AFFINE) {
    float w[VALUES], b[VALUES];
    load_values<A_DTYPE, VALUES>(a.weight, column, w);
    load_values<A_DTYPE, VALUES>(a.bias, column, b);
#pragma unroll
    for (int i = 0; i < VALUES; ++i) v[i] = v[i] * w[i] + b[i];
  }
  store_values<O_DTYPE, VALUES>(a.out, at, v);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) add_layer_norm(const LayerNormArgs a) {
  const int lane = threadIdx.x % 32;
  const long long row = (long long)blockIdx.x * WARPS + threadIdx.x / 32, start = row * a.width;
  if (row >= a.rows) return;
  const float factor = FACTOR ? a.factor[row / a.length] : 1.0f, width = a.width;
  float mean = 0.0f, rstd = 0.0f;
#if PIECES
  float v[PIECES][VALUES];
#pragma unroll
  for (int p = 0; p < PIECES; ++p) {
    int column = p * STEP + lane * VALUES;
    if (column < a.width) {
      add(a, start + column, factor, v[p]);
    } else {
#pragma unroll
      for (int i = 0; i < VALUES; ++i) v[p][i] = 0.0f;
    }
  }
#pragma unroll
  for (int p = 0; p < PIECES; ++p) mean += total(v[p]);
  mean = warp_sum(mean) / width;
#pragma unroll
  for (int p = 0; p < PIECES; ++p) rstd += p * STEP + lane * VALUES < a.width ? squares(v[p], mean) : 0.0f;
  rstd = 1.0f / sqrtf(warp_sum(rstd) / width + a.eps);
#pragma unroll
  for (int p = 0; p < PIECES; ++p) {
    int column = p * STEP + lane * VALUES;
    if (column < a.width) write(a, start + column, column, v[p], mean, rstd);
  }
#else
  float v[VALUES];
#pragma unroll 4
  for (int column = lane * VALUES; column < a.width; column += STEP) {
    add(a, start + column, factor, v);
    mean += total(v);
  }
  mean = warp_sum(mean) / width;
#pragma unroll 4
  for (int column = lane * VALUES; column < a.width; column += STEP) {
    add(a, start + column, factor, v);
    rstd += squares(v, mean);
  }
  rstd = 1.0f / sqrtf(warp_sum(rstd) / width + a.eps);
#pragma unroll 2
  for (int column = lane * VALUES; column < a.width; column += STEP) {
    add(a, start + column, factor, v);
    write(a, start + column, column, v, mean, rstd);
  }
#endif
  if (STATISTICS && lane == 0) {
    a.mean[row] = mean;
    a.rstd[row] = rstd;
  }
}
