"""Products of linear layers in float32 on a CPU: torch's own library, oneDNN, and oneDNN in bfloat16.

    python benchmarks/linear_cpu.py [--threads 1] [--repeats 40]

Prints a table in markdown: milliseconds of processor time of the calling thread, the least of the repeats, of the
product and of its two gradients, for the shapes of ``tiny`` with a clip of 10 s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ssamba.ops.linear_layer import cpu

SHAPES = {
    "input product": (513, 192, 1536),
    "output product": (513, 768, 192),
    "projection to dt, B, C": (513, 384, 44),
}


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """The least of the calls, after three that are not counted."""
    found = []
    for _ in range(repeats + 3):
        begin = time.thread_time()
        run()
        found.append(time.thread_time() - begin)
    return 1e3 * min(found[3:])


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| product | torch's own | oneDNN | bf16 | gradient of x | oneDNN | gradient of the weight | oneDNN |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (rows, inputs, outputs) in SHAPES.items():
        x, weight, dy = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
        pairs = ((x, weight), (dy, weight.t()), (dy.t(), x.t()))
        low = x.bfloat16(), weight.bfloat16()
        runs: list[Callable[[], object]] = []
        for a, b in pairs:
            runs += [lambda a=a, b=b: F.linear(a, b), lambda a=a, b=b: cpu.linear(a, b)]
        runs.insert(2, lambda low=low: F.linear(*low))
        times = " | ".join(f"{milliseconds(run, arguments.repeats):.2f}" for run in runs)
        print(f"| {name}, {rows} x {inputs} by {outputs} | {times} |")


if __name__ == "__main__":
    main()
