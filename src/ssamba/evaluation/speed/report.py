"""The bench's results for readers: CSV, a markdown table, and the paper's two figures."""

from __future__ import annotations

import csv
import io
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from ssamba.evaluation.speed.measure import MODELS, Result, Settings
from ssamba.utils.atomic_write import make_folder, write_text
from ssamba.utils.plots import BenchLine, bench_picture

NAMES = {
    "ssamba": "SSAMBA",
    "ssast-compiled": "SSAST, compiled",
    "ssast": "SSAST, fused attention",
    "ssast-written-out": "SSAST, attention written out",
}
CSV_FILE, SPEED_TABLE_FILE, TIME_FILE, MEMORY_FILE = "bench.csv", "bench.md", "time.png", "memory.png"
PAPER_TOKENS = 22016
"""The length at which the paper states its percentages."""


def write_report(folder: Path, results: Sequence[Result], settings: Settings, pictures: bool = True) -> list[Path]:
    """Write bench.csv, bench.md and, with ``pictures``, time.png and memory.png; returns their paths."""
    make_folder(folder)
    write_text(folder / CSV_FILE, _csv(results, settings))
    write_text(folder / SPEED_TABLE_FILE, speed_table(results, settings))
    written = [folder / CSV_FILE, folder / SPEED_TABLE_FILE]
    if pictures:
        title = (
            f"{_what(settings)}, batch {settings.filled().batch}, {_dtype(settings)}, {device_name(settings.device)}"
        )
        for name, value, label in (
            (TIME_FILE, "milliseconds", "milliseconds"),
            (MEMORY_FILE, "mebibytes", "MiB beyond weights and input"),
        ):
            bench_picture(_lines(results, value), folder / name, title, label)
            written.append(folder / name)
    return written


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's and its number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    except (OSError, StopIteration):
        pass
    return f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()}"


def _what(settings: Settings) -> str:
    return "Training (forward and backward)" if settings.training else "Inference"


def _dtype(settings: Settings) -> str:
    return str(settings.dtype).removeprefix("torch.")


def _csv(results: Sequence[Result], settings: Settings) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["device", "torch", "dtype", "size", "model", "batch", "tokens", "milliseconds", "mebibytes", "error", "status"]
    )
    about = [device_name(settings.device), torch.__version__, _dtype(settings)]
    for r in results:
        numbers = ["" if v is None else f"{v:.6g}" for v in (r.milliseconds, r.mebibytes, r.error)]
        writer.writerow([*about, r.case.size, r.case.model, r.case.batch, r.case.tokens, *numbers, r.status])
    return out.getvalue()


def _lines(results: Sequence[Result], value: str) -> dict[str, list[BenchLine]]:
    """Size -> one line for each model; where memory ran out there is a mark instead of a point."""
    found: dict[str, list[BenchLine]] = {}
    for size in dict.fromkeys(r.case.size for r in results):
        for model in MODELS:
            rows = [r for r in results if (r.case.size, r.case.model) == (size, model)]
            points = [(r.case.tokens, getattr(r, value)) for r in rows if getattr(r, value)]
            failed = [(r.case.tokens, r.status) for r in rows if r.status]
            if rows:
                found.setdefault(size, []).append(BenchLine(NAMES[model], points, failed[0] if failed else None))
    return found


def speed_table(results: Sequence[Result], settings: Settings) -> str:
    """Tables of all sizes, with what the comparison at 22,016 tokens (or the longest) and the crossover say."""
    full = settings.filled()
    lines = [
        f"{_what(settings)} of a batch of {full.batch}, {_dtype(settings)}, {device_name(settings.device)}, "
        f"torch {torch.__version__}. Time: median of a pass"
        + (" replayed as a CUDA graph" if settings.device.type == "cuda" else "")
        + ". Memory: peak beyond weights and input. Every output was checked first against a float32 form that shares "
        "no kernel with it; the column error gives SSAMBA's relative error.",
        "",
    ]
    for size in full.sizes:
        table = {(r.case.model, r.case.tokens): r for r in results if r.case.size == size}
        lines += _table(size, table, full)
        lines += _sentences(size, table, full)
    return "\n".join(lines) + "\n"


def _table(size: str, table: dict[tuple[str, int], Result], settings: Settings) -> list[str]:
    models = [m for m in MODELS if m in settings.models]
    lines = [f"| {size}: tokens | " + " | ".join(f"{NAMES[m]}: ms, MiB" for m in models) + " | error |"]
    lines.append("|---" * (len(models) + 2) + "|")
    for tokens in settings.tokens:
        found = [table.get((m, tokens)) for m in models]
        if not any(found):
            continue
        ours = table.get(("ssamba", tokens))
        error = "" if ours is None or ours.error is None else f"{ours.error:.1e}"
        lines.append(f"| {tokens:,} | " + " | ".join(map(_cell, found)) + f" | {error} |")
    return [*lines, ""]


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    if result.milliseconds is None or result.mebibytes is None:
        return result.status
    return f"{_short(result.milliseconds)}, {_short(result.mebibytes)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _sentences(size: str, table: dict[tuple[str, int], Result], settings: Settings) -> list[str]:
    """SSAMBA against each form of SSAST at the paper's length (or the longest that SSAMBA ran), and the crossover."""
    ours = {tokens: r for (model, tokens), r in table.items() if model == "ssamba" and r.milliseconds}
    if not ours:
        return []
    at = PAPER_TOKENS if PAPER_TOKENS in ours else max(ours)
    lines = []
    for model in MODELS[1:]:
        theirs = {tokens: r for (m, tokens), r in table.items() if m == model}
        if at not in theirs:
            continue
        lines.append(f"- {size}, {at:,} tokens, against {NAMES[model]}: {_comparison(ours[at], theirs[at])}. "
                     f"{_crossover(ours, theirs)}")  # fmt: skip
    return [*lines, ""]


def _comparison(ours: Result, theirs: Result) -> str:
    if not (ours.milliseconds and theirs.milliseconds):
        return f"{theirs.status} there"
    text = _percent(ours.milliseconds / theirs.milliseconds, "less time", "more time")
    if ours.mebibytes and theirs.mebibytes:  # tiny passes take no more than the warm-up before them
        text += f", {_percent(ours.mebibytes / theirs.mebibytes, 'less memory', 'more memory')}"
    return text


def _percent(ratio: float, less: str, more: str) -> str:
    return f"{100 * (1 - ratio):.1f} % {less}" if ratio <= 1 else f"{100 * (ratio - 1):.1f} % {more}"


def _crossover(ours: dict[int, Result], theirs: dict[int, Result]) -> str:
    """The length from which SSAMBA is faster, between two measured ones by a straight line in logarithms."""
    ratios = []
    for tokens in sorted(ours):
        other, mine = theirs.get(tokens), ours[tokens].milliseconds
        if other is not None and other.milliseconds and mine:
            ratios.append((tokens, math.log(mine / other.milliseconds)))
    if not ratios:
        return ""
    if all(r < 0 for _, r in ratios):
        return f"Faster at every length from {ratios[0][0]:,} tokens."
    if ratios[-1][1] >= 0:
        return f"Slower up to {ratios[-1][0]:,} tokens."
    (a, ra), (b, rb) = next(
        (ratios[i], ratios[i + 1]) for i in reversed(range(len(ratios) - 1)) if ratios[i][1] >= 0 > ratios[i + 1][1]
    )
    crossing = math.exp(math.log(a) + (math.log(b) - math.log(a)) * ra / (ra - rb))
    return f"Faster from about {round(crossing, -2):,.0f} tokens."
