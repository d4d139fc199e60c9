"""Time and peak memory of one encoder at one length, after its output has been checked; out of memory is a result.

On a GPU a pass is timed as a CUDA graph, for both kinds of encoder alike, and its memory is what the allocator held at
most beyond weights and input. On a CPU each case runs in a separate process, whose peak of resident memory is read
from the operating system, with a limit on what it may take.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from ssamba.evaluation.speed.check import expected_tokens, relative_error
from ssamba.inference.model import KINDS, SSAMBA, SSAST, Encoder
from ssamba.models.bimamba import MambaPair
from ssamba.models.config import WIDTHS, Config
from ssamba.utils.errors import ConfigError
from ssamba.utils.graph_capture import captured, compiler_problem
from ssamba.utils.torch_defaults import HOST_FLOAT32

MODELS = ("ssamba", "ssast-compiled", "ssast", "ssast-written-out")
"""SSAST under ``torch.compile``, the fastest form that a user can have, is the peer. The last has the attention matrix
in memory: what the paper compares with."""
PEER = "ssast-compiled"
DEFAULT_MODELS = {"cuda": MODELS, "cpu": ("ssamba", "ssast", "ssast-written-out")}
"""On a CPU ``torch.compile`` needs a C++ compiler, so its form is measured there only when it is asked for."""
FREQUENCY_ROWS = Config().grid[0]
"""Patches along frequency of the models that are measured."""
DEFAULT_TOKENS = {
    "cuda": (512, 1024, 2048, 4096, 8192, 16384, 22016, 32768, 49152, 75008),
    "cpu": (512, 1024, 2048, 4096),
}
BATCH = {"cuda": 4, "cpu": 1}
SIZES = {"cuda": ("tiny", "small", "base"), "cpu": ("tiny",)}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""Largest relative error of the tokens after the whole encoder against float32, for weights and products in a dtype."""
COMPILED_WARM_UPS = 3
OUT_OF_MEMORY, WRONG, TOO_SLOW = "out of memory", "wrong output", "too slow"
SHARE_OF_MEMORY = 0.8
WARM_UP_FRAMES = 160
OUT_SCALE, STATE_SCALE = 100.0, 4.0


@dataclass(frozen=True)
class Case:
    """One point of the figures: ``tokens`` patches, without the prefix tokens."""

    size: str
    model: str
    tokens: int
    batch: int


@dataclass(frozen=True)
class Result:
    """What came of a case. ``milliseconds`` of one pass (median), ``mebibytes`` beyond weights and input.

    ``status`` is empty, or says why there is no number; ``error`` is the relative error of the output.
    """

    case: Case
    status: str = ""
    milliseconds: float | None = None
    mebibytes: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Settings:
    """What to measure and how: empty choices mean those that suit the device.

    ``limit_seconds`` is for one case, longer ones of the same model are then left out. With ``training`` a pass is
    forward and backward of float32 weights under autocast to ``dtype``, without an optimiser. ``decay`` and ``scan``:
    the form of SSAMBA's models, ``states`` its states a channel (``Config``).
    """

    device: torch.device
    dtype: torch.dtype
    sizes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    batch: int = 0
    repeats: int = 10
    limit_seconds: float = 120.0
    training: bool = False
    decay: str = "free"
    scan: str = "both"
    states: int = 16

    def filled(self) -> Settings:
        """With the device's choices in place of empty ones. Raises ``ConfigError`` for sizes that do not exist."""
        kind = self.device.type
        full = replace(
            self,
            sizes=self.sizes or SIZES[kind],
            models=self.models or DEFAULT_MODELS[kind],
            tokens=tuple(sorted(self.tokens or DEFAULT_TOKENS[kind])),
            batch=self.batch or BATCH[kind],
        )
        for tokens in full.tokens:
            if tokens < FREQUENCY_ROWS or tokens % FREQUENCY_ROWS:
                raise ConfigError(f"tokens: {tokens}, give multiples of {FREQUENCY_ROWS} (patches along frequency)")
        for name, known in (("sizes", WIDTHS), ("models", MODELS)):
            for value in getattr(full, name):
                if value not in known:
                    raise ConfigError(f"{name}: '{value}', choose from {', '.join(known)}")
        return full


def measure_all(settings: Settings, progress: Callable[[float, float, str], None] | None = None) -> Iterator[Result]:
    """Results of all cases, shortest first for each size and model; those longer than one that failed fail likewise."""
    settings = settings.filled()
    if PEER in settings.models:
        _check_compiler(settings)
    done, total = 0, len(settings.sizes) * len(settings.models) * len(settings.tokens)
    for size in settings.sizes:
        for model in settings.models:
            failed = ""
            for tokens in settings.tokens:
                case = Case(size, model, tokens, settings.batch)
                if progress is not None:
                    progress(done, total, f"{size} {model}, {tokens:,} tokens")
                result = Result(case, failed) if failed else _measure(case, settings)
                failed = result.status if result.status in (OUT_OF_MEMORY, TOO_SLOW) else ""
                yield result
                done += 1


def _check_compiler(settings: Settings) -> None:
    """Refuse ``torch.compile`` where it cannot work, before hours of other cases."""
    reason = compiler_problem(settings.device)
    if reason is not None:
        raise ConfigError(f"models: {PEER} needs torch.compile, which does not work here ({reason}); leave it out")


def _measure(case: Case, settings: Settings) -> Result:
    if settings.device.type == "cpu":
        return _in_a_process(case, settings)
    return _guarded(case, settings)


def _guarded(case: Case, settings: Settings) -> Result:
    try:
        return measure(case, settings)
    except torch.OutOfMemoryError:
        return Result(case, OUT_OF_MEMORY)
    except (MemoryError, RuntimeError) as error:
        # The CPU's allocator raises a plain RuntimeError.
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        return Result(case, OUT_OF_MEMORY)
    finally:
        gc.collect()
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()


def make_model(case: Case, settings: Settings) -> tuple[Encoder, Tensor]:
    """The case's encoder with random weights in float32, and random features (B, frames, mel_bins) on the device."""
    frames = case.tokens // FREQUENCY_ROWS * Config().patch_time
    encoder = case.model.split("-")[0]
    decay, scan = (settings.decay, settings.scan) if encoder == "ssamba" else ("free", "both")
    config = Config(
        encoder=encoder, width=WIDTHS[case.size], frames=frames, decay=decay, scan=scan, state_size=settings.states
    )
    model = KINDS[config.encoder](config, generator=torch.Generator().manual_seed(1)).to(settings.device).eval()
    if isinstance(model, SSAMBA):
        _weigh_alike(model)
    if isinstance(model, SSAST):
        model.write_out_attention(case.model.endswith("written-out"))
    noise = torch.randn(
        case.batch,
        frames,
        config.mel_bins,
        generator=torch.Generator().manual_seed(2),
        **HOST_FLOAT32,
    )
    return model, (0.5 * noise).to(settings.device)


@torch.no_grad()
def _weigh_alike(model: SSAMBA) -> None:
    """Let every pair contribute to the output: new ones hardly do, since the residual stream doubles at each pair.

    Otherwise a wrong mixer would pass the check.
    """
    for i, pair in enumerate(model.pairs):
        assert isinstance(pair, MambaPair)
        pair.out_proj_dKE.mul_(OUT_SCALE * 2**i)
        pair.x_proj_RKPE.mul_(STATE_SCALE)  # and the states, relative to the skip
        pair.D_RKE.div_(STATE_SCALE)


@torch.no_grad()
def measure(case: Case, settings: Settings) -> Result:
    """Check, then time one case in this process. Raises what the device raises when memory does not suffice."""
    model, features = make_model(case, settings)
    expected = expected_tokens(model, features[:1])
    if not settings.training:
        model = model.to(settings.dtype)
        features = features.to(settings.dtype)
    encode = _encode_of(model, case, settings)
    # Compiled kernels and workspaces are no activations; torch.compile needs the shape that is timed.
    warm = features if case.model == PEER else features[:, :WARM_UP_FRAMES]
    run_pass(model, encode, warm, settings)
    _sync(settings.device)
    before = _memory(settings.device, reset=True)
    begin = time.perf_counter()
    found = run_pass(model, encode, features, settings)
    _sync(settings.device)
    first = time.perf_counter() - begin
    used = max(0.0, _memory(settings.device) - before) / 2**20
    error = relative_error(found[:1], expected)
    del found, expected
    if error > TOLERANCE[settings.dtype]:
        return Result(case, WRONG, error=error)
    if first > settings.limit_seconds:
        return Result(case, TOO_SLOW, error=error, mebibytes=used)
    warm_ups = COMPILED_WARM_UPS if case.model == PEER else 1
    milliseconds = median_milliseconds(lambda: run_pass(model, encode, features, settings), settings, warm_ups)
    return Result(case, "", milliseconds, used, error)


def _encode_of(model: Encoder, case: Case, settings: Settings) -> Callable[[Tensor], Tensor]:
    """The call that is timed: features to tokens."""
    if case.model != PEER:
        return model.encode
    torch._dynamo.reset()
    return torch.compile(model.encode, dynamic=False)


def run_pass(model: Encoder, encode: Callable[[Tensor], Tensor], features: Tensor, settings: Settings) -> Tensor:
    """One pass, for training with the gradients of all weights, which are written anew; returns the tokens."""
    if not settings.training:
        return encode(features)
    for parameter in model.parameters():
        parameter.grad = None
    with torch.enable_grad():
        with torch.autocast(settings.device.type, settings.dtype, enabled=settings.dtype != torch.float32):
            tokens = encode(features)
        tokens.float().square().mean().backward()
    return tokens.detach()


def median_milliseconds(run: Callable[[], object], settings: Settings, warm_ups: int = 1) -> float:
    """Median milliseconds of a pass, on a GPU as a CUDA graph; five seconds of repeats are enough for slow ones."""
    on_gpu = settings.device.type == "cuda"
    if on_gpu:
        run = captured(run, warm_ups=warm_ups)
    times: list[float] = []
    run()
    _sync(settings.device)
    begin = time.perf_counter()
    while len(times) < settings.repeats and (len(times) < 3 or time.perf_counter() - begin < 5):
        if on_gpu:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            at = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - at))
    return statistics.median(times)


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device, reset: bool = False) -> float:
    """Bytes in use at most since the last reset; with ``reset``, those in use now."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.max_memory_allocated(device))
    if reset:
        with contextlib.suppress(OSError):  # Linux: the peak starts again at what is resident now
            Path("/proc/self/clear_refs").write_text("5")
    return _peak_resident()


def _peak_resident() -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) if os.uname().sysname == "Darwin" else 1024.0 * peak


def _in_a_process(case: Case, settings: Settings) -> Result:
    """Run a case in a new process that may take most of the free memory, and no longer than the limit allows."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, case, settings), daemon=True)
    process.start()
    theirs.close()
    try:
        if not mine.poll((2 + settings.repeats) * settings.limit_seconds):
            return Result(case, TOO_SLOW)
        result: Result | BaseException = mine.recv()
    except EOFError:  # ended from outside: the system's last resort when memory is gone
        return Result(case, OUT_OF_MEMORY)
    finally:
        process.kill()
        process.join()
    if isinstance(result, BaseException):
        raise result
    return result


def _child(connection: Connection, case: Case, settings: Settings) -> None:
    with contextlib.suppress(OSError, ValueError):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + int(SHARE_OF_MEMORY * free),) * 2)
    try:
        connection.send(_guarded(case, settings))
    except BaseException as error:
        connection.send(error)
