"""Products in float32 on one GPU: torch's own, torch's in TF32, and three TF32 products (``SSAMBA_FP32``).

    PYTHONPATH=src python benchmarks/fp32_products.py [--shapes tiny base] [--forms split,columns=64 ...] [--dry-run]

Prints a table in markdown: milliseconds of a product inside a CUDA graph (median of the repeats) and its error against
float64, relative to the norm. ``--dry-run`` runs small products in Triton's interpreter, without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

if any(word.startswith("--dry") for word in sys.argv):
    os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.evaluation.speed.measure import Settings, median_milliseconds
from ssamba.ops.linear_layer import gpu

FORMS = ("", "split,columns=128", "split,columns=64", "split,columns=64,stages=4", "fused,columns=128")
OTHER_FORMS = ("split,columns=128,stages=2", "fused,columns=64", "fused,rows=64,columns=128,warps=4", "split,depth=64")
"""Worth a look where the first are close."""
TOKENS = 32768
WIDTHS = {"tiny": 192, "small": 384, "base": 768}
CHECKED_ROWS = 256


def shapes_of(size: str, tokens: int, d: int) -> dict[str, tuple[int, int, int, bool]]:
    """Rows, length of the sums, columns; and whether it is a weight's gradient, whose operands lie across."""
    return {
        f"{size} input": (tokens, d, 8 * d, False),
        f"{size} output": (tokens, 4 * d, d, False),
        f"{size} input, gradient of x": (tokens, 8 * d, d, False),
        f"{size} input, of the weight": (8 * d, tokens, d, True),
        f"{size} output, of the weight": (d, tokens, 4 * d, True),
    }


def milliseconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of one call: on a GPU a graph has four, so that its launch counts little."""
    calls = 4 if device.type == "cuda" else 1
    settings = Settings(device, torch.float32, repeats=repeats if device.type == "cuda" else 1)

    def several() -> None:
        for _ in range(calls):
            run()

    return median_milliseconds(several, settings) / calls


def row(operands: tuple[Tensor, Tensor], forms: list[str], repeats: int) -> list[str]:
    """Milliseconds and error of each way."""
    a, b = operands
    truth = a[:CHECKED_ROWS].double() @ b.double().t()
    cells = []
    for form in ("torch", "TF32", *forms):
        own = form in ("torch", "TF32")
        os.environ["SSAMBA_FP32"] = "" if own else form
        torch.backends.cuda.matmul.allow_tf32 = form == "TF32"

        def run(own: bool = own) -> Tensor:
            return F.linear(a, b) if own else gpu.linear(a, b)

        try:
            error = float((run()[:CHECKED_ROWS].double() - truth).norm() / truth.norm())
            cells.append(f"{milliseconds(run, a.device, repeats):.3f} ({error:.0e})")
        except Exception as problem:  # a tile that does not fit: the others still have their times
            cells.append(f"{type(problem).__name__}")
        torch.backends.cuda.matmul.allow_tf32 = False
    return cells


@torch.no_grad()
def main() -> None:
    """Print the table, line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["tiny", "base"], choices=list(WIDTHS))
    parser.add_argument("--forms", nargs="+", default=list(FORMS))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    device, tokens = ("cpu", 40) if arguments.dry_run else ("cuda", TOKENS)
    titles = [form or "default" for form in arguments.forms]
    print(f"| product | torch | TF32 | {' | '.join(titles)} |")
    print("|---" * (3 + len(titles)) + "|")
    for size in arguments.shapes:
        for name, (rows, depth, columns, across) in shapes_of(
            size, tokens, 8 if arguments.dry_run else WIDTHS[size]
        ).items():
            shapes = ((depth, rows), (depth, columns)) if across else ((rows, depth), (columns, depth))
            a, b = (torch.randn(s, device=device) for s in shapes)
            operands = (a.t(), b.t()) if across else (a, b)
            cells = row(operands, arguments.forms, arguments.repeats)
            print(f"| {name}, {rows} x {depth} by {columns} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
