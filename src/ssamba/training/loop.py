"""One training loop for every task: steps, learning rate, validation, log, saved state and exact resume.

A task owns the model, its data and its losses; the loop owns the order of things. All randomness of a task depends on
(seed, step), so the saved state needs no generator, and a run killed at any moment and started again takes the same
steps with the same numbers.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ssamba.errors import SsambaError
from ssamba.files import write_text
from ssamba.models.encoder import Encoder
from ssamba.models.store import save_model
from ssamba.training.checkpoint import load_state, optimizer_tensors, restore_optimizer, save_state
from ssamba.training.log import RunLog
from ssamba.training.schedule import PlateauSchedule

SUMMARY_FILE = "state.json"


class Task(Protocol):
    """What the loop needs to know of a task."""

    model: Encoder
    metrics: tuple[str, ...]
    """Names of the scalars that ``losses`` and ``validate`` give, ``loss`` among them."""
    total_steps: int
    steps_per_epoch: int
    batch_size: int

    def batches(self, start_step: int) -> Iterator[Any]:
        """Batches of the steps from ``start_step`` on, the same whatever came before."""

    def losses(self, step: int, batch: Any) -> dict[str, Tensor]:
        """Scalars of one step; ``loss`` carries the gradient."""

    def validate(self) -> dict[str, float]:
        """The same scalars on held-out data."""

    def score(self, metrics: dict[str, float]) -> float:
        """How good a validation is; higher is better."""


@dataclass(frozen=True)
class LoopSettings:
    """Cadence of a run, in steps and minutes."""

    validate_every: int
    log_every: int
    save_minutes: float
    clip_norm: float = 0.0


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C or SIGTERM), and has saved its state."""


class Loop:
    """Runs a task in a folder until its last step, or goes on where the folder's saved state ends."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        optimizer: torch.optim.Optimizer,
        schedule: PlateauSchedule,
        settings: LoopSettings,
        autocast: AbstractContextManager[Any],
    ) -> None:
        self.task, self.folder, self.optimizer, self.schedule = task, folder, optimizer, schedule
        self.settings, self.autocast = settings, autocast
        self.step = 0
        self.best: dict[str, float] | None = None
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.stop = False
        self._restore()

    def _restore(self) -> None:
        saved = load_state(self.folder)
        if saved is None:
            return
        tensors, values = saved
        self.task.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        restore_optimizer(self.optimizer, self.task.model, tensors)
        self.schedule.load(values["schedule"])
        self.step, self.best, self.summed = values["step"], values["best"], values["summed"]
        device = self.task.model.device
        self.sums = {k: torch.tensor(v, dtype=torch.float64, device=device) for k, v in values["sums"].items()}

    def save(self) -> None:
        """Write the state, and the model too while no validation has chosen one."""
        model = self.task.model
        self._refuse_nan(*self.sums.values(), *model.parameters())
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer, model)
        if self.best is None:
            save_model(self.folder, model)
        values = {
            "step": self.step,
            "schedule": self.schedule.to_dict(),
            "best": self.best,
            "sums": {k: float(v) for k, v in self.sums.items()},
            "summed": self.summed,
        }
        save_state(self.folder, tensors, values)
        summary = {
            "step": self.step,
            "total_steps": self.task.total_steps,
            "epochs_done": round(self.step / self.task.steps_per_epoch, 4),
            "best": self.best,
            "learning_rate": self.schedule.rate(self.step),
            "finished": self.step >= self.task.total_steps,
        }
        write_text(self.folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")

    def run(self) -> None:
        """Train to the last step. Raises ``Interrupted`` after saving when asked to stop, ``SsambaError`` on NaN."""
        if self.step >= self.task.total_steps:
            return
        columns = ["step", "epoch", "lr", *self.task.metrics, *(f"val_{m}" for m in self.task.metrics)]
        log = RunLog(self.folder, [*columns, "clips_per_second", "seconds"], self.step)
        handlers = {s: signal.signal(s, self._ask_to_stop) for s in _signals()}
        try:
            self._steps(log)
        finally:
            log.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _ask_to_stop(self, *_: Any) -> None:
        self.stop = True

    def _steps(self, log: RunLog) -> None:
        total = self.task.total_steps
        saved = logged = started = time.monotonic()
        quiet = not sys.stderr.isatty()
        bar = tqdm(total=total, initial=self.step, unit="step", mininterval=30 if quiet else 0.2, dynamic_ncols=True)
        self.task.model.train()
        with bar:
            for batch in self.task.batches(self.step):
                self._one_step(batch)
                last = self.step == total
                validating = self.step % self.settings.validate_every == 0 or last
                if validating or self.step % self.settings.log_every == 0:
                    row = self._averages()
                    rate = row.pop("steps") * self.task.batch_size / max(time.monotonic() - logged, 1e-9)
                    bar.set_postfix_str(_postfix(row), refresh=False)
                    if validating:
                        row |= {f"val_{k}": v for k, v in self._validate().items()}
                    now = logged = time.monotonic()
                    log.write(row | {"clips_per_second": round(rate, 2), "seconds": round(now - started, 2)})
                bar.update()
                if validating or self.stop or time.monotonic() - saved >= 60 * self.settings.save_minutes:
                    self.save()
                    saved = time.monotonic()
                if self.stop and not last:
                    raise Interrupted(f"stopped at step {self.step} of {total}; the same command goes on from there")
                if last:
                    return

    def _one_step(self, batch: Any) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        with self.autocast:
            metrics = self.task.losses(self.step, batch)
        self.optimizer.zero_grad(set_to_none=True)
        metrics["loss"].backward()
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        # Sums stay on the device: reading a number every step would make the host wait for it.
        for key, value in metrics.items():
            value = value.detach().double()
            self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.step += 1
        self.summed += 1

    def _averages(self) -> dict[str, float]:
        row: dict[str, float] = {
            "step": self.step,
            "epoch": self.step / self.task.steps_per_epoch,
            "lr": self.schedule.rate(self.step - 1),
            "steps": self.summed,
        }
        row |= {k: float(v) / self.summed for k, v in self.sums.items()}
        self._refuse_nan(*self.sums.values())
        self.sums, self.summed = {}, 0
        return row

    def _refuse_nan(self, *values: Tensor) -> None:
        """Stop before a broken model is logged or saved: the folder keeps the last good state."""
        if not all(bool(torch.isfinite(v).all()) for v in values):
            rate = self.schedule.rate(self.step - 1)
            raise SsambaError(
                f"{self.folder}: loss or weights are no longer numbers at step {self.step}, learning rate {rate:g}; "
                "give a lower --lr or --clip-norm 1 and another --out"
            )

    def _validate(self) -> dict[str, float]:
        self.task.model.eval()
        with torch.no_grad(), self.autocast:
            metrics = self.task.validate()
        self.task.model.train()
        score = self.task.score(metrics)
        if self.best is None or score > self.best["score"]:
            self.best = {"step": self.step, "score": score, **metrics}
            save_model(self.folder, self.task.model)
        self.schedule.validated(score)
        return metrics


def _signals() -> tuple[int, ...]:
    """Signals to catch: only the main thread may do that."""
    main = threading.current_thread() is threading.main_thread()
    return (signal.SIGINT, signal.SIGTERM) if main else ()


def _postfix(row: dict[str, float]) -> str:
    return ", ".join(f"{k} {row[k]:.4g}" for k in ("loss", "nce", "accuracy", "mse", "lr") if k in row)
