"""Two parallel blocks that read the same input: norm, projections and residual stream around any mixer.

The reference runs an even block on the sequence and an odd block on the reversed sequence and adds the results. Both
read the same input, and reversing the sequence around a block equals exchanging its directions. So a pair is one wide
step: one input product, four scans at once, one output product, no flip (docs/reference.md, "Encoder").
Shape letters: ``ssamba.ops.mamba.naive``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ssamba import ops
from ssamba.models.config import Config
from ssamba.ops.derivatives import beyond_backward
from ssamba.utils.torch_defaults import of_new_weights

NORM_EPS = 1e-5
BLOCKS = 2


class InferencePlan(NamedTuple):
    """How inference spends memory and time; the results differ by rounding alone. Counts are tokens of all clips.

    The defaults are measurements on one GPU (dev/KERNEL-NOTES.md), on a CPU those of docs/cpu-scan.md.
    """

    part_tokens: int = 32768
    """Larger inputs go through each pair in parts of at least this many tokens, enough to fill a GPU."""
    part_tokens_cpu: int = 2048
    """The same on a CPU: what a part takes stays in the caches, and the system does not have to clear fresh memory."""
    defer_gate_min_tokens: int = 16384
    """From here on the scan runs without its gate where it can, and z is made after it: that takes a third less memory
    and, up to ``narrow_width``, where gate and output are one pass, no more time."""
    defer_gate_min_tokens_wide: int = 65536
    """The same for wider models, where making z and the output are two passes: they gain in long batches only."""
    narrow_width: int = 192
    """Width up to which gate and output are one pass."""
    defer_gate_part_tokens: int = 65536
    """Tokens of a part with a deferred gate: all channels of that many keep a GPU busy."""
    prepare_together_bytes: int = 2**24
    """Up to so many bytes of input products, a GPU prepares the weights of all pairs in one launch instead of one each:
    that of a small model takes longer to start than to run."""

    def defers_gate(self, tokens: int, width: int) -> bool:
        """Whether a pass over ``tokens`` tokens should make z after the scan."""
        least = self.defer_gate_min_tokens if width <= self.narrow_width else self.defer_gate_min_tokens_wide
        return tokens >= least


class PairWeights(NamedTuple):
    """A pair's weights as inference reads them that prepares them in one pass: with a deferred gate, and otherwise."""

    in_proj_hKEd: Tensor
    """The input product with the LayerNorm's scale folded in."""
    in_bias_hKE: Tensor
    """The LayerNorm's shift, as that product's bias."""
    out_proj_dKE: Tensor
    mixer: tuple[Tensor, ...]
    """What ``BlockPair.mix_without_gate`` takes."""

    def of_input(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Weight (K E, d) and bias (K E) of x's product, then those of z's."""
        (weight_x, weight_z), (bias_x, bias_z) = (t.flatten(1, 2) for t in (self.in_proj_hKEd, self.in_bias_hKE))
        return (weight_x, bias_x), (weight_z, bias_z)

    def of_gate(self) -> tuple[Tensor, Tensor, Tensor]:
        """What ``ops.gated_output_`` takes: weight and bias of z's product, weight (d, K E) of the output's."""
        return *self.of_input()[1], self.out_proj_dKE.flatten(1)


class ResidualState(NamedTuple):
    """What goes from pair to pair, (B, L, d) each."""

    x_BLd: Tensor
    """At first the tokens, then a pair's output, which is yet to be added to the stream; the stream's LayerNorm where
    ``normed``."""
    stream_BLd: Tensor | None = None
    """The residual stream, None at first. Until x is added to it, its factor (``residual_scale``) is left out, too."""
    normed: bool = False
    """Whether the next pair's beginning is already done: x has been added to the stream, and that is normalised."""
    next_x_BLKE: Tensor | None = None
    """The next pair's x in inference, where its product is done, too: ``x_BLd`` is then but memory for the norm."""
    next_weights: PairWeights | None = None
    """The next pair's weights, where they are prepared."""


class BlockPair(nn.Module, ABC):
    """Two blocks stacked, and their common step. A subclass is a mixer: its parameters and what it makes of x and z.

    State-dict keys are the names of the attributes, without a prefix for the mixer.
    """

    keep_states = False
    """Whether training keeps states of the mixer that its backward would otherwise compute again: see
    ``ops.bimamba_inner_packed``. For the last pairs of a chain, whose backward comes first: their states go first."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, e = config.width, config.inner
        self.depth = config.depth
        self.residual_scale = config.residual_scale
        self.norm_weight_Kd = empty_parameter(BLOCKS, d)
        self.norm_bias_Kd = empty_parameter(BLOCKS, d)
        self.in_proj_hKEd = empty_parameter(2, BLOCKS, e, d)
        self._make_mixer(config)
        self.out_proj_dKE = empty_parameter(d, BLOCKS, e)

    # ---- what a mixer defines

    @abstractmethod
    def _make_mixer(self, config: Config) -> None:
        """Create the mixer's parameters."""

    @classmethod
    def pairs_that_keep_states(cls, config: Config) -> int:
        """How many pairs of a chain, the last ones, should ``keep_states``."""
        return 0

    @abstractmethod
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw all weights of the pair, in the order that keeps a seed's model the same."""

    @abstractmethod
    def mix(self, xz_BLhKE: Tensor) -> Tensor:
        """From the mixer's input and its gate to ``y_BLKE``, the gate applied."""

    def gives_bias_gradient(self, like: Tensor, bias_hKE: Tensor) -> bool:
        """Whether ``mix_with_bias`` should give the gradient of the bias that products of ``like`` get, in training."""
        return False

    def mix_with_bias(self, xz_BLhKE: Tensor, bias_hKE: Tensor) -> Tensor:
        """``mix`` of an input product with ``bias_hKE.detach()``: the gradient of the bias comes from the mixer, whose
        backward may add it up on the way. The product would have to read the gradient of xz once more for it.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no gradient of the input product's bias")

    def supports_deferred_gate(self, like: Tensor) -> bool:
        """Whether ``mix_without_gate`` is likely to take products of ``like``."""
        return False

    def inference_weights(self, dtype: torch.dtype) -> PairWeights:
        """The weights for ``mix_without_gate``, those of products in ``dtype``."""
        return self.weights_of_pairs([self], dtype)[0]

    @staticmethod
    def weights_of_pairs(pairs: Sequence[BlockPair], dtype: torch.dtype) -> list[PairWeights]:
        """``inference_weights`` of pairs of one kind, at once."""
        raise NotImplementedError(f"{type(pairs[0]).__name__} has no form without a gate")

    def mix_without_gate(self, x_BLKE: Tensor, work: Tensor, weights: tuple[Tensor, ...]) -> Tensor | None:
        """``y_BLKE`` before the gate, in inference; None where it does not take these.

        ``work`` is memory that may be overwritten, of any size.
        """
        return None

    def prepares_weights(self, like: Tensor) -> bool:
        """Whether inference with products of ``like`` goes through ``inference_weights`` and ``mix_prepared``."""
        return False

    def mix_prepared(self, xz_BLhKE: Tensor, work: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """``mix`` with the mixer's weights of ``inference_weights``; ``work`` as for ``mix_without_gate``."""
        raise NotImplementedError(f"{type(self).__name__} takes no prepared weights")

    # ---- the step

    def forward(
        self,
        state: ResidualState,
        drop_scale_KB: Tensor | None = None,
        inplace: bool = False,
        fuse_next_norm: bool = False,
        plan: InferencePlan | None = None,
        next_pair: BlockPair | None = None,
        prepared: Mapping[BlockPair, PairWeights] | None = None,
    ) -> ResidualState:
        """One step: the blocks' summed output and the residual stream that it is yet to be added to.

        Each block adds x to its own copy of the residual, and the two are added after the pair: the stream doubles.
        That factor is left to whoever adds to the stream next, so the stream comes in and goes out undoubled.
        With a ``residual_scale`` of 1 the two are averaged instead.
        ``drop_scale_KB`` scales x per block and clip as it is added (stochastic depth); None leaves it whole.
        ``inplace`` lets the step write its results over x and the residual, in inference.
        ``fuse_next_norm`` allows it to do what the next pair begins with, where that costs it little.
        ``plan``: how inference spends memory and time, ``InferencePlan()`` where it is None.
        ``next_pair``: which this is, so that with ``fuse_next_norm`` the step may make its x as well.
        ``prepared``: what ``inference_weights`` of some pairs, or all, has returned.
        """
        x_BLd, residual_BLd, normed, *_ = state
        if drop_scale_KB is not None and residual_BLd is not None:
            assert not normed, "x must not be added to the stream before each block has scaled it"
            xz_BLhKE, bias_hKE, stream_BLd = self._input_with_drop_path(x_BLd, residual_BLd, drop_scale_KB)
            return ResidualState(self._mix_and_project(xz_BLhKE, bias_hKE), stream_BLd)
        if normed:
            assert residual_BLd is not None
            normal_BLd, stream_BLd = x_BLd, residual_BLd
        else:
            normal_BLd, stream_BLd = add_to_stream(x_BLd, residual_BLd, scale=self.residual_scale, inplace=inplace)
        if not torch.is_grad_enabled() and not beyond_backward():
            plan = InferencePlan() if plan is None else plan
            batch, length, width = x_BLd.shape
            may_write = inplace or stream_BLd is not x_BLd  # the stream is not the caller's tokens
            fuse = fuse_next_norm and may_write and stream_BLd.is_contiguous()
            if plan.defers_gate(batch * length, width):
                begun = state._replace(x_BLd=normal_BLd, stream_BLd=stream_BLd, normed=True)
                done = self._step_with_deferred_gate(begun, fuse, plan, next_pair, prepared or {})
                if done is not None:
                    return done
            if state.next_x_BLKE is not None:  # of no use here
                normal_BLd = add_to_stream(stream_BLd, None)[0]
            least = plan.part_tokens_cpu if x_BLd.device.type == "cpu" else plan.part_tokens
            parts = min(batch, batch * length // least)
            if parts > 1:
                self._step_by_parts(normal_BLd, parts)
                return ResidualState(normal_BLd, stream_BLd)
            if self.prepares_weights(normal_BLd):
                return self._step_with_prepared_weights(normal_BLd, stream_BLd, fuse, prepared or {})
        weight_hKEd, bias_hKE = self._folded_input()
        of_product, of_mixer = self._bias_of_each(normal_BLd, bias_hKE)
        xz_BLhKE = self._input(normal_BLd, weight_hKEd, of_product)
        del normal_BLd, weight_hKEd  # not needed by the mixer, which is where memory peaks
        return ResidualState(self._mix_and_project(xz_BLhKE, of_mixer), stream_BLd)

    def _step_by_parts(self, normal_BLd: Tensor, parts: int) -> None:
        """The step for some clips at a time, the result over the input: the mixer's memory is that of one part."""
        weight, bias = self._folded_input()
        for clips_BLd in normal_BLd.tensor_split(parts):
            clips_BLd.copy_(self._mix_and_project(self._input(clips_BLd, weight, bias)))

    def _ready_weights(self, dtype: torch.dtype, prepared: Mapping[BlockPair, PairWeights]) -> PairWeights:
        found = prepared.get(self)
        return self.inference_weights(dtype) if found is None or found.in_proj_hKEd.dtype != dtype else found

    def _step_with_deferred_gate(
        self,
        begun: ResidualState,
        fuse_next_norm: bool,
        plan: InferencePlan,
        next_pair: BlockPair | None,
        prepared: Mapping[BlockPair, PairWeights],
    ) -> ResidualState | None:
        """The step from the normalised stream with z made after the scan, part by part, the result over the input.

        None, and nothing done, if it cannot. Where gate and output are one pass, that pass normalises the stream
        again, and the scan's projection takes the input's place meanwhile.
        With ``fuse_next_norm`` the stream becomes what the next pair adds up to, and its norm takes the output's place;
        or the next pair's x is made instead.
        """
        normal_BLd, stream_BLd, _, _, weights = begun
        assert stream_BLd is not None
        if not self.supports_deferred_gate(normal_BLd):
            return None
        batch, length, width = normal_BLd.shape
        parts = min(batch, max(1, batch * length // plan.defer_gate_part_tokens))
        keep = width > plan.narrow_width
        weights = self._ready_weights(normal_BLd.dtype, prepared) if weights is None else weights
        scale = self.residual_scale if fuse_next_norm else None
        if parts == 1:
            fuse_input = scale is not None and next_pair is not None and not keep
            next_weights = next_pair._ready_weights(normal_BLd.dtype, prepared) if fuse_input and next_pair else None
            return self._deferred_gate(begun._replace(next_weights=next_weights), weights, scale, keep)
        clips = zip(normal_BLd.tensor_split(parts), stream_BLd.tensor_split(parts), strict=True)
        done = all(self._deferred_gate(ResidualState(*pair), weights, scale, keep) is not None for pair in clips)
        return ResidualState(normal_BLd, stream_BLd, fuse_next_norm) if done else None

    def _deferred_gate(
        self, begun: ResidualState, weights: PairWeights, residual_scale: float | None, keep_normal: bool
    ) -> ResidualState | None:
        """``_step_with_deferred_gate`` of some clips, ``next_weights`` given where the next pair's x may be made.

        That takes the place of this pair's x. ``keep_normal``: the scan leaves the input as it is.
        """
        normal_BLd, stream_BLd, _, x_BLKE, next_weights = begun
        assert stream_BLd is not None
        del begun
        if x_BLKE is None:
            x_BLKE = F.linear(normal_BLd, *weights.of_input()[0]).unflatten(-1, (BLOCKS, -1))
        work = normal_BLd.new_empty(0) if keep_normal else normal_BLd
        y_BLKE = self.mix_without_gate(x_BLKE, work, weights.mixer)
        if y_BLKE is None:
            return None
        tensors = y_BLKE.flatten(2).flatten(0, 1), stream_BLd.flatten(0, 1), *weights.of_gate()
        if residual_scale is not None and next_weights is not None:
            to_input = *next_weights.of_input()[0], x_BLKE.flatten(2).flatten(0, 1)
            if ops.gated_output_to_input_(*tensors, *to_input, NORM_EPS, residual_scale):
                return ResidualState(normal_BLd, stream_BLd, True, x_BLKE, next_weights)
            del to_input
        del x_BLKE
        ops.gated_output_(*tensors, normal_BLd.flatten(0, 1), NORM_EPS, residual_scale, normed=keep_normal)
        return ResidualState(normal_BLd, stream_BLd, residual_scale is not None, None, next_weights)

    def _step_with_prepared_weights(
        self,
        normal_BLd: Tensor,
        stream_BLd: Tensor,
        fuse_next_norm: bool,
        prepared: Mapping[BlockPair, PairWeights],
    ) -> ResidualState:
        """The step from the normalised input: with few tokens the launches of ``_folded_input`` and casts count.

        With ``fuse_next_norm`` as ``_step_with_deferred_gate``. After the input product nobody reads the input, which
        is the mixer's memory then: a norm wrote it, to new memory, to that of a pair's output, or where ``inplace``
        allows it.
        """
        weight_hKEd, bias_hKE, out_proj_dKE, mixer = self._ready_weights(normal_BLd.dtype, prepared)
        xz_BLhKE = self._input(normal_BLd, weight_hKEd, bias_hKE)
        del weight_hKEd, bias_hKE  # not needed by the mixer, which is where memory peaks
        y_BLKE = self.mix_prepared(xz_BLhKE, normal_BLd, mixer)
        del xz_BLhKE
        y_BLX, out_proj_dX = y_BLKE.flatten(2), out_proj_dKE.flatten(1)
        if not fuse_next_norm or stream_BLd.dtype != y_BLX.dtype:
            return ResidualState(ops.linear(y_BLX, out_proj_dX), stream_BLd)
        y_TX, stream_Td, out_Td = (t.flatten(0, 1) for t in (y_BLX, stream_BLd, normal_BLd))
        ops.output_to_stream_(y_TX, out_proj_dX, stream_Td, out_Td, NORM_EPS, self.residual_scale)
        return ResidualState(normal_BLd, stream_BLd, normed=True)

    def _input(self, normal_BLd: Tensor, weight_hKEd: Tensor, bias_hKE: Tensor) -> Tensor:
        return ops.linear(normal_BLd, weight_hKEd.flatten(0, 2), bias_hKE.flatten()).unflatten(
            -1, weight_hKEd.shape[:3]
        )

    def _folded_input(self) -> tuple[Tensor, Tensor]:
        """Input product with each block's LayerNorm scale and shift folded in: the normalised input is shared."""
        return ops.fold_norm(self.in_proj_hKEd, self.norm_weight_Kd, self.norm_bias_Kd)

    def _bias_of_each(self, like: Tensor, bias_hKE: Tensor) -> tuple[Tensor, Tensor | None]:
        """The bias as the input product of ``like`` adds it and, where the mixer gives its gradient, for the mixer."""
        return (bias_hKE.detach(), bias_hKE) if self.gives_bias_gradient(like, bias_hKE) else (bias_hKE, None)

    def _input_with_drop_path(
        self, x_BLd: Tensor, residual_BLd: Tensor, drop_scale_KB: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The input product when each block has its own stochastic depth, so its own residual.

        Returns xz, the bias whose gradient the mixer is to give, if any, and the stream.
        """
        weight_hKEd, bias_hKE = self._folded_input()
        scale = self.residual_scale
        added = (add_to_stream(x_BLd, residual_BLd, scale_B, scale=scale) for scale_B in drop_scale_KB)
        normal, streams = zip(*added, strict=True)
        # One product for each block, whose results stay where they are: the mixer takes x and z with any strides.
        normal_KTd = torch.stack(normal).flatten(1, 2)
        bias_hKE, of_mixer = self._bias_of_each(normal_KTd, bias_hKE)
        weight_KXd = weight_hKEd.transpose(0, 1).flatten(1, 2)
        bias_KX = bias_hKE.transpose(0, 1).flatten(1)
        xz_KTX = ops.batched_linear(normal_KTd, weight_KXd, bias_KX)
        xz_KBLhE = xz_KTX.view(BLOCKS, *x_BLd.shape[:2], 2, -1)
        return xz_KBLhE.permute(1, 2, 3, 0, 4), of_mixer, sum(streams) / BLOCKS

    def _mix_and_project(self, xz_BLhKE: Tensor, bias_hKE: Tensor | None = None) -> Tensor:
        y_BLKE = self.mix(xz_BLhKE) if bias_hKE is None else self.mix_with_bias(xz_BLhKE, bias_hKE)
        del xz_BLhKE
        return ops.linear(y_BLKE.flatten(2), self.out_proj_dKE.flatten(1))


def prepare_together(pairs: Sequence[BlockPair], like: Tensor, most_bytes: int) -> dict[BlockPair, PairWeights]:
    """The inference weights of pairs of one kind for products of ``like``, made at once where each pair prepares its
    own and their input products have at most ``most_bytes``; else none.
    """
    if torch.is_grad_enabled() or beyond_backward() or torch.compiler.is_compiling():
        return {}
    if sum(pair.in_proj_hKEd.nbytes for pair in pairs) > most_bytes:
        return {}
    if not all(pair.prepares_weights(like) for pair in pairs):
        return {}
    return dict(zip(pairs, pairs[0].weights_of_pairs(pairs, like.dtype), strict=True))


def empty_parameter(*shape: int) -> nn.Parameter:
    """A parameter without values: ``reset_parameters`` or a checkpoint fills it."""
    return nn.Parameter(torch.empty(*shape, **of_new_weights()))


def add_to_stream(
    x_BLd: Tensor,
    residual_BLd: Tensor | None,
    drop_scale_B: Tensor | None = None,
    weight_d: Tensor | None = None,
    bias_d: Tensor | None = None,
    scale: float = BLOCKS,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """``stream = scale residual + drop_scale x`` (2: the pair before doubles) and LayerNorm(stream), in reverse order.

    Without affine weights the norm has the dtype that the matrix product after it wants. ``inplace`` allows the stream
    to take the residual's place (without one, x's) and the norm x's, where that saves memory.
    """
    mixed = torch.is_autocast_enabled(x_BLd.device.type) and weight_d is None
    dtype = (
        torch.get_autocast_dtype(x_BLd.device.type)
        if mixed
        else (x_BLd if residual_BLd is None else residual_BLd).dtype
    )
    return ops.add_layer_norm(
        x_BLd, residual_BLd, weight_d, bias_d, eps=NORM_EPS, residual_scale=scale, x_scale_B=drop_scale_B,
        out_dtype=dtype, reuse=inplace,
    )  # fmt: skip
