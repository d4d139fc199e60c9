"""The CPU scan and the SSAMBA encoder beside a transformer of SSAST's tiny size, in one run.

    python benchmarks/scan_cpu.py [--repeats 7] [--long 22016] [--skip-long]

Prints markdown: state updates per second of the scan forward and backward, the time of one 10 s clip, the time and the
peak memory of long inputs. The transformer is plain torch with `scaled_dot_product_attention` (12 layers, width 192, 3
heads, MLP 4x, pre-norm). Each SSAMBA output is compared with the reference form before it is timed (short lengths).
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba import SSAMBA, Config, ops

WIDTH, HEADS, LAYERS = 192, 3, 12


class Block(nn.Module):
    """A pre-norm transformer block with fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x_BLd: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x_BLd)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x_BLd = x_BLd + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x_BLd + self.mlp(self.norm2(x_BLd))


def median(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def scan_arguments(batch: int, length: int, directions: int, blocks: int, channels: int) -> list[Tensor]:
    """Random operands of ``ops.selective_scan`` with the decay of a new model."""
    g = torch.Generator().manual_seed(0)
    lanes, states = (directions, blocks), 16

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    decay = -torch.arange(1.0, states + 1).expand(*lanes, channels, states).contiguous()
    return [
        draw(batch, length, *lanes, channels),
        draw(batch, length, *lanes, channels) * 0.5,
        decay,
        draw(batch, length, *lanes, states),
        draw(batch, length, *lanes, states),
        draw(*lanes, channels),
        draw(*lanes, channels) * 0.5 - 4,
        draw(batch, length, blocks, channels),
    ]


def time_scan(repeats: int) -> None:
    print("| scan, batch 4 x 513 x 384 x 16 | forward | updates/s | backward | ratio |\n|---|---|---|---|---|")
    for directions, blocks in ((1, 1), (2, 2)):
        arguments = scan_arguments(4, 513, directions, blocks, 384)
        updates = 4 * 513 * 384 * 16 * directions * blocks
        short = [a[:1, :33] if a.dim() > 3 and a.shape[1] == 513 else a for a in arguments]
        with ops.use_backend("reference"):
            truth = ops.selective_scan(*short)
        error = ((ops.selective_scan(*short) - truth).norm() / truth.norm()).item()
        assert error < 1e-5, error
        with torch.no_grad():
            forward = median(functools.partial(ops.selective_scan, *arguments), repeats)
        leaves = [a.requires_grad_() for a in arguments]
        out = ops.selective_scan(*leaves)
        weight = torch.randn_like(out)
        backward = median(functools.partial(torch.autograd.grad, out, leaves, weight, retain_graph=True), repeats)
        print(
            f"| {directions} direction(s), {blocks} block(s) | {1e3 * forward:.2f} ms "
            f"| {updates / forward / 1e9:.2f} G | {1e3 * backward:.2f} ms | {backward / forward:.2f} |"
        )


def encoders(tokens: int) -> tuple[nn.Module, SSAMBA, Tensor]:
    """The transformer, SSAMBA-tiny, and log-mel features of 8 x (tokens / 8) patches."""
    vit = nn.Sequential(*[Block() for _ in range(LAYERS)]).eval()
    model = SSAMBA(Config.tiny(frames=tokens // 8 * 16)).eval()
    features = torch.randn(1, tokens // 8 * 16, 128, generator=torch.Generator().manual_seed(1))
    return vit, model, features


@torch.no_grad()
def time_clip(tokens: int, repeats: int, vit_repeats: int) -> None:
    vit, model, features = encoders(tokens)
    x = torch.randn(1, tokens + 2, WIDTH)
    ours, theirs = median(lambda: model.encode(features), repeats), median(lambda: vit(x), vit_repeats)
    print(f"| {tokens:,} | {1e3 * ours:,.0f} ms | {1e3 * theirs:,.0f} ms | {ours / theirs:.2f} |", flush=True)


@torch.no_grad()
def peak_of(tokens: int) -> None:
    """Print the peak memory that one encoding adds, in MiB; run in a process of its own."""
    _, model, features = encoders(tokens)
    model.encode(features[:, :1024])  # compile, load libraries
    begin = memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak of loading and compiling
    model.encode(features)
    print(memory("VmHWM") - begin)


def memory(kind: str) -> float:
    """A line of /proc/self/status in MiB (Linux)."""
    with open("/proc/self/status") as file:
        return float(next(line.split()[1] for line in file if line.startswith(kind))) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--long", type=int, default=22016)
    parser.add_argument("--skip-long", action="store_true")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak_of(arguments.peak)
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32\n")
    time_scan(arguments.repeats)
    print("\n| patch tokens, batch 1 | SSAMBA tiny | ViT tiny, sdpa | ratio |\n|---|---|---|---|")
    time_clip(512, arguments.repeats, arguments.repeats)
    if arguments.skip_long:
        return
    time_clip(4096, 3, 3)
    time_clip(arguments.long, 2, 1)
    print("\n| patch tokens | peak memory added by SSAMBA tiny | per token |\n|---|---|---|")
    for tokens in (4096, arguments.long, 4 * arguments.long, 180_000):
        command = [sys.executable, __file__, "--peak", str(tokens)]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"| {tokens:,} | {peak:,.0f} MiB | {1024 * peak / tokens:.1f} KiB |", flush=True)


if __name__ == "__main__":
    main()
