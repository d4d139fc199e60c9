// Mixes of the scan's instructions, timed. Macros: how many of each a step has.
#include "ssamba/common.cuh"
#include "ssamba/pipe_args.cuh"
#include "ssamba/ptx_sm80.cuh"

extern "C" __global__ void pipes(const PipeArgs a) {
  __shared__ __align__(16) T rows[8 * 32 * 8];
  float e[8], f[16], d[3][4];
  unsigned h[4], m[4];
  for (int i = 0; i < 8; ++i) e[i] = -0.001f * (threadIdx.x + i);
  for (int i = 0; i < 16; ++i) f[i] = 1.0f + 1e-7f * (threadIdx.x + i);
  for (int i = 0; i < 12; ++i) d[i / 4][i % 4] = 0.0f;
  for (int i = 0; i < 4; ++i) h[i] = m[i] = 0;
  for (int i = threadIdx.x; i < 8 * 32 * 8; i += blockDim.x) rows[i] = 0;
  __syncthreads();
  SmemAddr row = smem_addr(rows + threadIdx.x % 32 * 8);
  long long begin = clock64();
#pragma unroll 1
  for (int n = 0; n < a.rounds; ++n)
#pragma unroll
    for (int s = 0; s < 8; ++s) {
#pragma unroll
      for (int i = 0; i < EX2S; ++i) e[i] = ex2(e[i]);
#pragma unroll
      for (int i = 0; i < FMULS; ++i) f[i] *= 0.9999999f;
#pragma unroll
      for (int i = 0; i < F2FPS; ++i) h[i] = pack2(f[2 * i], __uint_as_float(h[i]));
#pragma unroll
      for (int i = 0; i < SMALL; ++i) mma_m16n8k8(d[i], h[0], h[1], m[0]);
#pragma unroll
      for (int i = 0; i < LARGE; ++i) mma_m16n8k16(d[2], h[0], h[1], h[2], h[3], m[1], m[2]);
#pragma unroll
      for (int i = 0; i < LDSMS; ++i) ldmatrix_x4(m, smem_offset(row, s * 32 * 8));
    }
  long long took = clock64() - begin;
  float sum = 0.0f;
  for (int i = 0; i < 8; ++i) sum += e[i];
  for (int i = 0; i < 16; ++i) sum += f[i];
  for (int i = 0; i < 12; ++i) sum += d[i / 4][i % 4];
  for (int i = 0; i < 4; ++i) sum += h[i] + m[i];
  a.out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  if (threadIdx.x == 0) a.cycles[blockIdx.x] = took;
}
