"""What should not change SSAMBA's speed much: 4, 8 or 12 states, fp16, fp32, lengths that are odd. On one GPU.

    PYTHONPATH=src python benchmarks/cliffs.py [--form fast] [--variants "8 states" "12 states" ...] [--dry-run]

The first table has tiny in bf16 with 16 states, and each variant's time as a ratio to that; training is forward and
backward. CUDA graphs, medians of 10, each output checked against float32 first. "As given": without the states that are
zero, which bring others than 8 and 16 to the tensor cores (``SSAMBA_STATES``). The second table has the chain of pairs
alone (tokens to tokens, bf16) at lengths around 512 and 22,016, as a ratio to the even one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

import torch
from fast_forms import DEVICE, FORMS, one_pass, settings_of

from ssamba.evaluation.speed.measure import Case, make_model, measure_all, median_milliseconds
from ssamba.evaluation.speed.report import device_name
from ssamba.models.config import WIDTHS
from ssamba.ops.jit import nvrtc

CASES = "tiny infer 64x512", "tiny infer 4x22016", "tiny train 64x512"
VARIANTS = {
    "bf16, 16 states": {},
    "8 states": {"states": 8},
    "fp16": {"dtype": torch.float16},
    "fp32": {"dtype": torch.float32},
}
"""What is measured by default."""
MORE = {
    "8, as given": {"states": 8},
    "12 states": {"states": 12},
    "12, as given": {"states": 12},
    "4 states": {"states": 4},
    "4, as given": {"states": 4},
}
ALL = VARIANTS | MORE
LENGTHS = {64: (512, 511, 513, 514), 4: (22016, 22015, 22017, 22018)}
"""Batch: the even length that counts as 1, and its neighbours."""
DRY = "tiny infer 1x16", "tiny train 1x16"
REPEATS = 10


@contextlib.contextmanager
def rounding(variant: str) -> Iterator[None]:
    """With ``SSAMBA_STATES`` as the name of a variant says."""
    os.environ["SSAMBA_STATES"] = "given" if variant.endswith("as given") else ""
    try:
        yield
    finally:
        del os.environ["SSAMBA_STATES"]


def variant_pass(case: str, form: str, variant: str) -> None:
    """A pass as it is timed, for ``nvrtc.compile_for``."""
    with rounding(variant):
        one_pass(case, form, change=ALL[variant])


def times(case: str, form: str, repeats: int, variants: list[str]) -> list[str]:
    """A row: milliseconds of the first variant, then the others with their ratio to it; or why there is no time."""
    base, cells = None, []
    for name in variants:
        settings = replace(settings_of(case, form)[0], repeats=repeats, **ALL[name])
        with rounding(name):
            (result,) = measure_all(settings)
        if result.milliseconds is None:
            cells.append(f"{result.status} (error {result.error})")
            continue
        base = base or result.milliseconds
        cells.append(f"{result.milliseconds:.2f} ({result.milliseconds / base:.2f})")
        print(f"{case} {form} {name}: {cells[-1]}", flush=True)
    return [case, *cells]


@torch.no_grad()
def chain_times(batch: int, lengths: tuple[int, ...], form: str, repeats: int) -> list[str]:
    """A row: milliseconds of the chain of pairs for each length, with its ratio to the first."""
    settings = replace(settings_of(f"tiny infer {batch}x512", form)[0], repeats=repeats)
    model, _ = make_model(Case("tiny", "ssamba", 16, 1), settings)
    model = model.to(settings.dtype)
    base, cells = None, []
    for length in lengths:
        noise = torch.randn(batch, length, WIDTHS["tiny"], generator=torch.Generator().manual_seed(length))
        tokens = noise.to(DEVICE, settings.dtype)
        found = median_milliseconds(lambda tokens=tokens: model.encode_tokens(tokens), settings)
        base = base or found
        cells.append(f"{length:,}: {found:.2f} ({found / base:.3f})")
    return [f"batch {batch}", *cells]


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", default="fast", choices=list(FORMS))
    parser.add_argument("--variants", nargs="+", choices=list(ALL), help="beside 16 states in bf16")
    parser.add_argument("--dry-run", action="store_true", help="small cases, on a CPU too")
    a = parser.parse_args()
    if not a.dry_run and DEVICE.type != "cuda":
        raise SystemExit("cliffs.py: needs a GPU")
    variants = list(VARIANTS if a.variants is None else dict.fromkeys([*VARIANTS][:1] + a.variants))
    cases, lengths, repeats = (DRY, {1: (16, 15, 17)}, 1) if a.dry_run else (CASES, LENGTHS, REPEATS)
    if DEVICE.type == "cuda":
        nvrtc.compile_for(*(lambda c=c, v=v: variant_pass(c, a.form, v) for c in cases for v in variants))
    rows = [times(case, a.form, repeats, variants) for case in cases]
    around = [chain_times(batch, given, a.form, repeats) for batch, given in lengths.items()]
    print(f"\n{device_name(DEVICE)}, torch {torch.__version__}, form {a.form}; milliseconds (ratio to the first)\n")
    print(f"| case | {' | '.join(variants)} |")
    print("|---" * (len(variants) + 1) + "|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print("\n| chain of pairs, bf16 | length: milliseconds (ratio to the first) ||||\n|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in around))


if __name__ == "__main__":
    main()
