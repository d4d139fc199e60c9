"""SSAMBA beside SSAST under ``torch.compile``, the fastest form that a user can have, on one GPU in one run.

    PYTHONPATH=src python benchmarks/compiled_peer.py

Inference with bf16 weights, training (forward and backward) with float32 weights under bf16 autocast, both models as
CUDA graphs; median of 10 passes; memory is the peak beyond weights and input. Every output is checked first, as in
``ssamba bench``. Prints a table in markdown.
"""

from __future__ import annotations

import argparse

import torch

from ssamba.evaluation.speed.measure import PEER, Result, Settings, measure_all
from ssamba.evaluation.speed.report import device_name

CASES = (
    ("tiny", 64, 512, False), ("tiny", 1, 512, False), ("tiny", 4, 22016, False), ("tiny", 64, 512, True),
    ("tiny", 256, 104, True), ("small", 64, 512, False), ("base", 64, 512, False), ("base", 4, 22016, False),
    ("base", 64, 512, True),
)  # fmt: skip
MODELS = ("ssamba", PEER, "ssast")


def ratio(ours: float | None, theirs: float | None) -> str:
    """How many times as much SSAMBA takes."""
    return f"{ours / theirs:.2f}" if ours and theirs else ""


def cell(result: Result) -> str:
    """Milliseconds and MiB, or why there are none."""
    return result.status or f"{result.milliseconds:.2f} ms, {result.mebibytes:,.0f} MiB"


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dry-run", action="store_true", help="two cases of 16 tokens on the CPU, without torch.compile"
    )
    dry = parser.parse_args().dry_run
    if not dry and not torch.cuda.is_available():
        raise SystemExit("compiled_peer.py: needs a GPU")
    device = torch.device("cpu" if dry else "cuda")
    models = ("ssamba", "ssast") if dry else MODELS
    peer = models[1]
    print(f"{device_name(device)}, torch {torch.__version__}, bf16\n")
    print(f"| case | {' | '.join(models)} | time to {peer} | memory to {peer} |")
    print("|---" * (len(models) + 3) + "|")
    for size, batch, tokens, training in (("tiny", 1, 16, False), ("tiny", 1, 16, True)) if dry else CASES:
        settings = Settings(device, torch.bfloat16, (size,), models, (tokens,), batch=batch, training=training)
        found = {result.case.model: result for result in measure_all(settings)}
        cells = [cell(found[model]) for model in models]
        cells += [ratio(found["ssamba"].milliseconds, found[peer].milliseconds)]
        cells += [ratio(found["ssamba"].mebibytes, found[peer].mebibytes)]
        what = "train" if training else "infer"
        print(f"| {size} {what} {batch} x {tokens:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
