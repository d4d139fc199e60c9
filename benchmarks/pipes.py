"""What a multiprocessor's pipes do side by side: cycles of a scheduler for mixes of the scan's instructions.

    PYTHONPATH=src python benchmarks/pipes.py

A step of 16 channels by 16 states is 8 EX2, 16 FMUL, 3 HMMA, 4 F2FP. Each line adds one of them to the mix, on 1 to 4
warps a scheduler; chains are long enough apart not to wait. If a mix takes longer than its slowest part alone, two of
them share a pipe, and the scan's floor is not that of its special functions.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ssamba.ops.jit import nvrtc
from ssamba.ops.jit.c_struct import c_struct
from ssamba.ops.mamba.cuda import sources

ROUNDS, STEPS = 2000, 8
MIXES = {  # EX2, FMUL, F2FP, HMMA 16 x 8 x 8, HMMA 16 x 8 x 16, LDSM x 4
    "EX2": (8, 0, 0, 0, 0, 0), "FMUL": (0, 16, 0, 0, 0, 0), "F2FP": (0, 0, 4, 0, 0, 0), "HMMA": (0, 0, 0, 2, 1, 0),
    "EX2 + FMUL": (8, 16, 0, 0, 0, 0), "EX2 + F2FP": (8, 0, 4, 0, 0, 0),
    "EX2 + HMMA": (8, 0, 0, 2, 1, 0), "EX2 + FMUL + F2FP": (8, 16, 4, 0, 0, 0),
    "EX2 + FMUL + HMMA": (8, 16, 0, 2, 1, 0), "all but LDSM": (8, 16, 4, 2, 1, 0), "all": (8, 16, 4, 2, 1, 1),
}  # fmt: skip

MACROS = ("EX2S", "FMULS", "F2FPS", "SMALL", "LARGE", "LDSMS")

ARGS = c_struct("PipeArgs", [("float *", "out"), ("long long *", "cycles"), ("int", "rounds")])
SOURCE = Path(__file__).with_name("pipes.cu")
UNIT = nvrtc.Unit(SOURCE, SOURCE.read_text(), (*sources.headers(), ("ssamba/pipe_args.cuh", ARGS.header)))


def defines(mix: str) -> tuple[str, ...]:
    """The macros of a mix."""
    return sources.defines(DTYPE=1, **dict(zip(MACROS, MIXES[mix], strict=True)))


def main() -> None:
    blocks = torch.cuda.get_device_properties(0).multi_processor_count
    out, cycles = torch.empty(blocks * 512, device="cuda"), torch.empty(blocks, device="cuda", dtype=torch.int64)
    print(f"{torch.cuda.get_device_name()}: cycles of a scheduler for a step of a warp, 1 to 4 warps each")
    for mix in MIXES:
        run = nvrtc.kernel(UNIT, "pipes", defines(mix), 0)
        found = []
        for warps in (1, 2, 3, 4):
            for rounds in (10, ROUNDS):
                run((blocks, 1, 1), 128 * warps, ARGS.ctype(out.data_ptr(), cycles.data_ptr(), rounds))
            found.append(cycles.double().median().item() / ROUNDS / STEPS / warps)
        print(f"{mix:20s}", *(f"{value:7.1f}" for value in found))


if __name__ == "__main__":
    main()
