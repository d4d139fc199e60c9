"""Inference on a GPU as CUDA graphs: one replay instead of hundreds of launches, for input shapes that come again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from ssamba.inference.rejection.score import Rejection
from ssamba.models.encoder import Encoder
from ssamba.utils.graph_capture import warm_up

MAX_GRAPHS = 8
MAX_TOKENS = 65536
"""Larger passes keep the device busy without a graph, whose memory would stay taken."""


class GraphedEncode:
    """``model.encode`` without gradients. A shape's second pass is captured, later ones are replayed.

    Graphs hold addresses: when a parameter has moved (another device or dtype, other weights assigned) they are made
    anew. Weights changed in place are seen by the next replay.
    """

    def __init__(self, model: Encoder) -> None:
        self._model = model
        self._graphs: OrderedDict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = OrderedDict()
        self._seen: set[tuple[int, ...]] = set()
        self._addresses: tuple[int, ...] = ()
        self._pool: Any = None

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """Tokens (B, L, d) of normalised log-mel (B, frames, mel_bins)."""
        model, shape = self._model, tuple(features.shape)
        rows = model.config.grid[0]
        tokens = shape[0] * rows * shape[1] // model.config.stride_time
        small = tokens <= MAX_TOKENS
        if not (small and model.positions.is_cuda) or model.training or torch.cuda.is_current_stream_capturing():
            return model.encode(features)
        addresses = tuple(p.data_ptr() for p in model.parameters())
        if addresses != self._addresses:
            self._graphs.clear()
            self._pool = None  # it ends with the last graph that uses it
            self._seen.clear()
            self._addresses = addresses
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
        elif shape in self._seen:
            self._capture(shape)
        else:
            self._seen.add(shape)
            return model.encode(features)
        graph, given, result = self._graphs[shape]
        given.copy_(features)
        graph.replay()
        return result.clone()

    def _capture(self, shape: tuple[int, ...]) -> None:
        model = self._model
        with torch.cuda.device(model.device):
            with torch.inference_mode(False):  # later calls write to it, in whatever mode they come
                given = torch.zeros(shape, device=model.device, dtype=torch.float32)
            warm_up(lambda: model.encode(given))
            graph = torch.cuda.CUDAGraph()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool):
                result = model.encode(given)
        self._graphs[shape] = graph, given, result
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)


class GraphedEncoder(Encoder):
    """A network with passes for inference: no gradients, and CUDA graphs on a GPU for shapes that come again."""

    _graphed: GraphedEncode | None = None
    rejection: Rejection | None = None
    """What tells sounds that are unlike those that the classifier was trained on, where its run has it."""

    def infer(self, features: Tensor) -> Tensor:
        """``encode`` for inference: no gradients, and CUDA graphs on a GPU for shapes that come again.

        Always in the weights' dtype: a ``torch.autocast`` around it changes nothing.
        """
        if self._graphed is None:
            self._graphed = GraphedEncode(self)
        with torch.autocast(self.device.type, enabled=False):
            return self._graphed(features)

    @torch.no_grad()
    def infer_classes(self, features: Tensor) -> Tensor:
        """``classify`` for inference, as ``infer`` is ``encode``."""
        with torch.autocast(self.device.type, enabled=False):
            return self._logits(self.infer(features), features.shape[1])

    @torch.no_grad()
    def infer_values(self, features: Tensor) -> Tensor:
        """``classifier_values`` for inference, as ``infer`` is ``encode``."""
        return self._values(self.infer(features), features.shape[1])

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes its own graphs: they hold addresses.
        return {**self.__dict__, "_graphed": None}
