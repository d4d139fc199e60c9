"""The model: tokens, stochastic depth, losses, reconstruction, other grids. Values are in ``test_golden``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba import ops
from ssamba.inference.model import SSAMBA
from ssamba.models import patches
from ssamba.models.config import Config
from ssamba.models.masking import frame_masks
from ssamba.models.patches import gather_patches
from ssamba.utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def features(small_config: Config, rng: torch.Generator) -> Tensor:
    return torch.randn(3, small_config.frames, 128, generator=rng)


@pytest.fixture
def masks(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    return frame_masks(3, (8, 8), 20, rng), frame_masks(3, (8, 8), 20, rng)


def test_initial_weights_come_from_the_generator_alone(small_config: Config) -> None:
    def drawn(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([p.flatten() for p in SSAMBA(small_config, heads=True, generator=generator).parameters()])

    torch.manual_seed(1)
    first = drawn(5)
    torch.manual_seed(2)
    assert torch.equal(first, drawn(5))
    assert not torch.equal(first, drawn(6))
    assert torch.equal(SSAMBA(small_config).positions, SSAMBA(small_config).positions)


def test_initial_weights_follow_the_description() -> None:
    model = SSAMBA(Config(width=192, depth=2), heads=True)
    assert model.heads is not None
    assert model.positions.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.positions.abs().max() < 0.15
    assert model.mask_embedding.std().item() == pytest.approx(192**-0.5, rel=0.2)
    assert model.patch_embed.weight.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.05)
    for head in (model.heads.discriminative, model.heads.generative):
        for i in (0, 2):
            assert (head[i].bias == 0).all()
            assert head[i].weight.std().item() == pytest.approx((3 * 192) ** -0.5, rel=0.05)


def test_tokens_are_cls_then_patches_with_positions(small_model: SSAMBA, features: Tensor) -> None:
    tokens = small_model.embed_patches(features)
    raw = patches.patchify(features, small_model.config)
    weight, bias = small_model.patch_embed.weight.flatten(1), small_model.patch_embed.bias
    torch.testing.assert_close(tokens[:, 1:], F.linear(raw, weight, bias) + small_model.positions[:, 1:])
    torch.testing.assert_close(tokens[:, 0], (small_model.cls_token + small_model.positions)[:, 0].expand(3, -1))


def test_masked_patches_are_replaced_before_positions_are_added(
    small_model: SSAMBA, features: Tensor, masks: tuple[Tensor, Tensor]
) -> None:
    plain, masked = small_model.embed_patches(features), small_model.embed_patches(features, masks[0])
    for clip in range(3):
        hidden = set(masks[0][clip].tolist())
        for patch in range(64):
            expected = plain[clip, 1 + patch]
            if patch in hidden:
                expected = (small_model.mask_embedding + small_model.positions[:, 1 + patch])[0, 0]
            torch.testing.assert_close(masked[clip, 1 + patch], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(masked[:, 0], plain[:, 0], rtol=0, atol=0)


@pytest.mark.parametrize(("frames", "columns"), [(16, 1), (31, 1), (64, 4), (127, 7), (128, 8), (300, 18)])
def test_other_lengths_take_resized_positions(
    small_model: SSAMBA, frames: int, columns: int, rng: torch.Generator
) -> None:
    features = torch.randn(2, frames, 128, generator=rng)
    tokens = small_model.encode(features)
    assert tokens.shape == (2, 1 + 8 * columns, 16)
    assert tokens.isfinite().all()
    whole = small_model.with_grid(frames=columns * 16)
    torch.testing.assert_close(tokens, whole.encode(features[:, : columns * 16]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(128, 128), (2, 15, 128), (2, 128, 64), (1, 1, 128, 128)])
def test_refuses_other_shapes(small_model: SSAMBA, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"give \(batch, frames, 128\) with at least 16 frames"):
        small_model.encode(torch.zeros(shape))


def test_any_float_type_goes_in(small_model: SSAMBA, features: Tensor) -> None:
    expected = small_model.encode(features)
    torch.testing.assert_close(small_model.encode(features.double()), expected)
    with ops.use_backend("reference"):
        double = small_model.double().encode(features)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-5)


def test_clips_of_a_batch_do_not_touch_each_other(small_model: SSAMBA, features: Tensor) -> None:
    together = small_model.encode(features)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], small_model.encode(features[i : i + 1]), rtol=1e-5, atol=1e-5)


class TestStochasticDepth:
    def test_rates_rise_linearly_from_the_third_block_on(self) -> None:
        model = SSAMBA(Config(width=8, depth=24, frames=16, state_size=1, drop_path=0.4))
        keep = model.draw_keep(20000, torch.Generator().manual_seed(0))
        assert keep is not None
        assert keep.shape == (25, 20000)
        dropped = (keep == 0).float().mean(dim=1)
        expected = torch.tensor([0.0, *torch.linspace(0, 0.4, 24).tolist()])
        assert (dropped - expected).abs().max() < 0.02
        assert (keep[:2] == 1).all()  # the first pair has nothing to drop
        assert dropped[2] > 0
        assert dropped[-1].item() == pytest.approx(0.4, abs=0.02)

    def test_the_expectation_is_kept(self) -> None:
        model = SSAMBA(Config(width=8, depth=8, frames=16, state_size=1, drop_path=0.5))
        keep = model.draw_keep(20000, torch.Generator().manual_seed(0))
        assert keep is not None
        assert (keep.mean(dim=1) - 1).abs().max() < 0.04
        assert torch.unique(keep[-1]).tolist() == [0.0, 2.0]

    def test_the_generator_alone_decides(self, small_model: SSAMBA) -> None:
        def drawn(seed: int) -> Tensor | None:
            return small_model.draw_keep(500, torch.Generator().manual_seed(seed))

        first, again, other = drawn(1), drawn(1), drawn(2)
        assert first is not None
        assert again is not None
        assert other is not None
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_none_without_a_rate(self, small_config: Config) -> None:
        assert SSAMBA(small_config.replace(drop_path=0.0)).draw_keep(4, torch.Generator()) is None


class TestLosses:
    def test_two_passes(self, small_model: SSAMBA, features: Tensor, masks: tuple[Tensor, Tensor]) -> None:
        both = small_model.losses(features, *masks)
        assert set(both) == {"loss", "nce", "accuracy", "mse"}
        assert both["loss"].item() == pytest.approx((both["nce"] + 10 * both["mse"]).item(), rel=1e-6)
        apart = small_model.losses(features, masks[0], objective="discriminative")
        assert set(apart) == {"loss", "nce", "accuracy"}
        assert apart["loss"].item() == apart["nce"].item() == pytest.approx(both["nce"].item(), rel=1e-6)
        drawn = small_model.losses(features, masks[0], masks[1], objective="generative")
        assert set(drawn) == {"loss", "mse"}
        assert drawn["loss"].item() == drawn["mse"].item() == pytest.approx(both["mse"].item(), rel=1e-6)

    def test_one_shared_pass(
        self,
        small_model: SSAMBA,
        features: Tensor,
        masks: tuple[Tensor, Tensor],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        same = small_model.losses(features, masks[0], masks[0])
        passes = []
        inner = SSAMBA.encode_tokens

        def counted(model: SSAMBA, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
            passes.append(1)
            return inner(model, tokens, keep)

        monkeypatch.setattr(SSAMBA, "encode_tokens", counted)
        shared = small_model.losses(features, masks[0])
        assert len(passes) == 1
        small_model.losses(features, *masks)
        assert len(passes) == 3
        for name, value in same.items():
            assert shared[name].item() == pytest.approx(value.item(), rel=1e-6), name

    def test_each_pass_has_its_own_stochastic_depth(
        self, small_model: SSAMBA, features: Tensor, masks: tuple[Tensor, Tensor]
    ) -> None:
        plain = small_model.losses(features, *masks)
        keep = torch.ones(5, 3)
        keep[2:] = 0
        first, second = (small_model.losses(features, *masks, keep=k) for k in ((keep, None), (None, keep)))
        assert first["nce"].item() != pytest.approx(plain["nce"].item(), rel=1e-5)
        assert first["mse"].item() == pytest.approx(plain["mse"].item(), rel=1e-6)
        assert second["nce"].item() == pytest.approx(plain["nce"].item(), rel=1e-6)
        assert second["mse"].item() != pytest.approx(plain["mse"].item(), rel=1e-5)

    def test_each_objective_trains_its_own_head(
        self, small_model: SSAMBA, features: Tensor, masks: tuple[Tensor, Tensor]
    ) -> None:
        assert small_model.heads is not None
        for objective, head, other in (
            ("discriminative", small_model.heads.discriminative, small_model.heads.generative),
            ("generative", small_model.heads.generative, small_model.heads.discriminative),
        ):
            small_model.zero_grad()
            small_model.losses(features, masks[0], objective=objective)["loss"].backward()
            assert all(p.grad is not None and p.grad.abs().max() > 0 for p in list(head.parameters())[:-1])
            assert all(p.grad is None for p in other.parameters())
            assert small_model.mask_embedding.grad is not None
            assert small_model.mask_embedding.grad.abs().max() > 0

    def test_targets_are_the_masked_raw_patches(self, features: Tensor, small_config: Config) -> None:
        mask = torch.tensor([[0, 9], [1, 2], [62, 63]])
        raw = patches.patchify(features, small_config)
        gathered = gather_patches(raw, mask)
        for clip in range(3):
            for j in range(2):
                f, t = divmod(int(mask[clip, j]), 8)
                tile = features[clip, 16 * t : 16 * t + 16, 16 * f : 16 * f + 16].T.reshape(-1)
                assert torch.equal(gathered[clip, j], tile)

    def test_refusals(self, small_model: SSAMBA, features: Tensor, masks: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(ConfigError, match="objective 'jiont': choose one of joint, discriminative, generative"):
            small_model.losses(features, masks[0], objective="jiont")
        bare = SSAMBA(small_model.config)
        with pytest.raises(ConfigError, match="no pretraining heads"):
            bare.losses(features, masks[0])
        with pytest.raises(ConfigError, match="no pretraining heads"):
            bare.reconstruct(features, masks[0])


class TestReconstruct:
    def test_only_masked_patches_change(
        self, small_model: SSAMBA, features: Tensor, masks: tuple[Tensor, Tensor]
    ) -> None:
        drawn = small_model.reconstruct(features, masks[1])
        assert drawn.shape == features.shape
        assert not drawn.requires_grad
        before, after = (patches.patchify(x, small_model.config) for x in (features, drawn))
        changed = (before != after).any(dim=2)
        expected = torch.zeros_like(changed).scatter_(1, masks[1], True)
        assert torch.equal(changed, expected)
        mse = F.mse_loss(gather_patches(after, masks[1]), gather_patches(before, masks[1]))
        loss = small_model.losses(features, masks[1], objective="generative")["mse"]
        assert mse.item() == pytest.approx(loss.item(), rel=1e-5)

    def test_frames_beyond_the_last_column_are_left_out(self, small_model: SSAMBA, rng: torch.Generator) -> None:
        features = torch.randn(1, 75, 128, generator=rng)
        drawn = small_model.reconstruct(features, torch.tensor([[0]]))
        assert drawn.shape == (1, 64, 128)
        assert torch.equal(drawn[:, 16:], features[:, 16:64])

    def test_overlapping_patches_are_refused(self, small_model: SSAMBA, features: Tensor) -> None:
        with pytest.raises(ConfigError, match="do not tile"):
            small_model.with_grid(stride=10).reconstruct(features, torch.tensor([[0]] * 3))


class TestWithGrid:
    def test_shares_nothing_and_keeps_all_but_positions(self, small_model: SSAMBA) -> None:
        other = small_model.train().with_grid(stride=10, frames=200)
        assert other.training
        assert not small_model.eval().with_grid(frames=64).training
        assert other.config == small_model.config.replace(stride_frequency=10, stride_time=10, frames=200)
        theirs = other.state_dict()
        for name, value in small_model.state_dict().items():
            if name != "positions":
                assert torch.equal(theirs[name], value), name
                assert theirs[name].data_ptr() != value.data_ptr(), name
        expected = patches.resize_positions(small_model.positions, (8, 8), (12, 19))
        assert torch.equal(other.positions, expected)
        assert all(p.requires_grad for p in other.parameters())

    def test_keeps_precision_and_headlessness(self, small_config: Config) -> None:
        other = SSAMBA(small_config).double().with_grid(frames=64)
        assert other.positions.dtype == torch.float64
        assert other.heads is None

    def test_without_changes_it_is_a_copy(self, small_model: SSAMBA, features: Tensor) -> None:
        copy = small_model.with_grid()
        assert copy.positions.data_ptr() != small_model.positions.data_ptr()
        assert torch.equal(copy.encode(features), small_model.encode(features))

    @pytest.mark.parametrize(("stride", "frames"), [(0, None), (-3, None), (None, 15), (None, 0)])
    def test_refuses_what_does_not_fit(self, small_model: SSAMBA, stride: int | None, frames: int | None) -> None:
        with pytest.raises(ConfigError):
            small_model.with_grid(stride, frames)
