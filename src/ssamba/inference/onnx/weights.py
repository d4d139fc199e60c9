"""How weights are stored in the file: as they are, in half precision, or as 8-bit whole numbers with scales.

Only storage changes. A graph turns them into float32 where it begins, once, when it is loaded, and computes as before.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from ssamba.inference.onnx.graph import Graph, Value
from ssamba.models.encoder import Encoder

MATRICES = (
    "patch_embed.weight", "positions", "in_proj_hKEd", "x_proj_RKPE", "dt_proj_RKEr", "out_proj_dKE", "qkv.weight",
    "proj.weight", "fc1.weight", "fc2.weight", "linear.weight",
)  # fmt: skip
"""Ends of the names of the parameters that are rounded: nearly all of the weights. Norms, biases, the few taps of the
convolution and the decay rates, of which an exponential is taken, stay as they are."""
LARGEST_CODE = 127


def rounds(name: str, kind: str) -> bool:
    """Whether the parameter of that name is rounded in a file of that kind."""
    return kind != "fp32" and name.endswith(MATRICES)


def encode_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (int8, -127 to 127) and scales (float32, last axis 1): ``codes * scales`` is near the values.

    Each vector along the last axis, which products sum over, has a scale of its own; one of zeros has the scale 0.
    """
    scale = values.abs().amax(dim=-1, keepdim=True) / LARGEST_CODE
    codes = torch.where(scale > 0, values / scale.clamp_min(torch.finfo(torch.float32).tiny), 0.0).round()
    return codes.clamp(-LARGEST_CODE, LARGEST_CODE).to(torch.int8), scale


class Weights:
    """The parameters of a model as the file will hold them."""

    def __init__(self, model: Encoder, kind: str) -> None:
        self.kind = kind
        self._values = {name: p.detach().float().cpu() for name, p in model.named_parameters()}
        self._added: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The float32 values that the graph will compute with."""
        values = self._values[name]
        if not rounds(name, self.kind):
            return values
        if self.kind == "fp16":
            return values.half().float()
        codes, scale = encode_int8(values)
        return codes.float() * scale

    def add(self, graph: Graph, name: str) -> Value:
        """Store a parameter under its name, once; returns its float32 values."""
        if name not in self._added:
            self._added[name] = self._stored(graph, name)
        return self._added[name]

    def _stored(self, graph: Graph, name: str) -> Value:
        values = self._values[name]
        if not rounds(name, self.kind):
            return graph.constant(values.numpy(), name)
        if self.kind == "fp16":
            return graph("Cast", graph.constant(values.half().numpy(), name), to=TensorProto.FLOAT)
        codes, scale = encode_int8(values)
        number = graph("Cast", graph.constant(codes.numpy(), name), to=TensorProto.FLOAT)
        return graph("Mul", number, graph.constant(scale.numpy(), f"{name}.scale"))

    def overflow(self) -> str | None:
        """The name of a parameter whose values half precision does not hold, or None."""
        largest = float(np.finfo(np.float16).max)
        names = (n for n, values in self._values.items() if rounds(n, self.kind) and values.abs().max() > largest)
        return next(names, None) if self.kind == "fp16" else None


def rounded(model: Encoder, kind: str) -> Encoder:
    """A float32 copy on the CPU that computes with the weights of a file of that kind."""
    weights = Weights(model, kind)
    other = copy.deepcopy(model).float().cpu()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(weights[name])
    return other
