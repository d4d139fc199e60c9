"""The pretraining decoder: hidden patches never reach the encoder."""

from pathlib import Path

import pytest
import torch

import ssamba
from ssamba.models import masking, patches
from ssamba.models.config import Config
from ssamba.models.decoder import visible_patches
from ssamba.models.encoder import Encoder
from ssamba.models.masking import MaskedForward
from ssamba.models.patches import gather_patches
from ssamba.models.pretrained.model_dir import save_model
from ssamba.models.registry import make_encoder
from ssamba.utils.errors import ConfigError

CONFIG = Config(width=32, depth=4, frames=64, decoder_depth=2, drop_path=0.0)
P = 32


@pytest.fixture(params=["ssamba", "ssast"])
def model(request: pytest.FixtureRequest) -> Encoder:
    generator = torch.Generator().manual_seed(3)
    return make_encoder(CONFIG.replace(encoder=request.param), heads=True, generator=generator)


def features(batch: int = 3, frames: int = 64) -> torch.Tensor:
    return torch.randn(batch, frames, 128, generator=torch.Generator().manual_seed(5))


def masks(batch: int = 3, count: int = 20, columns: int = 4) -> torch.Tensor:
    return masking.cluster_masks(batch, (8, columns), count, torch.Generator().manual_seed(1))


def test_visible_patches_are_those_that_the_mask_leaves() -> None:
    mask = masks(count=11)
    visible = visible_patches(mask, P)
    for masked, left in zip(mask.tolist(), visible.tolist(), strict=True):
        assert left == sorted(set(range(P)) - set(masked))


def test_the_encoder_reads_the_visible_patches_in_order_and_no_other(model: Encoder) -> None:
    x, mask = features(), masks()
    seen: list[MaskedForward] = []
    model.losses(x, mask, seen=seen)
    tokens = model.embed_patches(x)
    front = tokens[:, : model.prefix_tokens]
    left = gather_patches(tokens[:, model.prefix_tokens :], visible_patches(mask, P))
    expected = model.encode_tokens(torch.cat([front, left], dim=1))[:, model.prefix_tokens :]
    torch.testing.assert_close(seen[0].encoded_BQd, expected)
    assert seen[0].masked_BMd.shape == (3, 20, 32)

    hidden = torch.zeros(3, P, 1).scatter(1, mask[..., None], 1.0).expand(-1, -1, 256)
    other = x + patches.unpatchify(hidden, CONFIG, 4)
    again: list[MaskedForward] = []
    changed = model.losses(other, mask, seen=again)
    torch.testing.assert_close(again[0].encoded_BQd, seen[0].encoded_BQd, rtol=0, atol=0)
    torch.testing.assert_close(again[0].masked_BMd, seen[0].masked_BMd, rtol=0, atol=0)
    assert changed["loss"] != model.losses(x, mask)["loss"]  # the targets did change


def test_places_reach_the_heads(model: Encoder) -> None:
    """Two hidden patches differ in their place alone, and so must what the heads read."""
    seen: list[MaskedForward] = []
    model.losses(features(), masks(), seen=seen)
    first, second = seen[0].masked_BMd[:, 0], seen[0].masked_BMd[:, 1]
    assert (first - second).norm() > 1e-3 * first.norm()


@pytest.mark.parametrize("objective", ["joint", "discriminative", "generative"])
def test_gradients_reach_every_weight(model: Encoder, objective: str) -> None:
    model.losses(features(), masks(), objective=objective)["loss"].backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    other = {"discriminative": "heads.generative", "generative": "heads.discriminative"}.get(objective, "none")
    # The discriminative head's last bias is no part of a comparison between patches of one clip.
    assert {n for n in idle if not n.startswith(other)} <= {"heads.discriminative.2.bias"}


def test_two_passes_with_two_masks(model: Encoder) -> None:
    one, two = masks(), masks(count=9)
    out = model.losses(features(), one, two)
    assert out["nce"] == model.losses(features(), one, objective="discriminative")["nce"]
    assert out["mse"] == model.losses(features(), two, objective="generative")["mse"]


def test_a_narrower_grid_and_another_one(model: Encoder) -> None:
    out = model.losses(features(frames=48), masks(columns=3, count=10))
    assert torch.isfinite(out["loss"])
    longer = model.with_grid(frames=96)
    assert longer.decoder is not None
    assert longer.decoder.chain.positions.shape[1] == model.prefix_tokens + 8 * 6
    assert torch.isfinite(longer.losses(features(frames=96), masks(columns=6))["loss"])


def test_stored_and_loaded_strictly(model: Encoder, tmp_path: Path) -> None:
    save_model(tmp_path / "m", model)
    full, bare = ssamba.load(tmp_path / "m", device="cpu", heads=True), ssamba.load(tmp_path / "m", device="cpu")
    assert bare.decoder is None
    torch.testing.assert_close(
        full.losses(features(), masks())["loss"], model.eval().losses(features(), masks())["loss"]
    )
    torch.testing.assert_close(bare.encode(features()), full.encode(features()))
    drawn = full.reconstruct(features(), masks())
    assert drawn.shape == (3, 64, 128)
    shown = patches.patchify(drawn, CONFIG).gather(1, visible_patches(masks(), P)[..., None].expand(-1, -1, 256))
    expected = patches.patchify(features(), CONFIG).gather(
        1, visible_patches(masks(), P)[..., None].expand(-1, -1, 256)
    )
    torch.testing.assert_close(shown, expected)


def test_without_a_decoder_nothing_changes() -> None:
    plain = make_encoder(CONFIG.replace(decoder_depth=0), heads=True, generator=torch.Generator().manual_seed(3))
    assert not any(name.startswith("decoder") for name in plain.state_dict())
    seen: list[MaskedForward] = []
    plain.losses(features(), masks(), seen=seen)
    assert seen[0].encoded_BQd.shape == (3, P, 32)


def test_depths_that_no_decoder_can_have() -> None:
    with pytest.raises(ConfigError, match="decoder_depth is 3: blocks come in pairs"):
        CONFIG.replace(decoder_depth=3)
    assert CONFIG.replace(encoder="ssast", decoder_depth=3).decoder().depth == 3
    with pytest.raises(ConfigError, match="decoder_depth is -2"):
        CONFIG.replace(decoder_depth=-2)
    with pytest.raises(ConfigError, match="decoder_depth is 1002: give a number of at most 1000"):
        CONFIG.replace(decoder_depth=1002)
