"""A pair of bidirectional Mamba blocks (Mamba, arXiv 2312.00752; Vision Mamba, arXiv 2401.09417)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from ssamba import ops
from ssamba.models.block_pair import BLOCKS, BlockPair, PairWeights, empty_parameter
from ssamba.models.config import Config
from ssamba.ops.mamba.params import MixerParams
from ssamba.utils.torch_defaults import HOST_FLOAT32

DT_MIN, DT_MAX, DT_FLOOR = 0.001, 0.1, 1e-4


class MambaPair(BlockPair):
    """Direction 0 runs left to right; a model of one direction has only that.

    With alternating scans each block has one direction: the first runs left to right, the second right to left.

    In the second block the official checkpoint's unsuffixed weights belong to direction 1:
    ``ssamba.models.pretrained.official`` does that exchange.
    """

    def _make_mixer(self, config: Config) -> None:
        e, n, r = config.inner, config.state_size, config.dt_rank
        of_each = (config.directions, BLOCKS)
        self.states, self.alternating = n, config.scan == "alternating"
        self.conv_weight_RKEW = empty_parameter(*of_each, e, config.conv_width)
        self.conv_bias_RKE = empty_parameter(*of_each, e)
        self.x_proj_RKPE = empty_parameter(*of_each, r + 2 * n, e)
        self.dt_proj_RKEr = empty_parameter(*of_each, e, r)
        self.dt_bias_RKE = empty_parameter(*of_each, e)
        self.A_log_RKEN = empty_parameter(*of_each, e, 1 if config.decay == "tied" else n)
        self.D_RKE = empty_parameter(*of_each, e)

    @classmethod
    def pairs_that_keep_states(cls, config: Config) -> int:
        """A third with one direction a block, which takes an eighth more memory in training. With two, which have twice
        as many states, the last pair alone: its backward comes first, and needs room for them anyway.
        """
        pairs = config.depth // BLOCKS
        return pairs // 3 if config.directions == 1 else min(pairs, 1)

    @torch.no_grad()
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """The reference's initialisation (docs/reference.md, "Encoder"), from an explicit generator."""

        def uniform(parameter: Tensor, bound: float) -> None:
            parameter.uniform_(-bound, bound, generator=generator)

        d, (e, r) = self.norm_weight_Kd.shape[1], self.dt_proj_RKEr.shape[2:]
        self.norm_weight_Kd.fill_(1.0)
        self.norm_bias_Kd.zero_()
        uniform(self.in_proj_hKEd, d**-0.5)
        uniform(self.conv_weight_RKEW, self.conv_weight_RKEW.shape[-1] ** -0.5)
        uniform(self.conv_bias_RKE, self.conv_weight_RKEW.shape[-1] ** -0.5)
        uniform(self.x_proj_RKPE, e**-0.5)
        uniform(self.dt_proj_RKEr, r**-0.5)
        uniform(self.out_proj_dKE, e**-0.5 / math.sqrt(self.depth))
        span = math.log(DT_MAX) - math.log(DT_MIN)
        dt = torch.exp(
            torch.rand(self.dt_bias_RKE.shape, generator=generator, **HOST_FLOAT32) * span + math.log(DT_MIN)
        )
        dt = dt.clamp_min(DT_FLOOR)
        self.dt_bias_RKE.copy_(dt + torch.log(-torch.expm1(-dt)))
        states = torch.arange(1, self.A_log_RKEN.shape[-1] + 1, **HOST_FLOAT32)
        self.A_log_RKEN.copy_(states.log().expand_as(self.A_log_RKEN))
        self.D_RKE.fill_(1.0)

    def mixer_params(self) -> MixerParams:
        """The mixer's parameters as the operators take them."""
        return MixerParams(*(getattr(self, name) for name in MixerParams._fields))

    def mix(self, xz_BLhKE: Tensor) -> Tensor:
        """Convolution, both scans and gate: see ``ops.bimamba_inner``."""
        return ops.bimamba_inner_packed(xz_BLhKE, *self.mixer_params(), self.alternating, None, self.keep_states)

    def gives_bias_gradient(self, like: Tensor, bias_hKE: Tensor) -> bool:
        """See ``ops.gives_bias_gradient``."""
        return ops.gives_bias_gradient(like, bias_hKE, *self.mixer_params())

    def mix_with_bias(self, xz_BLhKE: Tensor, bias_hKE: Tensor) -> Tensor:
        """See ``ops.bimamba_inner_packed``."""
        return ops.bimamba_inner_packed(xz_BLhKE, *self.mixer_params(), self.alternating, bias_hKE, self.keep_states)

    def supports_deferred_gate(self, like: Tensor) -> bool:
        """See ``ops.runs_ungated``."""
        return ops.runs_ungated(like, self.A_log_RKEN, self.states, self.alternating)

    def prepares_weights(self, like: Tensor) -> bool:
        """On a GPU, where weights have the 16 bits of the products: one launch instead of five."""
        same = like.dtype == self.in_proj_hKEd.dtype and like.dtype in (torch.bfloat16, torch.float16)
        return like.is_cuda and same

    def mix_prepared(self, xz_BLhKE: Tensor, work: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """See ``ops.bimamba_inner_with_work``."""
        return ops.bimamba_inner_with_work(xz_BLhKE, work, *weights, alternating=self.alternating)

    @staticmethod
    def weights_of_pairs(pairs: Sequence[BlockPair], dtype: torch.dtype) -> list[PairWeights]:
        """See ``ops.ready_weights_of_pairs``."""
        tensors = []
        for pair in pairs:
            assert isinstance(pair, MambaPair)
            own = pair.in_proj_hKEd, pair.norm_weight_Kd, pair.norm_bias_Kd, pair.out_proj_dKE
            tensors.append((*own, *pair.mixer_params()))
        found = ops.ready_weights_of_pairs(tensors, dtype)
        return [PairWeights(weight, bias, out_proj, tuple(params)) for weight, bias, out_proj, *params in found]

    def mix_without_gate(self, x_BLKE: Tensor, work: Tensor, weights: tuple[Tensor, ...]) -> Tensor | None:
        """See ``ops.bimamba_ungated``."""
        return ops.bimamba_ungated(x_BLKE, work, *weights, alternating=self.alternating)
