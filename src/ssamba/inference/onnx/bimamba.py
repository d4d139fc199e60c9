"""The chain of block pairs of SSAMBA as ONNX nodes. Shape letters: ``ssamba.ops.mamba.naive``; T is L x B rows.

Inside the chain the order is (tokens, batch, channels): products take it as rows (T, channels), the convolution as an
image of height L and width B with the channels last, and each turn of the scan's loop as one contiguous piece. The
scan's state is (B, K, N, E): what a step multiplies it with is constant, or contiguous, along the channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from onnx import GraphProto

from ssamba.inference.onnx.graph import Graph, Shape, Value
from ssamba.inference.onnx.weights import Weights
from ssamba.models.block_pair import BLOCKS, NORM_EPS
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.utils.torch_defaults import HOST_FLOAT32

LINEAR_FROM, CONSTANT_TO = 20.0, -15.9
"""Softplus of more is the value itself in float32; of less it is taken as that of this, 1.2e-7."""


@dataclass(frozen=True)
class _Direction:
    """What one direction's scan reads at each token, as (L, B, K, ., .)."""

    delta_LBK1E: Value
    drive_LBK1E: Value
    B_LBKN1: Value
    C_LBK1N: Value
    skip_TX: Value
    """D u, which joins the scan's output."""


def add_pairs(graph: Graph, model: Encoder, weights: Weights, tokens_BLd: Value, batch: Value) -> Value:
    """All pairs and the final norm: (B, L, d) -> (B, L, d)."""
    config = model.config
    stream_Td, y_Td = graph.reshape(graph("Transpose", tokens_BLd, perm=[1, 0, 2]), -1, config.width), None
    for i in range(config.depth // BLOCKS):
        graph.scope = f"pairs.{i}"
        stream_Td = _joined(graph, stream_Td, y_Td, config)
        y_Td = _Pair(graph, config, weights, f"pairs.{i}.").add(stream_Td, batch)
    graph.scope = "norm"
    stream_Td = _joined(graph, stream_Td, y_Td, config)
    scale, shift = weights.add(graph, "norm.weight"), weights.add(graph, "norm.bias")
    for _ in range(2):  # with the same weights, as in ``SSAMBA.encode_tokens``
        stream_Td = graph("LayerNormalization", stream_Td, scale, shift, axis=-1, epsilon=NORM_EPS)
    return graph("Transpose", graph.reshape(stream_Td, -1, batch, config.width), perm=[1, 0, 2])


def _joined(graph: Graph, stream_Td: Value, y_Td: Value | None, config: Config) -> Value:
    """The residual stream with a pair's output."""
    if y_Td is None:
        return stream_Td
    if config.residual_scale != 1:
        stream_Td = graph("Mul", stream_Td, graph.number(config.residual_scale))
    return graph("Add", y_Td, stream_Td)


class _Pair:
    """The nodes of one pair; ``prefix`` is what its parameters' names begin with."""

    def __init__(self, graph: Graph, config: Config, weights: Weights, prefix: str) -> None:
        self._graph, self._config, self._weights, self._prefix = graph, config, weights, prefix
        self._alternating = config.scan == "alternating"

    def add(self, stream_Td: Value, batch: Value) -> Value:
        """The pair's output (T, d) of the residual stream (T, d)."""
        graph, config = self._graph, self._config
        d, directions = config.width, config.directions
        ones, zeros = graph.constant(np.ones(d, np.float32)), graph.constant(np.zeros(d, np.float32))
        normal_Td = graph("LayerNormalization", stream_Td, ones, zeros, axis=-1, epsilon=NORM_EPS)
        x_TX, z_TX = self._input(normal_Td)
        x_1LBX = graph.reshape(x_TX, 1, -1, batch, BLOCKS * config.inner)
        x_1XLB = graph("Transpose", x_1LBX, perm=[0, 3, 1, 2])
        ways = [self._direction(x_1XLB, r, batch) for r in range(directions)]
        y_TX = self._scanned(ways, batch)
        y_TX = graph("Mul", y_TX, self._silu(z_TX))
        out_dX = graph.reshape(self._parameter("out_proj_dKE"), d, -1)
        if directions > 1:
            out_dX = graph("Mul", out_dX, graph.number(1 / directions))  # the mean of the directions
        return graph("MatMul", y_TX, graph("Transpose", out_dX, perm=[1, 0]))

    def _input(self, normal_Td: Value) -> tuple[Value, Value]:
        """x and z, each (T, K E): the input product with each block's norm folded in."""
        graph, d = self._graph, self._config.width
        bias_hKE = (self._weights[self._prefix + "in_proj_hKEd"] * self._values("norm_bias_Kd")[:, None]).sum(-1)
        norm_K1d = graph.constant(self._values("norm_weight_Kd")[:, None].numpy(), f"{self._prefix}norm_weight_Kd")
        weight_hKEd = graph("Mul", self._parameter("in_proj_hKEd"), norm_K1d)
        halves = graph.several("Split", 2, weight_hKEd, axis=0, num_outputs=2)
        x, z = (
            graph.linear(normal_Td, graph.reshape(half, -1, d), graph.constant(bias_KE.flatten().numpy()))
            for half, bias_KE in zip(halves, bias_hKE, strict=True)
        )
        return x, z

    def _direction(self, x_1XLB: Value, r: int, batch: Value) -> _Direction:
        """Convolution and what depends on it, for direction r."""
        graph, config = self._graph, self._config
        inner, states, rank = config.inner, config.state_size, config.dt_rank
        u_TX = self._convolved(x_1XLB, r)
        projected = graph("MatMul", u_TX, self._by_blocks("x_proj_RKPE", r))
        sizes = graph.integers(rank, states, states)
        low, B, C = graph.several("Split", 3, graph.reshape(projected, 0, BLOCKS, -1), sizes, axis=2)
        bias_X = graph.constant(self._values("dt_bias_RKE")[r].flatten().numpy())
        rows = graph.reshape(low, -1, BLOCKS * rank)
        delta_TX = self._softplus(graph("Gemm", rows, self._by_blocks("dt_proj_RKEr", r), bias_X))
        drive_TX = graph("Mul", delta_TX, u_TX)
        D_X = graph.constant(self._values("D_RKE")[r].flatten().numpy())
        return _Direction(
            graph.reshape(delta_TX, -1, batch, BLOCKS, 1, inner),
            graph.reshape(drive_TX, -1, batch, BLOCKS, 1, inner),
            graph.reshape(B, -1, batch, BLOCKS, states, 1),
            graph.reshape(C, -1, batch, BLOCKS, 1, states),
            graph("Mul", u_TX, D_X),
        )

    def _convolved(self, x_1XLB: Value, r: int) -> Value:
        """Depthwise convolution and SiLU -> u (T, K E). Direction 1 reads ahead, its taps mirrored.

        Of alternating blocks one reads back and one ahead: all have taps on both sides, half of them 0.
        """
        graph, width = self._graph, self._config.conv_width
        channels = BLOCKS * self._config.inner
        taps = self._values("conv_weight_RKEW")[r].reshape(channels, 1, width, 1)
        taps = taps if r == 0 else taps.flip(2)
        pads = [width - 1, 0, 0, 0] if r == 0 else [0, 0, width - 1, 0]
        if self._alternating:
            sides = (0, 0, 0, width - 1), (0, 0, width - 1, 0)
            halves = [half.flip(2) if k % 2 else half for k, half in enumerate(taps.chunk(BLOCKS))]
            taps = torch.cat([F.pad(half, sides[k % 2]) for k, half in enumerate(halves)])
            pads, width = [width - 1, 0, width - 1, 0], 2 * width - 1
        bias_X = graph.constant(self._values("conv_bias_RKE")[r].flatten().numpy())
        weight = graph.constant(taps.numpy(), f"{self._prefix}conv_weight.{r}")
        # Over an image: ONNX Runtime has a fast form of depthwise convolutions for those alone.
        u_1XLB = graph("Conv", x_1XLB, weight, bias_X, group=channels, pads=pads, kernel_shape=[width, 1])
        u_TX = graph.reshape(graph("Transpose", u_1XLB, perm=[0, 2, 3, 1]), -1, channels)
        return self._silu(u_TX)

    def _scanned(self, ways: list[_Direction], batch: Value) -> Value:
        """Both scans with their skips, summed: (T, K E). One loop over the tokens; direction 1 reads from the end.

        Where the blocks alternate, each has a scan of its own, the second from the end.
        """
        graph, config = self._graph, self._config
        read = [(way.delta_LBK1E, way.drive_LBK1E, way.B_LBKN1, way.C_LBK1N) for way in ways]
        rates = [-torch.exp(self._rates()[r]).transpose(1, 2) for r in range(len(ways))]
        blocks = BLOCKS
        if self._alternating:
            halves = [graph.several("Split", BLOCKS, x, axis=2, num_outputs=BLOCKS) for x in read[0]]
            read, rates, blocks = list(zip(*halves, strict=True)), list(rates[0].split(1)), 1
        n = len(read)
        shape = graph("Concat", batch, graph.integers(blocks, config.state_size, config.inner), axis=0)
        begin = graph("ConstantOfShape", shape)
        inputs = [x for of_scan in read for x in of_scan]
        results = graph.several(
            "Scan", 2 * n, *[begin] * n, *inputs, body=self._step(rates), num_scan_inputs=4 * n,
            scan_input_directions=[r for r in range(n) for _ in range(4)],
            scan_output_directions=list(range(n)),
        )  # fmt: skip
        scanned = [graph("Concat", *results[n:], axis=2)] if self._alternating else results[n:]
        total, *others = [graph.reshape(y, -1, BLOCKS * config.inner) for y in scanned]
        for term in (*others, *(way.skip_TX for way in ways)):
            total = graph("Add", total, term)
        return total

    def _step(self, rates: list[torch.Tensor]) -> GraphProto:
        """One token of each scan, of rates (K, N, E): the states, then what the token gives, to those and C . state."""
        blocks, states, inner = rates[0].shape
        state, wide = (None, blocks, states, inner), (None, blocks, 1, inner)
        body = self._graph.body(f"{self._prefix}step")
        before: dict[Value, Shape] = {}
        read: dict[Value, Shape] = {}
        after: dict[Value, Shape] = {}
        given: dict[Value, Shape] = {}
        for r, A_KNE in enumerate(rates):
            A = self._graph.constant(A_KNE.numpy(), f"{self._prefix}A.{r}")
            h, delta, drive, B, C = (f"{self._prefix}{name}.{r}" for name in ("h", "delta", "drive", "B", "C"))
            decay = body("Exp", body("Mul", delta, A))
            new = body("Add", body("Mul", decay, h), body("MatMul", B, drive))
            before[h] = after[new] = state
            given[body("MatMul", C, new)] = wide
            read |= {delta: wide, drive: wide, B: (None, blocks, states, 1), C: (None, blocks, 1, states)}
        return body.finish(f"{self._prefix}step", before | read, after | given)

    def _rates(self) -> torch.Tensor:
        """A_log of each state (R, K, E, N), of tied decays too."""
        A_log = self._values("A_log_RKEN")
        states = self._config.state_size
        return A_log if A_log.shape[-1] == states else A_log + torch.arange(1, states + 1, **HOST_FLOAT32).log()

    def _by_blocks(self, name: str, r: int) -> Value:
        """Direction r of a product (R, K, y, x) for all blocks at once: (K x, K y), blocks off the diagonal are 0."""
        graph = self._graph
        weight_KxY = graph("Transpose", graph.slice(self._parameter(name), 0, r, r + 1), perm=[1, 3, 0, 2])
        eye = graph.constant(np.eye(BLOCKS, dtype=np.float32).reshape(BLOCKS, 1, BLOCKS, 1))
        inputs, outputs = self._values(name).shape[:-3:-1]
        return graph.reshape(graph("Mul", weight_KxY, eye), BLOCKS * inputs, BLOCKS * outputs)

    def _softplus(self, x: Value) -> Value:
        """log(1 + exp(x)) by fast operators, to the last digits (ONNX Runtime's own is scalar, five times slower).

        With e = exp(x) and u = 1 + e as rounded it is log(u) e / (u - 1), and x itself where e leaves no trace of 1.
        Where 1 would leave no trace of e, it is constant.
        """
        graph, one = self._graph, self._graph.number(1)
        e = graph("Exp", graph("Clip", x, graph.number(CONSTANT_TO), graph.number(LINEAR_FROM)))
        u = graph("Add", e, one)
        return graph("Max", graph("Mul", graph("Log", u), graph("Div", e, graph("Sub", u, one))), x)

    def _silu(self, x: Value) -> Value:
        return self._graph("Mul", x, self._graph("Sigmoid", x))

    def _parameter(self, name: str) -> Value:
        return self._weights.add(self._graph, self._prefix + name)

    def _values(self, name: str) -> torch.Tensor:
        return self._weights[self._prefix + name]
