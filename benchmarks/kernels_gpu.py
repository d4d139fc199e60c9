"""Whole encoders on one GPU: the mixer kernels inside a stand-in of the encoder against an SSAST-shaped ViT, in one
run.

    PYTHONPATH=src python benchmarks/kernels_gpu.py [--cases tiny-infer-4x22016 ...] [--profile]

Both models get the same treatment: bf16 weights and a CUDA graph for inference; float32 weights under bf16 autocast for
training (forward and backward), eager and as a CUDA graph. Time: CUDA events, median of 10 after warm-up, random input.
Memory: peak minus weights (and their gradients) and input, of the eager pass. --dry-run needs no GPU: every model of
the cases takes one pass over a few tokens on the CPU, and nothing is measured.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.ops import add_layer_norm, bimamba_inner_packed
from ssamba.utils.graph_capture import captured

WIDTHS = {"tiny": 192, "small": 384, "base": 768}
CASES = (
    "tiny-infer-4x22016", "tiny-infer-64x512", "tiny-infer-4x512", "tiny-infer-4x4096", "tiny-train-64x512",
    "tiny-train-4x4096", "base-infer-4x22016", "base-infer-64x512", "base-train-64x512",
)  # fmt: skip


class Pair(nn.Module):
    """Two parallel blocks over one input: the products and the mixer, without stochastic depth."""

    def __init__(self, width: int, states: int = 16) -> None:
        super().__init__()
        inner, rank = 2 * width, -(-width // 16)
        self.in_proj = nn.Linear(width, 4 * inner)  # the bias is the folded LayerNorm's
        self.out_proj = nn.Linear(2 * inner, width, bias=False)
        nn.init.normal_(self.out_proj.weight, std=inner**-0.5 / 5)
        lane = (2, 2)
        self.conv_weight = nn.Parameter(torch.randn(*lane, inner, 4) * 0.3)
        self.conv_bias = nn.Parameter(torch.randn(*lane, inner) * 0.1)
        self.x_proj = nn.Parameter(torch.randn(*lane, rank + 2 * states, inner) * inner**-0.5)
        self.dt_proj = nn.Parameter((torch.rand(*lane, inner, rank) * 2 - 1) * rank**-0.5)
        dt = torch.exp(torch.rand(*lane, inner) * 4.6 - 6.9)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(*lane, inner, 1))
        self.D = nn.Parameter(torch.ones(*lane, inner))

    def forward(self, normed: Tensor) -> Tensor:
        xz = self.in_proj(normed).unflatten(-1, (2, 2, -1))
        y = bimamba_inner_packed(
            xz, self.conv_weight, self.conv_bias, self.x_proj, self.dt_proj, self.dt_bias, self.A_log, self.D
        )
        del xz, normed
        return self.out_proj(y.flatten(-2))


class Encoder(nn.Module):
    def __init__(self, width: int, pairs: int = 12) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(Pair(width) for _ in range(pairs))
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        residual = None
        for pair in self.pairs:
            normed, residual = add_layer_norm(x, residual, residual_scale=2.0)
            del x
            x = pair(normed)
            del normed
        x, _ = add_layer_norm(x, residual, self.weight, self.bias, residual_scale=2.0)
        return add_layer_norm(x, None, self.weight, self.bias)[0]


class Layer(nn.Module):
    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = width // 64, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5, -1) @ v
        x = x + self.proj(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Sequential):
    def __init__(self, width: int, fused: bool = True) -> None:
        super().__init__(*(Layer(width, fused) for _ in range(12)), nn.LayerNorm(width))


def median_ms(run: Callable[[], object], repeats: int = 10) -> float:
    times = []
    for i in range(repeats + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def passes(model: nn.Module, x: Tensor, train: bool) -> Callable[[], object]:
    def infer() -> None:
        with torch.no_grad():
            model(x)

    def step() -> None:
        for p in model.parameters():
            p.grad = None
        with torch.autocast("cuda", torch.bfloat16):
            out = model(x)
        out.float().square().mean().backward()

    return step if train else infer


def on_gpu(
    make: Callable[[], nn.Module], batch: int, length: int, width: int, train: bool
) -> tuple[nn.Module, Callable[[], object]]:
    """The model, in bf16 but for training, and its pass over random input."""
    model = make().cuda()
    if not train:
        model = model.bfloat16()
    x = torch.randn(batch, length, width, device="cuda", dtype=torch.float32 if train else torch.bfloat16)
    return model, passes(model, x, train)


def measure(
    make: Callable[[], nn.Module], batch: int, length: int, width: int, train: bool
) -> tuple[float, float, float]:
    """Eager ms, CUDA graph ms and activation MiB."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    model, run = on_gpu(make, batch, length, width, train)
    run()
    torch.cuda.synchronize()
    for p in model.parameters():
        p.grad = None
    base = torch.cuda.memory_allocated() + (sum(p.numel() * 4 for p in model.parameters()) if train else 0)
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    memory = (torch.cuda.max_memory_allocated() - base) / 2**20
    eager = median_ms(run)
    graph = median_ms(captured(run, warm_ups=3))
    return eager, graph, memory


def profile(make: Callable[[], nn.Module], batch: int, length: int, width: int, train: bool) -> None:
    _, run = on_gpu(make, batch, length, width, train)
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    rows = sorted(seen.key_averages(), key=lambda r: -r.self_device_time_total)
    for row in rows[:14]:
        print(f"    {row.self_device_time_total / 1e3:8.2f} ms {row.count:4d} x  {row.key[:90]}")


def dry_run(make: Callable[[], nn.Module], width: int, train: bool) -> None:
    """One pass, and its backward in training, over a few tokens on the CPU."""
    model, x = make(), torch.randn(1, 8, width)
    with torch.set_grad_enabled(train):
        out = model(x)
    if train:
        out.square().mean().backward()
    assert out.shape == x.shape
    assert bool(out.isfinite().all())


def ceilings() -> None:
    x = torch.randn(2**29, device="cuda")
    y = torch.empty_like(x)
    ms = median_ms(lambda: y.copy_(x))
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = median_ms(lambda: a @ a)
    print(f"copy {x.numel() * 8 / ms / 1e9:.2f} TB/s, bf16 product {2 * 8192**3 / product / 1e9:.0f} TFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--profile", action="store_true", help="print the kernels of one pass of ours")
    parser.add_argument("--no-vit", action="store_true")
    parser.add_argument("--written-out", action="store_true", help="also the ViT with softmax(Q K) in memory")
    parser.add_argument("--dry-run", action="store_true", help="one short pass of each model on the CPU")
    options = parser.parse_args()
    if options.dry_run:
        for case in options.cases:
            size, kind, _ = case.split("-")
            width = WIDTHS[size]
            for make in (partial(Encoder, width), partial(ViT, width), partial(ViT, width, fused=False)):
                dry_run(make, width, kind == "train")
            print(f"{case}: runs")
        return
    print(
        torch.cuda.get_device_name(), "torch", torch.__version__, "scan:", os.environ.get("SSAMBA_GPU_SCAN", "default")
    )
    ceilings()
    lines = []
    for case in options.cases:
        size, kind, shape = case.split("-")
        batch, length = map(int, shape.split("x"))
        width, train = WIDTHS[size], kind == "train"
        models: dict[str, Callable[[], nn.Module]] = {"ssamba": lambda width=width: Encoder(width)}
        if not options.no_vit:
            models["sdpa"] = lambda width=width: ViT(width)
        if options.written_out:
            models["softmax"] = lambda width=width: ViT(width, fused=False)
        if options.profile:
            print(case)
            profile(models["ssamba"], batch, length, width, train)
        found = {name: measure(make, batch, length, width, train) for name, make in models.items()}
        line = f"{case:20s}"
        for name, (eager, graph, memory) in found.items():
            line += f" | {name}: eager {eager:7.2f} graph {graph:7.2f} ms {memory:8.0f} MiB"
        if "sdpa" in found:
            line += f" | graph ratio {found['ssamba'][1] / found['sdpa'][1]:.2f}"
            line += f" memory {found['ssamba'][2] / found['sdpa'][2]:.2f}"
        lines.append(line)
        print(line, flush=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
