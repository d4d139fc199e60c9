"""What the training loop needs to know of a task, with the parts that all tasks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from ssamba.models.encoder import Encoder
from ssamba.training.distributed import DistContext
from ssamba.training.ema import EmaModel
from ssamba.training.tensors import Group, TensorGroup

ACTIVATION_BYTES = 84
"""Kept for the backward pass per token, unit of width and block, in float32 (383 kB a token with ``tiny``)."""
ACTIVATIONS = 0.4e9
"""Most bytes of activations on a processor, where more clips in a pass are no faster."""


def clip_activations(width: int, blocks: int, tokens: int) -> float:
    """Bytes that one clip keeps for the backward pass, in float32."""
    return ACTIVATION_BYTES * width * blocks * tokens


TaskBatch = TypeVar("TaskBatch")
TaskInputs = TypeVar("TaskInputs", bound=TensorGroup)


class StopAsked(Exception):
    """A validation was left since the run was asked to stop; it is made when the run goes on."""


class Task(ABC, Generic[TaskBatch, TaskInputs]):
    """A model, its data and its losses.

    ``TaskBatch`` is what is prepared ahead for a step, ``TaskInputs`` what the losses take. Constructors do
    no input or output and leave the model where it is. All randomness depends on (seed, step).

    Args:
        model: what is trained, on its device.
        ema_decay: share of the averaged weights that a step keeps; 0 averages none.
        dist: this process among those of the run.
    """

    metrics: tuple[str, ...]
    """Names of the scalars that ``losses`` gives, ``loss`` among them."""
    validation_metrics: tuple[str, ...]
    """Names of the scalars that ``validate`` gives."""
    progress: tuple[str, ...]
    """Columns of the log that the progress bar shows."""
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    """Clips in a step, all its batches together."""

    def __init__(self, model: Encoder, ema_decay: float, dist: DistContext | None = None) -> None:
        self.model, self.dist = model, dist or DistContext()
        self.ema = EmaModel(model, ema_decay) if ema_decay else None
        self.stop_asked: Callable[[], bool] = lambda: False

    @property
    def splits(self) -> bool:
        """Whether ``passes`` may give more than one part."""
        return False

    def check_stop(self) -> None:
        """Called between the batches of a validation. Raises ``StopAsked`` when the run was asked to stop."""
        if self.stop_asked():
            raise StopAsked

    @abstractmethod
    def batches(self, start: int) -> Iterator[TaskBatch]:
        """Batches from number ``start`` on, the same whatever came before; a step takes ``accumulate`` of them."""

    @abstractmethod
    def clips_in_batch(self, number: int) -> int:
        """Clips in the batch of that number, over all processes."""

    @abstractmethod
    def inputs(self, number: int, batch: TaskBatch) -> TaskInputs:
        """What the losses of the batch of that number need, on the model's device. Nothing here has a gradient."""

    def passes(self, inputs: TaskInputs) -> Iterator[tuple[TaskInputs, float]]:
        """The inputs of a batch in parts, each with its share of the clips: one forward and backward pass for each.

        The weighted mean of the parts' losses is the loss of the whole.
        """
        yield inputs, 1.0

    @abstractmethod
    def losses(self, inputs: TaskInputs) -> dict[str, Tensor]:
        """Scalars of the inputs; ``loss`` carries the gradient. May be captured: depends on the tensors alone."""

    @abstractmethod
    def validate(self, step: int) -> dict[str, float]:
        """Scalars of ``eval_model`` on held-out data after ``step`` steps. Calls ``check_stop`` now and then."""

    @abstractmethod
    def score(self, step: int, metrics: dict[str, float]) -> float:
        """How good a validation is; higher is better."""

    def tie_break(self, step: int, metrics: dict[str, float]) -> float:
        """What decides between validations of equal score; higher is better."""
        return 0.0

    def batch_fraction(self, number: int) -> float:
        """The fraction of the batch of that number that this process works on: 1 in a run of one process."""
        return self.dist.fraction(self.clips_in_batch(number))

    def auxiliary_modules(self) -> dict[str, nn.Module]:
        """Modules that are saved with the state, not with the model; those with gradients are trained."""
        return {} if self.ema is None else {"averaged": self.ema}

    def after_step(self, step: int) -> None:
        """Called when ``step`` steps are through, after the weights changed."""
        if self.ema is not None:
            self.ema.update(self.model, step)

    @property
    def eval_model(self) -> Encoder:
        """The model that is validated and kept: the averaged one, where there is one."""
        return self.model if self.ema is None else self.ema.model

    def weights(self) -> dict[str, Tensor]:
        """``eval_model``'s weights."""
        return self.eval_model.state_dict()

    def pinned(self, batch: Group) -> Group:
        """A prepared batch in pinned memory where the model is on a GPU: its copy there overlaps with other work."""
        return batch.pin() if self.model.device.type == "cuda" else batch


AnyTask = Task[Any, Any]


def grouped(batches: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Batches by ``size``, those of one step together; the last group may be smaller."""
    while group := list(islice(batches, size)):
        yield group
