"""One run in several processes, each with its GPU: every process works on its rows of each batch.

Gradients are added up in one piece after the backward pass, and not by DistributedDataParallel's hooks during it: a
step that is replayed as a CUDA graph has no hooks, and the processes may have different numbers of rows. What one
process decides (to save, to stop, how good a validation is) all learn over the CPU, so that no GPU waits for it.
"""

from __future__ import annotations

import datetime
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssamba.training.launch import EXIT_LOST, LIFELINE
from ssamba.utils.device import pick_device
from ssamba.utils.errors import ConfigError, SsambaError

PATIENCE = datetime.timedelta(days=1)
"""A process may wait this long for the first one's validation. One that has ended is noticed at once all the same."""


class Ranks:
    """This process's place among those of a run. ``Ranks()`` is a run of one process, for which all is a no-op.

    Attributes:
        rank: from 0; the process of rank 0 validates and writes the run's files.
        world: number of processes.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._talk: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if world > 1 else None
        self._with_gradient: list[nn.Parameter] | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch: a block, as large as the others' or one row smaller."""
        return slice(batch * self.rank // self.world, batch * (self.rank + 1) // self.world)

    def share(self, batch: int) -> float:
        """The share of a batch that this process has."""
        rows = self.rows(batch)
        return (rows.stop - rows.start) / batch

    def begin(self) -> None:
        """Other parameters follow in :meth:`add_up`."""
        self._with_gradient = None

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by the sum over all processes. Raises ``SsambaError`` when another has ended."""
        if self.world == 1:
            return
        with _told():
            if self._with_gradient is None:  # those that no process has one for stay without
                having = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
                dist.all_reduce(having, dist.ReduceOp.MAX, group=self._talk)
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

    def total(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named scalars, summed over all processes. Every process calls it with the same names."""
        if self.world == 1 or not sums:
            return sums
        names = sorted(sums)
        values = torch.stack([sums[name].double() for name in names]).cpu()
        with _told():
            dist.all_reduce(values, group=self._talk)
        return {name: value.to(sums[name].device) for name, value in zip(names, values, strict=True)}

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether any process has set it."""
        if self.world == 1:
            return flags
        values = torch.tensor(flags, dtype=torch.int32)
        with _told():
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self._talk)
        return tuple(bool(v) for v in values.tolist())

    def told_by_main(self, values: dict[str, float] | None, names: Iterable[str]) -> dict[str, float]:
        """The first process's named numbers, in every process; the others give None."""
        if self.world == 1:
            assert values is not None
            return values
        known = list(names)
        numbers = torch.tensor([0.0 if values is None else values[name] for name in known], dtype=torch.float64)
        with _told():
            dist.broadcast(numbers, 0, group=self._talk)
        return dict(zip(known, numbers.tolist(), strict=True))

    def wait(self) -> None:
        """Go on when every process has come here."""
        self.any(False)

    def close(self) -> None:
        """Leave the group; the process may then join another."""
        if self.world > 1:
            dist.destroy_process_group()


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """The place among the processes that a launcher has started, and the device of this one.

    Reads torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK); without them it is a run of one process. Raises
    ``ConfigError`` when there are more processes than GPUs, or for a device with a number.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(), pick_device(device)
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
    with _told():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
        ranks = Ranks(dist.get_rank(), world)
    try:
        yield ranks, chosen
    finally:
        ranks.close()


def _watch_launcher() -> None:
    """When our own launcher is gone, stop as on SIGTERM."""
    lifeline = os.environ.get(LIFELINE)
    if lifeline is None:
        return

    def watch() -> None:
        os.read(int(lifeline), 1)  # returns when the launcher has ended
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="ssamba-lifeline", daemon=True).start()


@contextmanager
def _told() -> Iterator[None]:
    """A lost connection in one line; silently under our own launcher, which knows whose fault it is."""
    try:
        yield
    except RuntimeError as error:
        if LIFELINE in os.environ:
            raise SystemExit(EXIT_LOST) from None
        first = str(error).strip().splitlines()[0]
        raise SsambaError(
            f"another process of this run has ended, or cannot be reached ({first}); the same command goes on from the "
            "last saved state"
        ) from None
