"""An exported model in ONNX Runtime beside the same model in torch, on one CPU thread.

    python benchmarks/onnx_cpu.py [SOURCE] [--weights fp32|fp16|int8]

Both take the same features in turn, so that whatever else the machine does meets both. Times are the CPU time of the
process, the least of the rounds: on a quiet machine the time that passes, on a busy one hardly more. The largest
difference of the tokens is printed beside them.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"

import numpy as np
import onnxruntime
import torch

import ssamba
from ssamba.inference.onnx.export import WEIGHTS, build_onnx, count_nodes
from ssamba.inference.onnx.weights import rounded

SHAPES = ((1, 16), (1, 208), (4, 208), (1, 512), (1, 1024), (1, 2048), (1, 4096))
"""Batch and log-mel frames of each row."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="what ssamba.load takes (default: tiny)")
    parser.add_argument("--weights", default="fp32", choices=WEIGHTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, help="leave out longer rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = ssamba.load(arguments.source, device="cpu")
    start = time.perf_counter()
    proto = build_onnx(model, "tokens", "features", arguments.weights)
    built = time.perf_counter() - start
    model = rounded(model, arguments.weights)
    runtime = session(proto.SerializeToString())
    print(f"{processor()}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, one thread")
    print(f"{count_nodes(proto)} nodes, {proto.ByteSize() / 1e6:.1f} MB, built in {built:.1f} s\n")
    print("| batch x tokens | torch | ONNX Runtime | ratio | largest difference |\n|---|---|---|---|---|")
    for batch, frames in SHAPES:
        if arguments.frames is not None and frames > arguments.frames:
            continue
        features = torch.randn(batch, frames, model.config.mel_bins, generator=torch.Generator().manual_seed(0))
        array = features.numpy()
        ours = lambda x=features: infer(model, x)  # noqa: E731
        theirs = lambda x=array: runtime.run(None, {"features": x})[0]  # noqa: E731
        wanted, found = ours().numpy(), theirs()
        one, other = least(ours, theirs, arguments.rounds)
        sizes = f"{batch} x {wanted.shape[1]}"
        print(f"| {sizes} | {one:.1f} ms | {other:.1f} ms | {other / one:.2f} | {np.abs(found - wanted).max():.1e} |")


def session(data: bytes) -> onnxruntime.InferenceSession:
    """A session on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def infer(model: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
    """One pass."""
    return model(features)


def least(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The least milliseconds of each, called in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, taken in zip((one, other), times, strict=True):
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
    return min(times[0]) * 1e3, min(times[1]) * 1e3


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
