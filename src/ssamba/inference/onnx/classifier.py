"""Pooled tokens and a classifier's logits as ONNX nodes: ``ssamba.models.classifier``."""

from __future__ import annotations

import torch.nn.functional as F
from onnx import TensorProto

from ssamba.inference.onnx.encoder import Tokens
from ssamba.inference.onnx.graph import Graph, Value
from ssamba.inference.onnx.weights import Weights
from ssamba.inference.rejection.score import Rejection
from ssamba.models.classifier import _VARIANCE as VARIANCE
from ssamba.models.classifier import Classifier
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder

SMALLEST_LENGTH = 1e-12
"""Length below which torch's ``normalize`` divides no further."""


def add_clip(graph: Graph, model: Encoder, tokens: Tokens) -> Value:
    """Mean over the patch tokens: (B, d)."""
    patches_BPd = graph.slice(tokens.tokens_BLd, 1, model.prefix_tokens)
    return _mean(graph, patches_BPd, 1)


def add_values(graph: Graph, model: Encoder, weights: Weights, tokens: Tokens, classifier: Classifier) -> Value:
    """What the linear layer reads: (B, values), or (B, seconds, d) of a model that labels each second."""
    graph.scope = "classifier"
    task, prefix = classifier.task, model.prefix_tokens
    if task.pooling == "cls":
        pooled = _mean(graph, graph.slice(tokens.tokens_BLd, 1, 0, prefix), 1)
    elif task.pooling == "rows":
        pooled = _row_statistics(graph, _grid(graph, model, tokens), tokens.batch)
    elif task.per_second:
        pooled = _second_means(graph, _grid(graph, model, tokens), tokens.columns, model.config)
    else:
        pooled = add_clip(graph, model, tokens)
    scale, shift = (weights.add(graph, f"classifier.norm.{part}") for part in ("weight", "bias"))
    return graph("LayerNormalization", pooled, scale, shift, axis=-1, epsilon=classifier.norm.eps)


def add_logits(graph: Graph, weights: Weights, values: Value) -> Value:
    """Logits (B, classes), or (B, seconds, classes), from what the linear layer reads."""
    weight = graph("Transpose", weights.add(graph, "classifier.linear.weight"), perm=[1, 0])
    return graph("Add", graph("MatMul", values, weight), weights.add(graph, "classifier.linear.bias"))


def add_unlike(graph: Graph, values: Value, rejection: Rejection) -> Value:
    """``Rejection.unlike`` (B,) of what the linear layer reads, (B, values)."""
    graph.scope = "rejection"
    centre, scale = (graph.constant(x.float().numpy()) for x in (rejection.centre, rejection.scale))
    means = F.normalize(rejection.means.float(), dim=1).T
    z = graph("Mul", graph("Sub", values, centre), scale)
    length = graph("ReduceL2", z, graph.integers(1), keepdims=1)
    z = graph("Div", z, graph("Max", length, graph.number(SMALLEST_LENGTH)))
    nearest = graph("ReduceMax", graph("MatMul", z, graph.constant(means.numpy())), graph.integers(1), keepdims=0)
    distance = graph("Div", graph("Sub", graph.number(1.0), nearest), graph.number(float(rejection.border)))
    if rejection.background is None:
        return distance
    weight, bias, limit = rejection.background.weight, rejection.background.bias, rejection.background.limit
    score = graph("MatMul", values, graph.constant(weight.float().numpy()))
    probability = graph("Sigmoid", graph("Add", score, graph.number(float(bias))))
    return graph("Max", distance, graph("Div", probability, graph.number(float(limit))))


def _mean(graph: Graph, values: Value, axis: int, keep: bool = False) -> Value:
    return graph("ReduceMean", values, graph.integers(axis), keepdims=int(keep))


def _grid(graph: Graph, model: Encoder, tokens: Tokens) -> Value:
    """The patch tokens (B, F, T, d)."""
    rows, d = model.config.grid[0], model.config.width
    return graph.reshape(graph.slice(tokens.tokens_BLd, 1, model.prefix_tokens), tokens.batch, rows, -1, d)


def _row_statistics(graph: Graph, grid_BFTd: Value, batch: Value) -> Value:
    """Mean, then deviation, over the columns of each row: (B, 2 x rows x d)."""
    mean_BF1d = _mean(graph, grid_BFTd, 2, keep=True)
    apart = graph("Sub", grid_BFTd, mean_BF1d)
    variance = _mean(graph, graph("Mul", apart, apart), 2, keep=True)
    deviation = graph("Sqrt", graph("Add", variance, graph.number(VARIANCE)))
    return graph.reshape(graph("Concat", mean_BF1d, deviation, axis=1), batch, -1)


def _second_means(graph: Graph, grid_BFTd: Value, columns: Value, config: Config) -> Value:
    """Mean over the rows, then over the columns whose centres lie in each second: (B, seconds, d)."""
    # In float64, as ``seconds_of_columns``: a centre on a border falls on the same side.
    n = graph("Squeeze", columns, graph.integers(0))
    index = graph("Cast", graph("Range", graph.integer(0), n, graph.integer(1)), to=TensorProto.DOUBLE)
    first = graph.double(config.front_end.seconds_of_frame((config.patch_time - 1) / 2))
    step = graph.double(config.front_end.seconds_between(config.stride_time))
    second_T = graph("Cast", graph("Add", first, graph("Mul", step, index)), to=TensorProto.INT64)
    count = graph("Add", graph("ReduceMax", second_T, keepdims=0), graph.integer(1))
    seconds_S1 = graph("Unsqueeze", graph("Range", graph.integer(0), count, graph.integer(1)), graph.integers(1))
    member_ST = graph("Cast", graph("Equal", seconds_S1, second_T), to=TensorProto.FLOAT)
    members_S1 = graph("Max", graph("ReduceSum", member_ST, graph.integers(1), keepdims=1), graph.number(1.0))
    return graph("MatMul", graph("Div", member_ST, members_S1), _mean(graph, grid_BFTd, 1))
