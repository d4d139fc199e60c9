"""A pair of blocks: against the description with flips, its initial weights, its forms of inference."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from plain_reference import plain_encode
from torch import Tensor

from ssamba import ops
from ssamba.inference.model import SSAMBA
from ssamba.models import ssamba as ssamba_module
from ssamba.models.bimamba import MambaPair
from ssamba.models.block_pair import BlockPair, InferencePlan, ResidualState
from ssamba.models.config import Config
from ssamba.models.pretrained.official import doubling, to_official

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [
    {"width": 16, "depth": 4, "state_size": 4},
    {"width": 24, "depth": 2, "expand": 3, "conv_width": 2, "dt_rank": 5},
    {"width": 8, "depth": 6, "expand": 1, "conv_width": 1, "state_size": 1},
]


def uneven(config: Config, rng: torch.Generator) -> SSAMBA:
    """A model in float64 whose blocks and directions all differ."""
    model = SSAMBA(config, heads=True, generator=rng).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.2)
    return model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 2, 13])
def test_the_chain_is_the_description_with_flips(shape: dict[str, int], length: int, rng: torch.Generator) -> None:
    model = uneven(Config(**shape, frames=64), rng)
    tokens = torch.randn(2, length, model.config.width, generator=rng, dtype=torch.float64)
    with torch.no_grad(), ops.use_backend("reference"):
        ours = model.encode_tokens(tokens)
    torch.testing.assert_close(ours, plain_encode(to_official(model.state_dict()), tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_stochastic_depth_scales_what_joins_each_blocks_residual(shape: dict[str, int], rng: torch.Generator) -> None:
    model = uneven(Config(**shape, frames=64), rng)
    tokens = torch.randn(3, 7, model.config.width, generator=rng, dtype=torch.float64)
    keep = 2 * torch.rand(model.config.depth + 1, 3, generator=rng)
    keep[3:5, 1] = 0
    with torch.no_grad(), ops.use_backend("reference"):
        ours = model.encode_tokens(tokens, keep)
        whole = model.encode_tokens(tokens)
    expected = plain_encode(to_official(model.state_dict()), tokens, keep)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert (ours - whole).abs().max() > 1e-3


def test_keeping_everything_is_keeping_nothing_apart(small_model: SSAMBA, rng: torch.Generator) -> None:
    tokens = torch.randn(2, 9, 16, generator=rng)
    kept = small_model.encode_tokens(tokens, torch.ones(5, 2))
    torch.testing.assert_close(kept, small_model.encode_tokens(tokens), rtol=1e-5, atol=1e-5)


def test_both_directions_and_both_blocks_reach_every_token(small_model: SSAMBA, rng: torch.Generator) -> None:
    tokens = torch.randn(1, 9, 16, generator=rng, requires_grad=True)
    small_model.encode_tokens(tokens)[0, 4].sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad[0].abs().amax(dim=1) > 0).all()


def test_initial_weights_follow_the_description(rng: torch.Generator) -> None:
    config = Config(width=64, depth=24)
    pair = MambaPair(config)
    pair.reset_parameters(rng)
    states = torch.log(torch.arange(1.0, 17.0))
    assert torch.equal(pair.A_log_RKEN.detach(), states.expand(2, 2, 128, 16))
    assert (pair.D_RKE == 1).all()
    assert (pair.norm_weight_Kd == 1).all()
    assert (pair.norm_bias_Kd == 0).all()
    dt = F.softplus(pair.dt_bias_RKE)
    assert 0.001 * 0.999 < dt.min() < 0.0015
    assert 0.07 < dt.max() < 0.1 * 1.001
    assert dt.log().mean().item() == pytest.approx((math.log(0.001) + math.log(0.1)) / 2, abs=0.3)
    bounds = {
        "in_proj_hKEd": 64**-0.5,
        "x_proj_RKPE": 128**-0.5,
        "dt_proj_RKEr": 4**-0.5,
        "conv_weight_RKEW": 4**-0.5,
        "conv_bias_RKE": 4**-0.5,
        "out_proj_dKE": 128**-0.5 / 24**0.5,
    }
    for name, bound in bounds.items():
        weight = getattr(pair, name)
        assert 0.97 * bound < weight.abs().max() <= bound, name
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name


def test_a_step_by_parts_is_the_whole_step(small_model: SSAMBA) -> None:
    tokens = torch.randn(3, 9, small_model.config.width)
    with torch.no_grad():
        whole = small_model.encode_tokens(tokens)
        small_model.plan = InferencePlan(part_tokens=9, part_tokens_cpu=9)
        given = tokens.clone()
        torch.testing.assert_close(small_model.encode_tokens(given), whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(given, tokens)


@pytest.mark.parametrize("part_tokens", [9, 1000])
def test_a_deferred_gate_changes_nothing(small_model: SSAMBA, part_tokens: int) -> None:
    tokens = torch.randn(3, 9, small_model.config.width)
    with torch.no_grad():
        whole = small_model.encode_tokens(tokens)
        small_model.plan = InferencePlan(part_tokens=9, defer_gate_min_tokens=20, defer_gate_part_tokens=part_tokens)
        given = tokens.clone()
        with ops.use_backend("reference"):
            torch.testing.assert_close(small_model.encode_tokens(given), whole, rtol=1e-5, atol=1e-5)
        assert torch.equal(given, tokens)
        with ops.use_backend("cpu"):  # has no form without a gate: by parts
            assert not small_model.pairs[0].supports_deferred_gate(tokens)
            torch.testing.assert_close(small_model.encode_tokens(given), whole, rtol=1e-5, atol=1e-5)


def test_the_plan_says_from_where_the_gate_is_deferred() -> None:
    plan = InferencePlan()
    assert not plan.defers_gate(16383, 192)
    assert plan.defers_gate(16384, 192)
    assert not plan.defers_gate(65535, 193)
    assert plan.defers_gate(65536, 193)


@pytest.mark.parametrize(("own", "scale"), [(False, 2), (True, 2), (True, 1)])
def test_a_deferred_gate_does_what_the_next_pair_begins_with(own: bool, scale: int, rng: torch.Generator) -> None:
    model = uneven(Config(width=16, depth=8, frames=64, state_size=4, residual_scale=scale), rng)
    tokens = torch.randn(3, 9, 16, generator=rng, dtype=torch.float64)
    expected: list[Tensor] = []
    layers: list[Tensor] = []
    normed: list[bool] = []
    for pair in model.pairs:
        pair.register_forward_hook(lambda _pair, _given, state: normed.append(state.normed))
    with torch.no_grad(), ops.use_backend("reference"):
        model.encode_tokens(tokens, layers=expected)
        assert normed == [False] * 4
        normed.clear()
        model.plan = InferencePlan(defer_gate_min_tokens=20)
        given = tokens.clone()
        model.encode_tokens(given, layers=layers, own=own)
        # The caller's tokens are no stream to write over; the final norm is not the last pair's to do.
        assert normed == [own, True, True, False]
        assert own or torch.equal(given, tokens)
        # A part of the stream cannot be added to in place: it does not lie in one piece.
        apart = torch.cat([tokens, tokens], dim=2)[:, :, :16]
        torch.testing.assert_close(model.encode_tokens(apart, own=own), expected[-1], rtol=1e-9, atol=1e-9)
        # Nor is x added before stochastic depth has scaled it.
        normed.clear()
        keep = 2 * torch.rand(8 + 1, 3, generator=rng, dtype=torch.float64)
        deferred = model.encode_tokens(tokens.clone(), keep, own=own)
        assert normed == [False] * 4
        model.plan = InferencePlan()
        torch.testing.assert_close(deferred, model.encode_tokens(tokens, keep), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layers, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("refusing", [None, 0, 2, 3])
def test_a_deferred_gate_makes_the_next_pairs_x(
    refusing: int | None, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over this pair's; a pair that can not go on from there, because it has no form without a gate, does so anyway."""
    model = uneven(Config(width=16, depth=8, frames=64, state_size=4), rng)
    tokens = torch.randn(3, 9, 16, generator=rng, dtype=torch.float64)
    made: list[int | None] = []
    for pair in model.pairs:
        pair.register_forward_hook(
            lambda _pair, _given, state: made.append(state.next_x_BLKE.data_ptr() if state.normed else None)
        )
    with torch.no_grad(), ops.use_backend("reference"):
        expected = model.encode_tokens(tokens)
        model.plan = InferencePlan(defer_gate_min_tokens=20)
        if refusing is not None:
            monkeypatch.setattr(model.pairs[refusing], "mix_without_gate", lambda *_: None)
        made.clear()
        found = model.encode_tokens(tokens.clone(), own=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert [x is not None for x in made] == [i != refusing for i in range(3)] + [False]
    if refusing is None:
        assert len(set(made[:3])) == 1


class CumulativeMeanPair(BlockPair):
    """A mixer of one parameter, to show what another one has to bring along."""

    def _make_mixer(self, config: Config) -> None:
        self.weight_KE = torch.nn.Parameter(torch.empty(2, config.inner))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)

    def mix(self, xz_BLhKE: Tensor) -> Tensor:
        x_BLKE, z_BLKE = xz_BLhKE.unbind(2)
        steps = torch.arange(1, x_BLKE.shape[1] + 1)[:, None, None]
        return self.weight_KE * x_BLKE.cumsum(1) / steps * F.silu(z_BLKE)


def test_another_mixer_is_one_class_and_one_row(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    monkeypatch.setitem(ssamba_module.MIXERS, "ssamba", CumulativeMeanPair)
    model = SSAMBA(Config(width=16, depth=4, frames=64), generator=rng)
    assert "pairs.0.weight_KE" in model.state_dict()
    tokens = torch.randn(3, 9, 16, generator=rng)
    trained = model.encode_tokens(tokens)
    trained.sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if name.startswith("pairs"))
    with torch.no_grad():
        # which it has no form for: by parts
        model.plan = InferencePlan(part_tokens=9, part_tokens_cpu=9, defer_gate_min_tokens=1)
        torch.testing.assert_close(model.encode_tokens(tokens), trained, rtol=1e-5, atol=1e-5)


def test_one_direction_sees_nothing_that_comes_later() -> None:
    config = Config(width=16, depth=4, frames=64, directions=1)
    model = SSAMBA(config).eval()
    features = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(1))
    tokens = model.embed_patches(features)
    changed = tokens.clone()
    changed[:, 20:] *= -1.0
    with torch.no_grad():
        before, after = model.encode_tokens(tokens), model.encode_tokens(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=1e-6)
    assert (before[:, 20:] - after[:, 20:]).abs().amax(dim=(0, 2)).min() > 1e-3
    both = SSAMBA(config.replace(directions=2)).eval()
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in both.parameters())
    with torch.no_grad():
        assert not torch.allclose(both.encode_tokens(tokens)[:, 0], both.encode_tokens(changed)[:, 0])


def test_without_doubling_the_stream_is_a_plain_sum(small_model: SSAMBA) -> None:
    """``residual_scale`` 1: each pair adds its output; with weights scaled up it is the doubling model."""
    model = SSAMBA(small_model.config.replace(residual_scale=1), heads=True).eval()
    model.load_state_dict(small_model.state_dict())
    tokens = torch.randn(2, 13, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        stream = tokens
        for pair in model.pairs:
            assert isinstance(pair, BlockPair)
            stream = stream + pair(ResidualState(stream)).x_BLd
        expected = model.norm(model.norm(stream))
        layers: list[Tensor] = []
        found = model.encode_tokens(tokens, layers=layers)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            layers[0], tokens + model.pairs[0](ResidualState(tokens)).x_BLd, rtol=1e-5, atol=1e-5
        )
        whole = torch.ones(model.config.depth + 1, 2)
        torch.testing.assert_close(model.encode_tokens(tokens, whole), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(small_model.encode_tokens(tokens), expected, atol=1e-2)
        small_model.load_state_dict(doubling(model.state_dict()))
        torch.testing.assert_close(small_model.encode_tokens(tokens), expected, rtol=1e-3, atol=1e-3)
