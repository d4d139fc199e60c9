"""The CPU scan and the SSAMBA encoder beside a transformer of SSAST's tiny size, in one run.

    python benchmarks/scan_cpu.py [--repeats 7] [--long 22016] [--skip-long] [--processor-time]

Prints markdown, for free and tied decays with scans in both directions and alternating ones: the time of one 10 s clip,
the time of long inputs (the least of the repeats; ratios are medians over neighbours in time), the peak memory of long
inputs, state updates per second of the scan forward and backward, and the machine's load before and after.
The transformer is plain torch with `scaled_dot_product_attention` (12 layers, width 192, 3 heads, MLP 4x, pre-norm);
the last column is against the same transformer with the products of `ssamba.ops.linear`, which SSAMBA uses, too.
Each scan is compared with the reference form before it is timed (short lengths).
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba import SSAMBA, Config, ops
from ssamba.models.config import SCANS
from ssamba.ops.linear_layer.module import LinearLayer

WIDTH, HEADS, LAYERS = 192, 3, 12


clock = time.perf_counter


class Form(NamedTuple):
    """Values of ``Config`` that decide what a scan costs."""

    decay: str
    scan: str

    def __str__(self) -> str:
        return f"{self.decay}, {self.scan}"


FORMS = [Form(decay, scan) for scan in ("both", "alternating") for decay in ("free", "tied")]


class Block(nn.Module):
    """A pre-norm transformer block with fused attention."""

    def __init__(self, layer: type[nn.Linear]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv, self.proj = layer(WIDTH, 3 * WIDTH), layer(WIDTH, WIDTH)
        self.mlp = nn.Sequential(layer(WIDTH, 4 * WIDTH), nn.GELU(), layer(4 * WIDTH, WIDTH))

    def forward(self, x_BLd: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x_BLd)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x_BLd = x_BLd + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x_BLd + self.mlp(self.norm2(x_BLd))


def median(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one that is not counted."""
    run()
    return statistics.median(seconds(run) for _ in range(repeats))


def seconds(run: Callable[[], object]) -> float:
    begin = clock()
    run()
    return clock() - begin


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, all in turn ``repeats`` times: what else the machine does then slows all alike."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(seconds(run))
    return found


def ratio(times: list[float], others: list[float]) -> float:
    """The median of the ratios of neighbours in time."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def scan_arguments(batch: int, length: int, form: Form, channels: int) -> list[Tensor]:
    """Random operands of ``ops.selective_scan`` with the decay of a new model."""
    g = torch.Generator().manual_seed(0)
    lanes, states = (SCANS[form.scan], 2), 16

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    decay = -torch.arange(1.0, states + 1).expand(*lanes, channels, states)
    return [
        draw(batch, length, *lanes, channels),
        draw(batch, length, *lanes, channels) * 0.5,
        (decay[..., :1] if form.decay == "tied" else decay).contiguous(),
        draw(batch, length, *lanes, states),
        draw(batch, length, *lanes, states),
        draw(*lanes, channels),
        draw(*lanes, channels) * 0.5 - 4,
        draw(batch, length, 2, channels),
    ]


def scan_calls(form: Form) -> tuple[Callable[[], object], Callable[[], object], int]:
    """The scan of both blocks forward, backward, and its state updates; its values are checked first."""
    arguments, alternating = scan_arguments(4, 513, form, 384), form.scan == "alternating"
    short = [a[:1, :33] if a.dim() > 3 and a.shape[1] == 513 else a for a in arguments]
    with ops.use_backend("reference"):
        truth = ops.selective_scan(*short, alternating=alternating)
    error = ((ops.selective_scan(*short, alternating=alternating) - truth).norm() / truth.norm()).item()
    assert error < 1e-5, error
    leaves = [a.clone().requires_grad_() for a in arguments]
    out = ops.selective_scan(*leaves, alternating=alternating)
    weight = torch.randn_like(out)

    def forward() -> object:
        with torch.no_grad():
            return ops.selective_scan(*arguments, alternating=alternating)

    backward = functools.partial(torch.autograd.grad, out, leaves, weight, retain_graph=True)
    return forward, backward, 4 * 513 * 384 * 16 * SCANS[form.scan] * 2


def time_scan(repeats: int) -> None:
    print("\n| scan, batch 4 x 513 x 2 x 384 x 16 | forward | updates/s | backward | backward / forward |")
    print("|---|---|---|---|---|")
    calls = {form: scan_calls(form) for form in FORMS}
    runs = {f"{form} {way}": calls[form][i] for form in FORMS for i, way in enumerate(("forward", "backward"))}
    times = interleaved(runs, repeats)
    for form in FORMS:
        forward, backward = times[f"{form} forward"], times[f"{form} backward"]
        least = min(forward)
        print(
            f"| {form} | {1e3 * least:.2f} ms | {calls[form][2] / least / 1e9:.2f} G | {1e3 * min(backward):.2f} ms "
            f"| {ratio(backward, forward):.2f} |"
        )


def encoder(tokens: int, form: Form) -> tuple[SSAMBA, Tensor]:
    """SSAMBA-tiny, and log-mel features of 8 x (tokens / 8) patches."""
    model = SSAMBA(Config.tiny(frames=tokens // 8 * 16, decay=form.decay, scan=form.scan)).eval()
    return model, torch.randn(1, tokens // 8 * 16, 128, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def time_clip(tokens: int, repeats: int) -> None:
    x = torch.randn(1, tokens + 2, WIDTH)
    vit, same = (nn.Sequential(*[Block(layer) for _ in range(LAYERS)]).eval() for layer in (nn.Linear, LinearLayer))
    runs: dict[str, Callable[[], object]] = {"vit": lambda: vit(x), "same": lambda: same(x)}
    for form in FORMS:
        model, features = encoder(tokens, form)
        runs[str(form)] = functools.partial(model.encode, features)
    times = interleaved(runs, repeats)
    theirs, with_same_products = times.pop("vit"), times.pop("same")
    for name, ours in times.items():
        print(
            f"| {tokens:,} | {name} | {1e3 * min(ours):,.0f} ms | {1e3 * min(theirs):,.0f} ms "
            f"| {ratio(ours, theirs):.3f} | {ratio(ours, with_same_products):.3f} |",
            flush=True,
        )


@torch.no_grad()
def peak_of(tokens: int) -> None:
    """Print the peak memory that one encoding adds, in MiB; run in a process of its own."""
    model, features = encoder(tokens, FORMS[0])
    model.encode(features[:, :1024])  # compile, load libraries
    begin = memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak of loading and compiling
    model.encode(features)
    print(memory("VmHWM") - begin)


def load() -> str:
    """The load of the machine: ratios of a busy one say less."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"


def memory(kind: str) -> float:
    """A line of /proc/self/status in MiB (Linux)."""
    with open("/proc/self/status") as file:
        return float(next(line.split()[1] for line in file if line.startswith(kind))) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--long", type=int, default=22016)
    parser.add_argument("--skip-long", action="store_true")
    parser.add_argument(
        "--processor-time", action="store_true", help="of all threads: for a busy machine, with 1 thread"
    )
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak_of(arguments.peak)
        return
    if arguments.processor_time:
        global clock
        clock = time.process_time
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32, {load()}\n")
    print("| patch tokens, batch 1 | decays, scans | SSAMBA tiny | ViT tiny, sdpa | ratio | same products |")
    print("|---|---|---|---|---|---|")
    time_clip(512, arguments.repeats)
    if not arguments.skip_long:
        time_clip(4096, 3)
        time_clip(arguments.long, 2)
        print_peaks(arguments.long)
    keep_freed_memory()
    time_scan(arguments.repeats)
    print(f"\n{load()}")


def print_peaks(long: int) -> None:
    """Each length in a process of its own."""
    print("\n| patch tokens | peak memory added by SSAMBA tiny | per token |\n|---|---|---|")
    for tokens in (4096, long, 4 * long, 180_000):
        command = [sys.executable, __file__, "--peak", str(tokens)]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"| {tokens:,} | {peak:,.0f} MiB | {1024 * peak / tokens:.1f} KiB |", flush=True)


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory, as it comes to do in training: fresh pages would cost more than the scan."""
    if platform.libc_ver()[0] == "glibc":
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, 1 << 30)


if __name__ == "__main__":
    main()
