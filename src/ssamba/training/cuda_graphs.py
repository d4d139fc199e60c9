"""A training step's losses and gradients on a GPU as one CUDA graph: one replay instead of a thousand launches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssamba.training.tensors import TensorGroup
from ssamba.utils.graph_capture import warm_up


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor | None]
    metrics: dict[str, Tensor]
    gradients: list[tuple[nn.Parameter, Tensor | None]]


class Gradients:
    """Works out ``losses(inputs)`` and the gradients of ``loss`` into the parameters' ``grad``, which it replaces.

    On a GPU the first inputs of each form (shapes and types) are captured, and those and all later ones replayed, so
    that a resumed run does exactly what an unbroken one does. What cannot be captured runs as it is, with a warning.

    Args:
        losses: named scalars of a group of tensors on the device; everything random comes in as a tensor.
        parameters: what gets gradients.
        autocast: entered around ``losses``.
        graphs: False never captures.
    """

    def __init__(
        self,
        losses: Callable[[Any], dict[str, Tensor]],
        parameters: Sequence[nn.Parameter],
        autocast: AbstractContextManager[Any],
        graphs: bool = True,
    ) -> None:
        self._losses, self._parameters, self._autocast = losses, list(parameters), autocast
        self.uses_graphs = graphs and bool(parameters) and parameters[0].is_cuda
        self._captured: dict[tuple[Any, ...], _Captured] = {}

    def __call__(self, inputs: TensorGroup, first: bool = True, scale: float = 1.0) -> dict[str, Tensor]:
        """The scalars, without gradient; they hold until the next call.

        ``scale`` is a factor on the gradients. ``first=False`` adds to those that are there: for steps of several
        batches, which are not captured.
        """
        if not self.uses_graphs:
            return self._eager(inputs, first, scale)
        tensors = inputs.tensors()
        form = tuple(None if x is None else (tuple(x.shape), x.dtype) for x in tensors)
        if form not in self._captured:
            try:
                self._captured[form] = self._capture(inputs)
            except RuntimeError as error:
                warnings.warn(f"training without CUDA graphs, which is slower: {error}", stacklevel=2)
                self.uses_graphs = False
                return self._eager(inputs, first, scale)
        captured = self._captured[form]
        for static, value in zip(captured.inputs, tensors, strict=True):
            if static is not None and value is not None:
                static.copy_(value, non_blocking=True)
        captured.graph.replay()
        for parameter, gradient in captured.gradients:
            parameter.grad = gradient
        if scale != 1:
            torch._foreach_mul_([g for _, g in captured.gradients if g is not None], scale)
        return captured.metrics

    def _eager(self, inputs: TensorGroup, first: bool = True, scale: float = 1.0) -> dict[str, Tensor]:
        if first:
            self._clear()
        with self._autocast:
            metrics = self._losses(inputs)
        (metrics["loss"] * scale if scale != 1 else metrics["loss"]).backward()
        return {k: v.detach() for k, v in metrics.items()}

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _capture(self, inputs: TensorGroup) -> _Captured:
        static = inputs.map(Tensor.clone)
        warm_up(lambda: self._eager(static))
        self._clear()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Other threads may pin memory for the next steps during capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            metrics = self._eager(static)
        return _Captured(graph, static.tensors(), metrics, [(p, p.grad) for p in self._parameters])
