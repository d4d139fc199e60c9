"""From log-mel features to tokens: patches, positions for any number of columns, the chain, the final norm."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from ssamba.inference.onnx import bimamba, transformer
from ssamba.inference.onnx.graph import Graph, Value
from ssamba.inference.onnx.weights import Weights
from ssamba.models.encoder import Encoder
from ssamba.utils.errors import ConfigError

CHAINS = {"ssamba": bimamba.add_pairs, "ssast": transformer.add_blocks}
"""The blocks and the final norm of each value of ``Config.encoder``."""


@dataclass(frozen=True)
class Tokens:
    """Values of the graph. ``tokens_BLd``: after the final norm. ``batch``, ``columns``: vectors of one int64."""

    tokens_BLd: Value
    batch: Value
    columns: Value


def add_encoder(graph: Graph, model: Encoder, weights: Weights, features: Value) -> Tokens:
    """Normalised log-mel (B, frames, mel_bins) -> tokens (B, prefix + F*T, d), as ``Encoder.encode``."""
    if model.config.encoder not in CHAINS:
        raise ConfigError(f"encoder {model.config.encoder}: has no ONNX form; export one of {', '.join(CHAINS)}")
    batch = graph("Shape", features, start=0, end=1)
    tokens_BLd, columns = _patches(graph, model, weights, features, batch)
    tokens_BLd = CHAINS[model.config.encoder](graph, model, weights, tokens_BLd, batch)
    graph.scope = ""
    return Tokens(tokens_BLd, batch, columns)


def _patches(graph: Graph, model: Encoder, weights: Weights, features: Value, batch: Value) -> tuple[Value, Value]:
    """Tokens (B, L, d) with their positions, and the number of patch columns."""
    config, prefix = model.config, model.prefix_tokens
    graph.scope = "patch_embed"
    image = graph("Unsqueeze", graph("Transpose", features, perm=[0, 2, 1]), graph.integers(1))
    strides = [config.stride_frequency, config.stride_time]
    bias = weights.add(graph, "patch_embed.bias")
    grid_BdFT = graph("Conv", image, weights.add(graph, "patch_embed.weight"), bias, strides=strides)
    columns = graph("Shape", grid_BdFT, start=3, end=4)
    patches_BPd = graph("Transpose", graph.reshape(grid_BdFT, 0, 0, -1), perm=[0, 2, 1])
    graph.scope = "positions"
    positions = weights.add(graph, "positions")
    stored_FTd = graph.reshape(graph.slice(positions, 1, prefix), *config.grid, config.width)
    placed_FTd = _resized(graph, stored_FTd, config.grid[1], columns)
    patches_BPd = graph("Add", patches_BPd, graph.reshape(placed_FTd, 1, -1, config.width))
    names = {id(p): name for name, p in model.named_parameters()}
    front = [weights.add(graph, names[id(token)]) for token in model.prefix()]
    front_1pd = graph("Concat", *front, axis=1) if prefix > 1 else front[0]
    front_1pd = graph("Add", front_1pd, graph.slice(positions, 1, 0, prefix))
    front_Bpd = graph("Expand", front_1pd, graph("Concat", batch, graph.integers(1, 1), axis=0))
    return graph("Concat", front_Bpd, patches_BPd, axis=1), columns


def _resized(graph: Graph, stored_FTd: Value, stored: int, columns: Value) -> Value:
    """Positions for another number of columns, as ``patches.resize_positions``: cut from the centre or interpolated.

    Both are a mean of two stored columns: when cut, of one with the weight 1.
    """
    n = graph("Squeeze", columns, graph.integers(0))
    longer = graph("Greater", n, graph.integer(stored))
    index = graph("Range", graph.integer(0), n, graph.integer(1))
    # Half-pixel centres: column i of n lies at (i + 0.5) stored / n - 0.5, not before the first stored one.
    n_float = graph("Cast", n, to=TensorProto.FLOAT)
    centre = graph("Add", graph("Cast", index, to=TensorProto.FLOAT), graph.number(0.5))
    place = graph("Mul", centre, graph("Div", graph.number(stored), n_float))
    place = graph("Max", graph("Sub", place, graph.number(0.5)), graph.number(0.0))
    below = graph("Floor", place)
    start = graph("Sub", graph.integer(stored // 2), graph("Div", n, graph.integer(2)))
    first = graph("Where", longer, graph("Cast", below, to=TensorProto.INT64), graph("Add", index, start))
    second = graph("Min", graph("Add", first, graph.integer(1)), graph.integer(stored - 1))
    share = graph("Where", longer, graph("Sub", place, below), graph.number(0.0))
    share = graph("Unsqueeze", share, graph.integers(1))
    low_FTd = graph("Gather", stored_FTd, first, axis=1)
    step_FTd = graph("Sub", graph("Gather", stored_FTd, second, axis=1), low_FTd)
    return graph("Add", low_FTd, graph("Mul", step_FTd, share))
