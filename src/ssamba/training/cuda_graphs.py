"""A training step's losses and gradients on a GPU as one CUDA graph: one replay instead of a thousand launches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Tensors = Sequence[Tensor | None]
WARM_UP = 2


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    given: list[Tensor | None]
    metrics: dict[str, Tensor]
    gradients: list[tuple[nn.Parameter, Tensor | None]]


class Gradients:
    """Works out ``losses(inputs)`` and the gradients of ``loss`` into the parameters' ``grad``, which it replaces.

    On a GPU the first inputs of each form (shapes and types) are captured, and those and all later ones replayed, so
    that a resumed run does exactly what an unbroken one does. What cannot be captured runs as it is, with a warning.

    Args:
        losses: named scalars of tensors on the device; everything random comes in as a tensor.
        parameters: what gets gradients.
        autocast: entered around ``losses``.
        graphs: False never captures.
    """

    def __init__(
        self,
        losses: Callable[[Tensors], dict[str, Tensor]],
        parameters: Sequence[nn.Parameter],
        autocast: AbstractContextManager[Any],
        graphs: bool = True,
    ) -> None:
        self._losses, self._parameters, self._autocast = losses, list(parameters), autocast
        self._graphs = graphs and bool(parameters) and parameters[0].is_cuda
        self._captured: dict[tuple[Any, ...], _Captured] = {}

    def __call__(self, inputs: Tensors, first: bool = True, share: float = 1.0) -> dict[str, Tensor]:
        """The scalars, without gradient; they hold until the next call.

        ``share`` is a factor on the gradients. ``first=False`` adds to those that are there: for steps of several
        batches, which are not captured.
        """
        if not self._graphs:
            return self._eager(inputs, first, share)
        form = tuple(None if x is None else (tuple(x.shape), x.dtype) for x in inputs)
        if form not in self._captured:
            try:
                self._captured[form] = self._capture(inputs)
            except RuntimeError as error:
                warnings.warn(f"training without CUDA graphs, which is slower: {error}", stacklevel=2)
                self._graphs = False
                return self._eager(inputs, first, share)
        captured = self._captured[form]
        for place, value in zip(captured.given, inputs, strict=True):
            if place is not None and value is not None:
                place.copy_(value, non_blocking=True)
        captured.graph.replay()
        for parameter, gradient in captured.gradients:
            parameter.grad = gradient
        if share != 1:
            torch._foreach_mul_([g for _, g in captured.gradients if g is not None], share)
        return captured.metrics

    def _eager(self, inputs: Tensors, first: bool = True, share: float = 1.0) -> dict[str, Tensor]:
        if first:
            self._clear()
        with self._autocast:
            metrics = self._losses(inputs)
        (metrics["loss"] * share if share != 1 else metrics["loss"]).backward()
        return {k: v.detach() for k, v in metrics.items()}

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _capture(self, inputs: Tensors) -> _Captured:
        given = [None if x is None else x.clone() for x in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # lazy set-up (handles, compiled kernels) must not fall into the capture
            for _ in range(WARM_UP):
                self._eager(given)
        torch.cuda.current_stream().wait_stream(stream)
        self._clear()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Other threads pin memory for the next steps meanwhile, which is no business of this capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            metrics = self._eager(given)
        return _Captured(graph, given, metrics, [(p, p.grad) for p in self._parameters])
