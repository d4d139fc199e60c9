"""SSAMBA's forms (decays free or tied, scans both ways or alternating) beside the compiled SSAST, on one GPU.

    PYTHONPATH=src python benchmarks/fast_forms.py [--peer] [--forms exact fast ...] [--cases "tiny infer 64x512" ...]

Forms: exact (free decays, both directions), tied, alternating, fast (tied and alternating). As in compiled_peer.py:
bf16, CUDA graphs, median of 10 passes, training is forward and backward; every output is checked first. The compiled
SSAST is taken from docs/benchmarks/h100-compiled.md (one H100) unless ``--peer`` measures it in this run too, which
takes minutes more. ``--tests`` first runs the GPU tests of the forms; ``--tilings`` adds tilings of the fast form.
``--profile`` prints which kernels take the time of each case in the first form.
Lines appear as they are measured; the table comes last. A cell is the time and, in brackets, its ratio to the peer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ssamba.evaluation.speed.measure import (
    PEER,
    WARM_UP_FRAMES,
    Case,
    Result,
    Settings,
    make_model,
    measure_all,
    run_pass,
)
from ssamba.evaluation.speed.report import device_name
from ssamba.ops.jit import nvrtc

ROOT = Path(__file__).resolve().parent.parent
FORMS = {"fast": ("tied", "alternating"), "alternating": ("free", "alternating"), "tied": ("tied", "both"),
         "exact": ("free", "both")}  # fmt: skip
CASES = {  # milliseconds of the compiled SSAST on one H100, and the ratio to reach
    "tiny infer 64x512": (3.16, 0.9), "tiny infer 1x512": (0.42, 1.2), "tiny infer 4x22016": (47.43, 0.25),
    "tiny train 64x512": (11.88, 1.5), "tiny train 256x104": (8.69, 1.6), "small infer 64x512": (6.42, 1.1),
    "base infer 64x512": (16.22, 1.1), "base infer 4x22016": (209.62, 0.26), "base train 64x512": (54.75, 1.6),
}  # fmt: skip
TILINGS = {
    "tiny infer 64x512": ["warps=4,blocks=4", "warps=8,blocks=2,stages=4", "warps=4,blocks=3"],
    "tiny infer 1x512": ["split=2,warps=4,blocks=2,chunks=1", "chunks=4", "chunks=16"],
    "tiny infer 4x22016": ["chunks=4", "chunks=16", "split=2,warps=4,blocks=2,chunks=1", "blocks=4"],
    "base infer 64x512": ["warps=4,blocks=4"],
}  # fmt: skip


DRY = {"tiny infer 1x16": (1.0, 1.0), "tiny train 1x16": (1.0, 1.0)}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settings_of(case: str, form: str, model: str = "ssamba") -> tuple[Settings, Case]:
    """What ``measure_all`` takes for a case."""
    size, what, shape = case.split()
    batch, tokens = map(int, shape.split("x"))
    decay, scan = FORMS[form]
    settings = Settings(
        DEVICE, torch.bfloat16, (size,), (model,), (tokens,), batch=batch, training=what == "train",
        decay=decay, scan=scan,
    )  # fmt: skip
    return settings, Case(size, model, tokens, batch)


def one_pass(case: str, form: str, tiling: str = "", change: Mapping[str, object] | None = None) -> None:
    """A pass as it is timed, for ``nvrtc.compile_for``. ``change`` replaces some of the settings."""
    settings, point = settings_of(case, form)
    settings = replace(settings, **(change or {}))
    model, features = make_model(point, settings)
    if not settings.training:
        model, features = model.to(settings.dtype), features.to(settings.dtype)
    with tiled(tiling), torch.set_grad_enabled(settings.training), contextlib.suppress(RuntimeError):
        for given in (features[:, :WARM_UP_FRAMES], features):
            run_pass(model, model.encode, given, settings)


@contextlib.contextmanager
def tiled(tiling: str) -> Iterator[None]:
    """With ``SSAMBA_CUT``; "" leaves that as it was given."""
    given = os.environ.get("SSAMBA_CUT", "")
    os.environ["SSAMBA_CUT"] = tiling or given
    try:
        yield
    finally:
        os.environ["SSAMBA_CUT"] = given


def cell(result: Result, peer: float) -> str:
    """Milliseconds, the ratio to the peer, and MiB; or why there are none."""
    if result.milliseconds is None:
        return f"{result.status} (error {result.error})"
    return f"{result.milliseconds:.2f} ({result.milliseconds / peer:.2f}), {result.mebibytes:,.0f} MiB"


def measured(case: str, form: str, model: str = "ssamba", tiling: str = "") -> Result:
    """One case of one form."""
    with tiled(tiling):
        (result,) = measure_all(settings_of(case, form, model)[0])
    return result


def profile(case: str, form: str) -> None:
    """Prints device milliseconds and calls of the kernels of one pass."""
    settings, point = settings_of(case, form)
    model, features = make_model(point, settings)
    if not settings.training:
        model, features = model.to(settings.dtype), features.to(settings.dtype)
    with torch.set_grad_enabled(settings.training):
        run_pass(model, model.encode, features, settings)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
            run_pass(model, model.encode, features, settings)
            torch.cuda.synchronize()
    rows = sorted(recorded.key_averages(), key=lambda row: -row.self_device_time_total)
    print(f"{case} {form}: {sum(row.self_device_time_total for row in rows) / 1e3:.2f} ms on the device")
    for row in rows[:25]:
        print(f"  {row.self_device_time_total / 1e3:8.3f} ms {row.count:5d} x  {row.key[:110]}", flush=True)


def run_tests() -> None:
    """The GPU tests of the forms, several processes at once."""
    command = [sys.executable, "tests/gpu_suite.py", "--jobs", "12", "--seconds", "200", "-k", "test_gpu_forms"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, "--passed", f"{folder}/passed"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    found = [line for line in done.stdout.splitlines() if re.search(r"FAILED|ERROR|^E  |passed|failed", line)]
    print("\n".join(found)[-8000:], flush=True)


def main() -> None:
    """Measure what the arguments name, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--peer", action="store_true", help="measure the compiled SSAST in this run")
    parser.add_argument("--tests", action="store_true", help="first run the GPU tests of these forms")
    parser.add_argument("--tilings", action="store_true", help="also measure other tilings of the fast form")
    parser.add_argument("--profile", action="store_true", help="print the kernels of each case in the first form")
    parser.add_argument("--dry-run", action="store_true", help="two cases of 16 tokens on the CPU")
    options = parser.parse_args()
    if not options.dry_run and DEVICE.type != "cuda":
        raise SystemExit("fast_forms.py: needs a GPU")
    if options.tests:
        run_tests()
    begin = time.perf_counter()
    cases = DRY if options.dry_run else {name: CASES[name] for name in options.cases}
    tilings = [(c, t) for c in cases for t in TILINGS.get(c, [])] if options.tilings else []
    if not options.dry_run:
        calls = [lambda c=c, f=f: one_pass(c, f) for f in options.forms for c in cases]
        nvrtc.compile_for(*calls, *(lambda c=c, t=t: one_pass(c, "fast", t) for c, t in tilings))
    peers, of_peers = {c: given for c, (given, _) in cases.items()}, {}
    for case in cases if options.peer else ():
        result = measured(case, "exact", PEER)
        peers[case] = result.milliseconds or peers[case]
        of_peers[case] = cell(result, peers[case])
        print(f"{time.perf_counter() - begin:.0f} s: {case} {PEER}: {of_peers[case]}", flush=True)
    cells = {}
    for form in options.forms:
        for case in cases:
            cells[case, form] = cell(measured(case, form), peers[case])
            print(f"{time.perf_counter() - begin:.0f} s: {case} {form}: {cells[case, form]}", flush=True)
    for case in cases if options.profile else ():
        profile(case, options.forms[0])
    for case, tiling in tilings:
        print(f"{case} fast, {tiling}: {cell(measured(case, 'fast', tiling=tiling), peers[case])}", flush=True)
    print(f"\n{device_name(DEVICE)}, torch {torch.__version__}, bf16, {time.perf_counter() - begin:.0f} s\n")
    print(f"| case | {' | '.join(options.forms)} | {PEER} | goal |")
    print("|---" * (len(options.forms) + 3) + "|")
    for case, (_, goal) in cases.items():
        of_peer = of_peers.get(case, f"{peers[case]:.2f}")
        print(f"| {case} | {' | '.join(cells[case, f] for f in options.forms)} | {of_peer} | {goal} |")


if __name__ == "__main__":
    main()
