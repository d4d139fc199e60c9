"""One run in several processes, each with its GPU: every process works on its rows of each batch.

Gradients are all-reduced in one piece after the backward pass, not by DistributedDataParallel's hooks during it: a
step that is replayed as a CUDA graph has no hooks, and the processes may have different numbers of rows. Decisions of
one process (to save, to stop, a validation's metrics) reach the others over the CPU, so that no GPU waits for them.
"""

from __future__ import annotations

import datetime
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssamba.training.launch import EXIT_LOST, LAUNCHER_DONE, LAUNCHER_PIPE, RANK_BYTES
from ssamba.utils.device import pick_device
from ssamba.utils.errors import ConfigError, SsambaError
from ssamba.utils.threads import start_thread

TIMEOUT = datetime.timedelta(days=1)
"""Of a collective operation: others wait for the first process's validation. An ended process is noticed at once."""


class DistContext:
    """This process among those of a run. ``DistContext()`` is a run of one process, for which all is a no-op.

    Attributes:
        rank: from 0; the process of rank 0 validates and writes the run's files.
        world: number of processes.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._cpu_group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT) if world > 1 else None
        self._with_gradient: list[nn.Parameter] | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch: a block, as large as the others' or one row smaller."""
        return slice(batch * self.rank // self.world, batch * (self.rank + 1) // self.world)

    def fraction(self, batch: int) -> float:
        """The fraction of a batch that this process works on."""
        rows = self.rows(batch)
        return (rows.stop - rows.start) / batch

    def begin(self) -> None:
        """Forget which parameters have gradients: others follow in :meth:`all_reduce_grads`."""
        self._with_gradient = None

    def all_reduce_grads(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by the sum over all processes. Raises ``SsambaError`` when another has ended."""
        if self.world == 1:
            return
        with _one_line_errors():
            if self._with_gradient is None:  # a parameter without gradient in all processes stays so
                having = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device="cpu")
                dist.all_reduce(having, dist.ReduceOp.MAX, group=self._cpu_group)
                self._with_gradient = [p for p, has in zip(parameters, having.tolist(), strict=True) if has]
            used = self._with_gradient
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
        pieces = flat.split([p.numel() for p in used])
        for parameter, piece in zip(used, pieces, strict=True):
            if parameter.grad is None:
                parameter.grad = piece.view_as(parameter).clone()
            else:
                parameter.grad.copy_(piece.view_as(parameter))

    def all_reduce_sum(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named scalars, summed over all processes. Every process calls it with the same names."""
        if self.world == 1 or not sums:
            return sums
        names = sorted(sums)
        values = torch.stack([sums[name].double() for name in names]).cpu()
        with _one_line_errors():
            dist.all_reduce(values, group=self._cpu_group)
        return {name: value.to(sums[name].device) for name, value in zip(names, values, strict=True)}

    def all_reduce_any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether any process has set it."""
        if self.world == 1:
            return flags
        values = torch.tensor(flags, dtype=torch.int32, device="cpu")
        with _one_line_errors():
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self._cpu_group)
        return tuple(bool(v) for v in values.tolist())

    def broadcast_from_main(self, values: dict[str, float] | None, names: Iterable[str]) -> dict[str, float]:
        """The first process's named numbers, in every process; the others give None."""
        if self.world == 1:
            assert values is not None
            return values
        known = list(names)
        numbers = torch.tensor(
            [0.0 if values is None else values[name] for name in known], dtype=torch.float64, device="cpu"
        )
        with _one_line_errors():
            dist.broadcast(numbers, 0, group=self._cpu_group)
        return dict(zip(known, numbers.tolist(), strict=True))

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.all_reduce_any(False)

    def close(self) -> None:
        """Leave the group; the process may then join another."""
        if self.world > 1:
            dist.destroy_process_group()


@contextmanager
def distributed_context(device: str) -> Iterator[tuple[DistContext, torch.device]]:
    """This process among those that a launcher has started, and its device.

    Reads torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK); without them it is a run of one process. Raises
    ``ConfigError`` when there are more processes than GPUs, or for a device with a number.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield DistContext(), pick_device(device)
        return
    chosen = pick_device(device)
    if chosen.type == "cuda":
        local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if chosen.index is not None:
            raise ConfigError(f"device '{device}': several processes take a GPU each, give cuda without a number")
        if local >= found:
            raise ConfigError(f"devices: {local + 1} processes on this machine, but {found} GPUs; give {found} at most")
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    _watch_launcher()
    with _one_line_errors():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
        context = DistContext(dist.get_rank(), world)
    try:
        yield context, chosen
        _wait_when_done(context.rank)
    finally:
        context.close()


def _wait_when_done(rank: int) -> None:
    """Under ``launch``: tell that the work is done, and wait, but for the first process, to be ended.

    Gloo aborts a process when the connection to another one is reset (github.com/pytorch/gloo/issues/514), as happens
    when that one ends first.
    """
    pipe = os.environ.get(LAUNCHER_DONE)
    if pipe is None or rank == 0:
        return
    os.write(int(pipe), rank.to_bytes(RANK_BYTES, "little"))
    os.read(int(os.environ[LAUNCHER_PIPE]), 1)  # returns when the launcher has ended
    raise SystemExit(EXIT_LOST)


def _watch_launcher() -> None:
    """Under ``launch``: stop as on SIGTERM when the launcher has ended."""
    pipe = os.environ.get(LAUNCHER_PIPE)
    if pipe is None:
        return

    def watch() -> None:
        os.read(int(pipe), 1)  # returns when the launcher has ended
        os.kill(os.getpid(), signal.SIGTERM)

    start_thread(watch, "ssamba-launcher")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """A lost connection in one line; silently under ``launch``, which reports the process that failed first."""
    try:
        yield
    except RuntimeError as error:
        if LAUNCHER_PIPE in os.environ:
            raise SystemExit(EXIT_LOST) from None
        first = str(error).strip().splitlines()[0]
        raise SsambaError(
            f"another process of this run has ended, or cannot be reached ({first}); the same command goes on from the "
            "last saved state"
        ) from None
