"""One training loop for every task: steps, learning rate, validation, log, saved state and exact resume.

A task owns the model, its data and its losses; the loop owns the order of things. All randomness of a task depends on
(seed, step), so the saved state needs no generator, and a run killed at any moment and started again takes the same
steps with the same numbers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssamba.models.pretrained.model_dir import save_model
from ssamba.training.cuda_graphs import Gradients
from ssamba.training.log import TIMES, RunLog, check_log, closed_at_end, step_bar
from ssamba.training.optim import optimizer_tensors, restore_optimizer
from ssamba.training.resume.run_files import (
    check_config,
    read_config_text,
    repair_model,
    stored_values_fit,
    what_is_safe,
    write_summary,
)
from ssamba.training.resume.signals import StopSignals
from ssamba.training.run_state import RunStates, RunValues
from ssamba.training.schedule import Schedule
from ssamba.training.task import AnyTask, StopAsked, grouped
from ssamba.utils.errors import ConfigError, SsambaError, WriteError
from ssamba.utils.terminal import note


@dataclass(frozen=True)
class LoopSettings:
    """Cadence of a run, in steps and minutes.

    Attributes:
        clip_norm: largest gradient norm, 0 for no limit.
        accumulate: batches whose gradients make one step.
        save_at_validation: also save the state at each validation; without it by the clock and at the end alone.
        average: first and last step of the validations over which weights are averaged to give the run's model.
        label: what the progress bar says in front.
        columns: width of the progress bar, which then leaves out speed and rate; None takes the terminal's.
        may_lose_best: a run whose best model was damaged on disk goes on, and keeps the best of later validations.
        keep_last: the run's model is that of the last validation, not of the best.
    """

    validate_every: int
    log_every: int
    save_minutes: float
    clip_norm: float = 0.0
    accumulate: int = 1
    save_at_validation: bool = True
    average: tuple[int, int] | None = None
    label: str = ""
    keep_last: bool = False
    columns: int | None = None
    may_lose_best: bool = True


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C or SIGTERM), and has saved its state."""


class Loop:
    """Runs a task in a folder until its last step, or goes on where the folder's saved state ends."""

    def __init__(
        self,
        task: AnyTask,
        folder: Path,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        settings: LoopSettings,
        autocast: AbstractContextManager[Any],
    ) -> None:
        self.task, self.folder, self.optimizer, self.schedule = task, folder, optimizer, schedule
        self.settings, self.autocast, self.dist = settings, autocast, task.dist
        self.step = 0
        self.best: dict[str, float] | None = None
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.chosen: dict[str, Tensor] | None = None
        self.averaged = 0
        self.latest: dict[str, float] = {}
        self.states, self.safe_step, self.proven = RunStates(folder), 0, True
        self.log: RunLog | None = None
        self.log_mark: dict[str, Any] | None = None
        self.signals = StopSignals(self.dist.main)
        self.config_text: bytes | None = None
        task.stop_asked = lambda: self.signals.asked
        self._restore()
        trained = [parameter for _, parameter in self._named_parameters()]
        self.gradients = Gradients(task.losses, trained, autocast, graphs=settings.accumulate == 1 and not task.splits)

    def _restore(self) -> None:
        saved = self.states.load(self.dist.main)
        if saved is None:
            return
        tensors, values = saved
        check_config(self.folder, values, self.task.model.config)
        self.step, self.best, self.summed = values.step, values.best, values.summed
        self.safe_step, self.log_mark, self.proven = values.step, values.log, values.config is not None
        device = self.task.model.device
        with stored_values_fit(self.states.source):
            for prefix, module in self._modules().items():
                start = len(prefix)
                module.load_state_dict({k[start:]: v for k, v in tensors.items() if k.startswith(prefix)})
            restore_optimizer(self.optimizer, self._named_parameters(), tensors)
            self.schedule.load(values.schedule)
        if self.settings.average is not None and values.averaged:
            self.averaged = values.averaged
            self.chosen = {k[8:]: v.to(device) for k, v in tensors.items() if k.startswith("average.")}
        # Each process sums its rows' values; the sums from before are with the first one.
        sums = {k: v if self.dist.main else 0.0 for k, v in values.sums.items()}
        self.sums = {k: torch.tensor(v, dtype=torch.float64, device=device) for k, v in sums.items()}
        if self.dist.main:
            self._check_files(values)

    def _check_files(self, values: RunValues) -> None:
        """See that what the run has written is still good; write it again, or say so, where it is not."""
        problem = check_log(self.folder, values.log)
        if problem is not None:
            note(f"{problem}; its readable rows are kept")
        if self.best is None:
            return  # the next save writes the model
        known = self.chosen if self.averaged else self.task.weights() if self.best["step"] == self.step else None
        may_lose = self.settings.may_lose_best and (self.step < self.task.total_steps or self._open)
        if repair_model(self.folder, self.task.model, known, f"of step {self.best['step']:g}", may_lose):
            self.best = None

    def _modules(self) -> dict[str, nn.Module]:
        """What the state holds, by the prefix of its tensors."""
        others = {f"beside.{name}.": module for name, module in self.task.auxiliary_modules().items()}
        return {"model.": self.task.model, **others}

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What is trained: the model's parameters by their names in the model, others by those in the state."""
        for prefix, module in self._modules().items():
            for name, parameter in module.named_parameters("" if module is self.task.model else prefix[:-1]):
                if parameter.requires_grad:
                    yield name, parameter

    def save(self) -> None:
        """Write the state, and the model where a validation chose another or none has chosen one yet."""
        model = self.task.model
        self._refuse_nan(*self.sums.values(), *model.parameters())
        sums = self.dist.all_reduce_sum(self.sums)
        if not self.dist.main:
            return
        if read_config_text(self.folder) != self.config_text:
            raise WriteError(f"{self.folder}: was removed or replaced during the run, nothing more is written there")
        tensors = {p + k: v for p, module in self._modules().items() for k, v in module.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer, self._named_parameters())
        if self.best is None:
            save_model(self.folder, model, weights=self.task.weights())
        elif self.chosen is not None:
            save_model(self.folder, model, weights=self.chosen)
        if self.averaged and self.chosen is not None:
            tensors |= {f"average.{k}": v for k, v in self.chosen.items()}
        else:
            self.chosen = None
        if self.log is not None:
            self.log_mark = self.log.mark()
        values = RunValues(
            step=self.step,
            schedule=self.schedule.to_dict(),
            best=self.best,
            sums={k: float(v) for k, v in sums.items()},
            summed=self.summed,
            averaged=self.averaged,
            config=model.config.to_dict(),
            log=self.log_mark,
        )
        self.states.save(tensors, values)
        self.safe_step = self.step
        self._write_summary()

    def _write_summary(self) -> None:
        """Write ``state.json``, unless it is there as it should be."""
        rate, finished = self.schedule.rate(self.step), self.step >= self.task.total_steps and not self._open
        write_summary(self.folder, self.step, self.task, self.best, rate, finished)

    @property
    def _validating(self) -> bool:
        return self.step % self.settings.validate_every == 0 or self.step == self.task.total_steps

    @property
    def _open(self) -> bool:
        """Whether the latest step's validation is still to be made: the run was stopped in it."""
        return self._validating and self.summed > 0

    def run(self) -> None:
        """Train to the last step. Raises ``Interrupted`` after saving when asked to stop, ``SsambaError`` on NaN."""
        self.dist.begin()
        first = self.dist.broadcast_from_main({"step": self.step} if self.dist.main else None, ["step"])["step"]
        if first != self.step:
            raise SsambaError(
                f"{self.folder}: another run is still writing its state there; start again when it has ended"
            )
        if self.step >= self.task.total_steps and not self._open:
            if self.dist.main:
                self._write_summary()
            return
        columns = [
            "step",
            "epoch",
            "lr",
            *self.task.metrics,
            *(f"val_{m}" for m in self.task.validation_metrics),
            *TIMES,
        ]
        self.config_text = read_config_text(self.folder)
        try:
            self.log = RunLog(self.folder, columns, self.step) if self.dist.main else None
            with self.signals, closed_at_end(self.log):
                self._steps(self.log)
        except WriteError as error:
            raise WriteError(f"{error}; {what_is_safe(self.safe_step)}") from None

    def _steps(self, log: RunLog | None) -> None:
        settings = self.settings
        saved = logged = time.monotonic()
        started = saved - (0.0 if log is None else log.seconds)  # seconds go on from the row before
        self.task.model.train()
        with step_bar(settings.label, self.task.total_steps, self.step, settings.columns, self.dist.main) as bar:
            for _ in self._steps_taken():
                last, validating, stopped = self.step == self.task.total_steps, self._validating, False
                if validating or self.step % settings.log_every == 0:
                    sums, summed = self.sums, self.summed
                    row = self._averages()
                    rate = row.pop("steps") * self.task.batch_size / max(time.monotonic() - logged, 1e-9)
                    try:
                        found = self._validate() if validating else {}
                    except StopAsked:
                        self.sums, self.summed, stopped = sums, summed, True
                    else:
                        row |= {f"val_{k}": v for k, v in found.items()}
                        self.latest |= row
                        bar.set_postfix_str(self._postfix(settings.columns is not None), refresh=False)
                        now = logged = time.monotonic()
                        if log is not None:
                            log.write(row | {"clips_per_second": round(rate, 2), "seconds": round(now - started, 2)})
                bar.update(self.step - bar.n)
                due = validating and settings.save_at_validation
                late = time.monotonic() - saved >= 60 * settings.save_minutes
                # A signal that comes during this call is seen after the next step.
                stop, late = self.dist.all_reduce_any(self.signals.asked, late)
                if due or last or stop or late:
                    self.save()
                    saved = time.monotonic()
                if stopped or (stop and not last):
                    at = f"{self.step} of {self.task.total_steps}{', before its validation' if stopped else ''}"
                    raise Interrupted(f"stopped at step {at}; the same command goes on from there")
                if last:
                    return

    def _steps_taken(self) -> Iterator[None]:
        """Yields after each step; first of all for one whose validation is still to be made."""
        if self._open:
            yield
        accumulate = self.settings.accumulate
        for batches in grouped(self.task.batches(self.step * accumulate), accumulate):
            self.one_step(batches)
            yield

    def one_step(self, batches: Sequence[Any]) -> None:
        """Take one step with ``accumulate`` batches."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step) * group.get("rate_factor", 1.0)
        for i, batch in enumerate(batches):
            number = self.step * len(batches) + i
            fraction = self.task.batch_fraction(number) / len(batches)
            if not fraction:  # fewer rows than processes
                if i == 0:
                    self.optimizer.zero_grad(set_to_none=True)
                continue
            inputs = self.task.inputs(number, batch)
            first = i == 0
            for part, share in self.task.passes(inputs):
                self._add(self.gradients(part, first=first, scale=fraction * share), fraction * share)
                first = False
        for key in self.task.metrics:
            self.sums.setdefault(key, torch.zeros((), dtype=torch.float64, device=self.task.model.device))
        self.dist.all_reduce_grads([p for _, p in self._named_parameters()])
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_([p for _, p in self._named_parameters()], self.settings.clip_norm)
        self.optimizer.step()
        self.step += 1
        self.task.after_step(self.step)
        self.summed += 1

    def _add(self, values: dict[str, Tensor], weight: float) -> None:
        # Sums stay on the device: reading a number every step would make the host wait for it.
        for key, value in values.items():
            value = value.double() * weight
            self.sums[key] = self.sums[key] + value if key in self.sums else value

    def _averages(self) -> dict[str, float]:
        row: dict[str, float] = {
            "step": self.step,
            "epoch": self.step / self.task.steps_per_epoch,
            "lr": self.schedule.rate(self.step - 1),
            "steps": self.summed,
        }
        row |= {k: float(v) / self.summed for k, v in self.dist.all_reduce_sum(self.sums).items()}
        self._refuse_nan(*self.sums.values())
        self.sums, self.summed = {}, 0
        return row

    def _postfix(self, narrow: bool) -> str:
        """The latest of the numbers that the task wants in the progress bar."""
        digits = 3 if narrow else 4
        return ", ".join(f"{k} {self.latest[k]:.{digits}g}" for k in self.task.progress if k in self.latest)

    def _refuse_nan(self, *values: Tensor) -> None:
        """Stop before a broken model is logged or saved: the folder keeps the last good state."""
        if not all(bool(torch.isfinite(v).all()) for v in values):
            rate = self.schedule.rate(self.step - 1)
            cause = "" if self.proven else " (or the state that the run went on from, which has no digest, is damaged)"
            raise SsambaError(
                f"{self.folder}: loss or weights are no longer numbers at step {self.step}, learning rate {rate:g}; "
                f"give a lower --lr or --clip-norm 1 and another --out{cause}"
            )

    def _validate(self) -> dict[str, float]:
        """Validate. Raises ``StopAsked``, in all processes, when the first one was asked to stop."""
        model = self.task.model
        model.eval()
        found, stopped = None, False
        if self.dist.main:
            try:
                with torch.no_grad(), self.autocast:
                    found = self.task.validate(self.step)
            except StopAsked:
                stopped = True
        if any(self.dist.all_reduce_any(stopped)):
            model.train()
            raise StopAsked
        metrics = self.dist.broadcast_from_main(found, self.task.validation_metrics)
        model.train()
        score = self.task.score(self.step, metrics)
        tie = self.task.tie_break(self.step, metrics)
        if self.best is None or self.settings.keep_last or _better((score, tie), self.best):
            self.best = {"step": self.step, "score": score, **({"tie": tie} if tie else {}), **metrics}
            if not self.averaged:
                self.chosen = {k: v.detach().clone() for k, v in self.task.weights().items()}
        self._average()
        self.schedule.validated(score)
        return metrics

    @torch.no_grad()
    def _average(self) -> None:
        """Take the weights into the running mean, when this validation is one of those to average over."""
        window = self.settings.average
        if window is None or not window[0] <= self.step <= window[1]:
            return
        weights = self.task.weights()
        self.averaged += 1
        if self.averaged == 1 or self.chosen is None:
            self.chosen = {k: v.detach().clone() for k, v in weights.items()}
        else:
            for key, value in weights.items():
                self.chosen[key] += (value - self.chosen[key]) / self.averaged


def _better(found: tuple[float, float], best: dict[str, float]) -> bool:
    """Whether a score, and what breaks its tie, is above the best validation's."""
    return found > (best["score"], best.get("tie", found[1]))


def precision(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of a run. Raises ``ConfigError`` for bf16 on a GPU without it."""
    able = device.type == "cpu" or torch.cuda.is_bf16_supported()
    if name == "bf16" and not able:
        raise ConfigError("precision: bf16, this GPU does not have it; give fp32")
    if name == "fp32" or (name == "auto" and (device.type == "cpu" or not able)):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
