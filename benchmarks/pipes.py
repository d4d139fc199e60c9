"""What a multiprocessor's pipes do side by side: cycles of a scheduler for mixes of the scan's instructions.

    PYTHONPATH=src python benchmarks/pipes.py

A step of 16 channels by 16 states is 8 EX2, 16 FMUL, 3 HMMA, 4 F2FP. Each line adds one of them to the mix, on 1 to 4
warps a scheduler; chains are long enough apart not to wait. If a mix takes longer than its slowest part alone, two of
them share a pipe, and the scan's floor is not that of its special functions.
"""

from __future__ import annotations

import ctypes

import torch

from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba.cuda.kernels.common import COMMON
from ssamba.ops.mamba.cuda.kernels.ptx_sm80 import PRIMITIVES

ROUNDS, STEPS = 2000, 8
MIXES = {  # EX2, FMUL, F2FP, HMMA 16 x 8 x 8, HMMA 16 x 8 x 16, LDSM x 4
    "EX2": (8, 0, 0, 0, 0, 0), "FMUL": (0, 16, 0, 0, 0, 0), "F2FP": (0, 0, 4, 0, 0, 0), "HMMA": (0, 0, 0, 2, 1, 0),
    "EX2 + FMUL": (8, 16, 0, 0, 0, 0), "EX2 + F2FP": (8, 0, 4, 0, 0, 0),
    "EX2 + HMMA": (8, 0, 0, 2, 1, 0), "EX2 + FMUL + F2FP": (8, 16, 4, 0, 0, 0),
    "EX2 + FMUL + HMMA": (8, 16, 0, 2, 1, 0), "all but LDSM": (8, 16, 4, 2, 1, 0), "all": (8, 16, 4, 2, 1, 1),
}  # fmt: skip

SOURCE = r"""
struct PipeArgs { float *out; long long *cycles; int rounds; };
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
      for (int i = 0; i < SMALL; ++i) mma1688(d[i], h[0], h[1], m[0]);
#pragma unroll
      for (int i = 0; i < LARGE; ++i) mma16816(d[2], h[0], h[1], h[2], h[3], m[1], m[2]);
#pragma unroll
      for (int i = 0; i < LDSMS; ++i) read4(m, rows + (s * 32 + threadIdx.x % 32) * 8);
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
"""


class _Args(ctypes.Structure):
    _fields_ = [("out", ctypes.c_void_p), ("cycles", ctypes.c_void_p), ("rounds", ctypes.c_int)]


def main() -> None:
    blocks = torch.cuda.get_device_properties(0).multi_processor_count
    out, cycles = torch.empty(blocks * 512, device="cuda"), torch.empty(blocks, device="cuda", dtype=torch.int64)
    print(f"{torch.cuda.get_device_name()}: cycles of a scheduler for a step of a warp, 1 to 4 warps each")
    for name, counts in MIXES.items():
        macros = zip(("EX2S", "FMULS", "F2FPS", "SMALL", "LARGE", "LDSMS"), counts, strict=True)
        defines = ("DTYPE=1", "TANH=0", *(f"{macro}={count}" for macro, count in macros))
        run = nvrtc.kernel(COMMON + PRIMITIVES + SOURCE, "pipes", defines, 0)
        found = []
        for warps in (1, 2, 3, 4):
            for rounds in (10, ROUNDS):
                run((blocks, 1, 1), 128 * warps, _Args(out.data_ptr(), cycles.data_ptr(), rounds))
            found.append(cycles.double().median().item() / ROUNDS / STEPS / warps)
        print(f"{name:20s}", *(f"{value:7.1f}" for value in found))


if __name__ == "__main__":
    main()
