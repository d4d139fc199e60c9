"""The chain of blocks of SSAST as ONNX nodes. T is B x L rows of tokens, H heads, D width of a head."""

from __future__ import annotations

import math

from ssamba.inference.onnx.graph import Graph, Value
from ssamba.inference.onnx.weights import Weights
from ssamba.models.encoder import Encoder
from ssamba.models.ssast import BLOCK_NORM_EPS


def add_blocks(graph: Graph, model: Encoder, weights: Weights, tokens_BLd: Value, batch: Value) -> Value:
    """All blocks and the final norm: (B, L, d) -> (B, L, d)."""
    heads, d = model.config.attention_heads, model.config.width
    tokens_Td = graph.reshape(tokens_BLd, -1, d)

    def norm(x_Td: Value, name: str) -> Value:
        scale, shift = weights.add(graph, f"{name}.weight"), weights.add(graph, f"{name}.bias")
        return graph("LayerNormalization", x_Td, scale, shift, axis=-1, epsilon=BLOCK_NORM_EPS)

    def linear(x_Tx: Value, name: str) -> Value:
        return graph.linear(x_Tx, weights.add(graph, f"{name}.weight"), weights.add(graph, f"{name}.bias"))

    for i in range(model.config.depth):
        graph.scope = f"blocks.{i}"
        qkv = linear(norm(tokens_Td, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        mixed_Td = _attention(graph, qkv, heads, d // heads, batch)
        tokens_Td = graph("Add", tokens_Td, linear(mixed_Td, f"blocks.{i}.attn.proj"))
        hidden = _gelu(graph, linear(norm(tokens_Td, f"blocks.{i}.norm2"), f"blocks.{i}.fc1"))
        tokens_Td = graph("Add", tokens_Td, linear(hidden, f"blocks.{i}.fc2"))
    graph.scope = "norm"
    return graph.reshape(norm(tokens_Td, "norm"), batch, -1, d)


def _attention(graph: Graph, qkv_T3d: Value, heads: int, width: int, batch: Value) -> Value:
    """Softmax attention of all heads: (T, 3 d) -> (T, d)."""
    qkv_BL3HD = graph.reshape(qkv_T3d, batch, -1, 3, heads, width)
    parts = graph.several("Split", 3, qkv_BL3HD, axis=2, num_outputs=3)
    q, k, v = (graph("Squeeze", part, graph.integers(2)) for part in parts)
    q_BHLD, v_BHLD = (graph("Transpose", x, perm=[0, 2, 1, 3]) for x in (q, v))
    k_BHDL = graph("Transpose", k, perm=[0, 2, 3, 1])
    q_BHLD = graph("Mul", q_BHLD, graph.number(width**-0.5))
    weights_BHLL = graph("Softmax", graph("MatMul", q_BHLD, k_BHDL), axis=-1)
    mixed_BLHD = graph("Transpose", graph("MatMul", weights_BHLL, v_BHLD), perm=[0, 2, 1, 3])
    return graph.reshape(mixed_BLHD, -1, heads * width)


def _gelu(graph: Graph, x: Value) -> Value:
    """x times the normal distribution's share below x."""
    share = graph("Add", graph("Erf", graph("Div", x, graph.number(math.sqrt(2)))), graph.number(1))
    return graph("Mul", graph("Mul", x, share), graph.number(0.5))
