"""Every candidate tiling of the forward, in one run: right against float64, then timed inside the model beside SSAST.

    PYTHONPATH=src python benchmarks/forward_tilings.py [--cases "tiny 4x22016" ...] [--repeats 10]

A candidate is a set of environment variables (``SSAMBA_CUT`` and ``SSAMBA_PROJ``: see ssamba.ops.environment), and
where the gate is. It is compared with float64 on a small input and with
itself, must run the kernel that it asks for, and is then timed as a CUDA graph of the whole model, weights and products
in bfloat16, as ``ssamba bench`` does. The table comes last; lines appear as
they are measured, so a run that is cut short is of use.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ssamba import ops
from ssamba.evaluation.speed import measure as bench
from ssamba.evaluation.speed.check import expected_tokens, relative_error
from ssamba.models.encoder import Encoder
from ssamba.models.ssamba import SSAMBA
from ssamba.ops.jit import nvrtc
from ssamba.ops.mamba import naive
from ssamba.ops.mamba.params import MixerParams

NAMES = ("SSAMBA_CUT", "SSAMBA_PROJ")
BOUND = 5e-3  # of the float64 comparison; version 6 has 2.1e-3


@dataclass(frozen=True)
class Candidate:
    """A tiling ("" is the default), and the other switches."""

    tiling: str = ""
    proj: str = ""
    late: bool = True

    def __str__(self) -> str:
        parts = ["gate in the scan"] * (not self.late) + [f"projection {self.proj}"] * bool(self.proj)
        return "; ".join([self.tiling or "default", *parts])

    @contextlib.contextmanager
    def chosen(self, model: Encoder) -> Iterator[None]:
        assert isinstance(model, SSAMBA)
        values, plan = (self.tiling, self.proj), model.plan
        least = plan.defer_gate_min_tokens if self.late else 2**40
        model.plan = plan._replace(defer_gate_min_tokens=least, defer_gate_min_tokens_wide=least)
        before = {name: os.environ.get(name) for name in NAMES}
        os.environ.update(zip(NAMES, values, strict=True))
        try:
            yield
        finally:
            model.plan = plan
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


LONG = [
    *(Candidate(proj=proj) for proj in ("", "8,2", "4,3", "16,1")),
    *(Candidate(tiling) for tiling in ("warps=2,blocks=4", "stages=4", "split=1,warps=4,chunks=4,blocks=3")),
    Candidate(late=False),
]  # fmt: skip
WIDE = [
    *(Candidate(proj=proj, late=False) for proj in ("", "8,2", "4,3", "16,1")),
    Candidate(), Candidate("warps=4,blocks=4", late=False), Candidate("warps=4,blocks=4"),
]  # fmt: skip
ALONE = [Candidate(), Candidate(late=False), Candidate("chunks=12"), Candidate("split=2,chunks=8,warps=4,blocks=2")]
BASE = [*(Candidate(proj=proj, late=False) for proj in ("", "8,1", "8,2", "16,1", "4,2")), Candidate()]
BASE_LONG = [*(Candidate(proj=proj) for proj in ("", "8,1", "8,2", "16,1")), Candidate(late=False)]
CASES = {
    "tiny 4x22016": LONG, "tiny 64x512": WIDE, "tiny 1x22016": ALONE, "base 64x512": BASE, "base 4x22016": BASE_LONG,
}  # fmt: skip


def small_mixer(size: str) -> list[Tensor]:
    """Input (a pair's xz) and parameters of a mixer as wide as the size, 2 x 513 tokens."""
    width = 2 * bench.WIDTHS[size]
    rank, draw = width // 32, torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    lane = (2, 2)
    values = [normal(2, 513, 2, 2, width).bfloat16(), normal(*lane, width, 4) * 0.5, normal(*lane, width) * 0.1]
    values += [(normal(*lane, rank + 32, width) / width**0.5).bfloat16(), normal(*lane, width, rank) / rank**0.5]
    values += [normal(*lane, width) - 3, torch.log(torch.rand(*lane, width, 16, generator=draw) * 16 + 0.5)]
    return [v.cuda() for v in [*values, normal(*lane, width)]]


@torch.no_grad()
def mixer(values: list[Tensor], late: bool) -> Tensor:
    if not late:
        return ops.bimamba_inner_packed(*values)
    x = values[0][:, :, 0].contiguous()
    y = ops.bimamba_ungated(x, torch.empty_like(x), *values[1:])
    assert y is not None, "there is no form without a gate here"
    return y


@torch.no_grad()
def truth(values: list[Tensor], late: bool) -> Tensor:
    exact = [v.double() for v in values]
    x, z = exact[0].unbind(2)
    return naive.bimamba_inner(x, None if late else z, MixerParams(*exact[1:]))


@dataclass
class Row:
    case: str
    name: str
    milliseconds: float
    mebibytes: float
    model_error: float
    kernel_error: float = float("nan")
    note: str = ""


@torch.no_grad()
def time_model(model: Encoder, features: Tensor, expected: Tensor, settings: bench.Settings) -> tuple[float, ...]:
    """Milliseconds, MiB beyond weights and input, error."""
    model.encode(features[:, : bench.WARM_UP_FRAMES])
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = model.encode(features)
    torch.cuda.synchronize()
    used = (torch.cuda.max_memory_allocated() - before) / 2**20
    error = relative_error(found[:1], expected)
    del found
    return bench._time(model, features, settings), used, error


def prepared(size: str, name: str, tokens: int, batch: int, settings: bench.Settings) -> tuple[Encoder, Tensor, Tensor]:
    model, features = bench.make_model(bench.Case(size, name, tokens, batch), settings)
    expected = expected_tokens(model, features[:1])
    return model.bfloat16(), features.bfloat16(), expected


def compile_all(candidates: list[Candidate], values: list[Tensor], model: Encoder, features: Tensor) -> None:
    """The kernels of all candidates, on all cores, before anything is timed."""

    def call(candidate: Candidate, run: Callable[[], object]) -> Callable[[], None]:
        def chosen() -> None:
            # What fails is reported when the candidate itself is measured.
            with candidate.chosen(model), contextlib.suppress(Exception):
                run()

        return chosen

    calls = []
    for c in candidates:
        calls += [call(c, lambda c=c: mixer(values, c.late)), call(c, lambda: model.encode(features))]
    with contextlib.suppress(RuntimeError):  # a kernel that is refused is reported likewise
        nvrtc.compile_for(*calls)


def used_kernel(candidate: Candidate, run: Callable[[], object]) -> str:
    """A complaint when the candidate's tiling would not run, because it does not fit."""
    names = " ".join(nvrtc.compile_for(run)[0])
    return "" if "scan_fragments" in names and ("GATE=0" in names) == candidate.late else "another kernel ran"


def measure_case(case: str, candidates: list[Candidate], settings: bench.Settings) -> Iterator[Row]:
    size, shape = case.split()
    batch, tokens = map(int, shape.split("x"))
    model, features, expected = prepared(size, "ssast", tokens, batch, settings)
    yield Row(case, "SSAST", *time_model(model, features, expected, settings))
    del model
    model, features, expected = prepared(size, "ssamba", tokens, batch, settings)
    values = small_mixer(size)
    exact = [truth(values, late) for late in (False, True)]
    with torch.no_grad():
        compile_all(candidates, values, model, features)
    for candidate in [*candidates, candidates[0]]:  # the first again: how far the card has drifted
        row = Row(case, str(candidate), *[float("nan")] * 3)
        with candidate.chosen(model), torch.no_grad():
            try:
                row.note = used_kernel(candidate, lambda: model.encode(features))
                found = [mixer(values, candidate.late) for _ in range(2)]
                row.kernel_error = relative_error(found[0], exact[candidate.late])
                if row.kernel_error > BOUND or not torch.equal(*found):
                    row.note += " WRONG" if row.kernel_error > BOUND else " not the same twice"
                row.milliseconds, row.mebibytes, row.model_error = time_model(model, features, expected, settings)
            except (RuntimeError, AssertionError, ValueError) as error:
                row.note += f" {type(error).__name__}: {str(error)[:60]}"
        yield row


def line(row: Row, base: Row) -> str:
    time_share, memory_share = row.milliseconds / base.milliseconds, row.mebibytes / base.mebibytes
    return (
        f"{row.case:13s} {row.milliseconds:8.2f} ms {time_share:6.3f} {row.mebibytes:7.0f} MiB {memory_share:5.2f}  "
        f"model {row.model_error:.1e} kernel {row.kernel_error:.1e}  {row.name}  {row.note}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    settings = bench.Settings(torch.device("cuda"), torch.bfloat16, repeats=options.repeats)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    lines, begin = [], time.perf_counter()
    for case in options.cases:
        rows: list[Row] = []
        for row in measure_case(case, CASES[case], settings):
            rows.append(row)
            print(f"{time.perf_counter() - begin:5.0f} s  {line(row, rows[0])}", flush=True)
        lines += [line(row, rows[0]) for row in rows]
        torch.cuda.empty_cache()
    print("\ncase, time, of SSAST's, memory, of SSAST's, errors, candidate")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
