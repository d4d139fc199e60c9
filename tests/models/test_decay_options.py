"""Models with tied decays and other scans: the configuration, its files, the way to and from official checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ssamba
from ssamba import SSAMBA, Config, ops
from ssamba.models.pretrained.convert import convert
from ssamba.models.pretrained.describe import as_text, describe
from ssamba.models.pretrained.load import check_shape
from ssamba.models.pretrained.model_dir import read_config, read_model, save_model
from ssamba.models.pretrained.official import to_official
from ssamba.models.pretrained.pth_file import read_pth
from ssamba.utils.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"width": 16, "depth": 4, "frames": 64, "state_size": 4}
FORMS = [(d, s) for d in ("free", "tied") for s in ("both", "alternating", "forward")]


def uneven(rng: torch.Generator, **values: object) -> SSAMBA:
    """A model whose blocks, directions and rates all differ."""
    model = SSAMBA(Config(**{**SMALL, **values}), heads=True, generator=rng).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.2)
    return model


def tokens_of(model: SSAMBA, rng: torch.Generator, length: int = 13) -> Tensor:
    return torch.randn(2, length, model.config.width, generator=rng)


# ---- the configuration


def test_one_of_scan_and_directions_says_the_other() -> None:
    assert (Config().scan, Config().directions) == ("both", 2)
    assert (Config(directions=1).scan, Config(scan="forward").directions) == ("forward", 1)
    assert Config(directions=1) == Config(scan="forward")
    alternating = Config(scan="alternating")
    assert alternating.directions == 1
    assert alternating != Config(directions=1)
    assert alternating.replace(width=64).scan == "alternating"
    assert alternating.replace(scan="both") == alternating.replace(directions=2) == Config()
    assert alternating.replace(directions=1) == Config().replace(scan="forward")
    assert alternating.replace(decoder_depth=2).decoder().scan == "alternating"


@pytest.mark.parametrize(("decay", "scan"), FORMS)
def test_config_json_there_and_back(decay: str, scan: str) -> None:
    config = Config(decay=decay, scan=scan)
    values = json.loads(json.dumps(config.to_dict()))
    assert Config.from_dict(values) == config
    assert ("decay" in values) == (decay == "tied")
    assert ("scan" in values) == (scan == "alternating")  # what version 0.2 reads stays as it was


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decay": "loose"}, "decay is 'loose': give free or tied"),
        ({"scan": 2}, "scan is 2: give both or alternating or forward"),
        ({"scan": "alternating", "encoder": "ssast"}, "SSAMBA's"),
        ({"decay": "tied", "encoder": "ssast"}, "SSAMBA's"),
    ],
)
def test_what_no_model_has(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**values)  # type: ignore[arg-type]


# ---- the model


def test_a_new_tied_model_is_the_new_free_one() -> None:
    """The same draws, and A = -(n + 1) in both."""
    free, tied = (SSAMBA(Config(**SMALL, decay=decay), heads=True).eval() for decay in ("free", "tied"))  # type: ignore[arg-type]
    state, other = free.state_dict(), tied.state_dict()
    for name, value in state.items():
        if name.endswith("A_log_RKEN"):
            assert other[name].shape == (*value.shape[:-1], 1)
            assert not other[name].any()
        else:
            assert torch.equal(other[name], value), name
    features = torch.randn(2, 64, 128)
    with torch.no_grad():
        torch.testing.assert_close(tied(features), free(features), rtol=0, atol=1e-5)


def test_alternating_blocks_are_those_of_two_directions_with_the_other_one_silent(rng: torch.Generator) -> None:
    """A pair's block k with direction k % 2 alone is a block in both directions whose other scan gives 0."""
    one = uneven(rng, scan="alternating")
    both = SSAMBA(one.config.replace(scan="both"), heads=True).eval()
    state = one.state_dict()
    for name, value in both.state_dict().items():
        if value.shape == state[name].shape:
            continue
        wide = state[name].expand_as(value).clone()
        for k in range(2):
            other = 1 - k
            if name.endswith(("D_RKE", "x_proj_RKPE")):
                wide[other, k] = 0
        state[name] = wide
    for pair in range(2):  # the mean over two directions, one of them silent
        state[f"pairs.{pair}.out_proj_dKE"] = 2 * state[f"pairs.{pair}.out_proj_dKE"]
    both.load_state_dict(state)
    tokens = tokens_of(one, rng)
    with torch.no_grad(), ops.use_backend("reference"):
        torch.testing.assert_close(both.encode_tokens(tokens), one.encode_tokens(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan", ["both", "alternating"])
def test_every_token_reaches_every_other(scan: str, rng: torch.Generator) -> None:
    model = uneven(rng, scan=scan, decay="tied", depth=2)
    tokens = tokens_of(model, rng, 9)[:1].requires_grad_()
    model.encode_tokens(tokens)[0, 4].sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad[0].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize(("decay", "scan"), FORMS)
@torch.no_grad()
def test_a_saved_model_comes_back(decay: str, scan: str, rng: torch.Generator, tmp_path: Path) -> None:
    model = uneven(rng, decay=decay, scan=scan, decoder_depth=2)
    save_model(tmp_path / "m", model)
    features = torch.randn(1, 64, 128)
    assert torch.equal(ssamba.load(tmp_path / "m", "cpu")(features), model(features))
    text = as_text(describe(tmp_path / "m"))
    assert (", tied decays" in text) == (decay == "tied")
    assert (f", {scan} scans" in text) == (scan != "both")
    for name, value in (("decay", "tied"), ("scan", "alternating")):
        if getattr(model.config, name) != value:
            with pytest.raises(
                ConfigError, match=f"has {name} {getattr(model.config, name)}, the command says {value}"
            ):
                check_shape(tmp_path / "m", {name: value})


# ---- official checkpoints


@pytest.mark.parametrize("scale", [2, 1])
def test_tied_to_official_and_back_is_exact(scale: int, rng: torch.Generator, tmp_path: Path) -> None:
    model = uneven(rng, decay="tied", residual_scale=scale)
    save_model(tmp_path / "m", model)
    lines = convert(tmp_path / "m", tmp_path / "m.pth")
    assert any("--decay tied" in line for line in lines)
    features = torch.randn(1, 64, 128)
    free = ssamba.load(tmp_path / "m.pth", "cpu")
    assert free.config.decay == "free"
    with torch.no_grad():
        close = 2e-5 if scale == 2 else 1e-3  # the norm's epsilon weighs less in a stream that doubles
        torch.testing.assert_close(free(features), model(features), rtol=0, atol=close)
    rates = -read_pth(tmp_path / "m.pth")["module.v.layers.1.mixer.A_log"].exp()
    torch.testing.assert_close(rates, rates[:, :1] * torch.arange(1.0, 5.0))
    convert(tmp_path / "m.pth", tmp_path / "back", decay="tied")
    assert read_config(tmp_path / "back").config.decay == "tied"
    _, back = read_model(tmp_path / "back")
    for name, value in model.state_dict().items():
        if scale == 2 or not name.endswith("out_proj_dKE"):
            assert torch.equal(back[name], value), name
    convert(tmp_path / "m.pth", tmp_path / "half", half=True, decay="tied")
    assert read_config(tmp_path / "half").config.decay == "tied"


def test_free_decays_are_no_tied_ones(rng: torch.Generator, tmp_path: Path) -> None:
    torch.save(to_official(uneven(rng).state_dict()), tmp_path / "free.pth")
    with pytest.raises(
        CheckpointError, match=r"free.pth: its decays are no tied ones, those of pairs.0.A_log"
    ) as error:
        convert(tmp_path / "free.pth", tmp_path / "tied", decay="tied")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tied").exists()
    save_model(tmp_path / "m", uneven(rng))
    with pytest.raises(ConfigError, match="--decay is for official files"):
        convert(tmp_path / "m", tmp_path / "m.pth", decay="tied")


@pytest.mark.parametrize("scan", ["alternating", "forward"])
def test_one_scan_a_block_is_refused_by_the_official_form(scan: str, rng: torch.Generator, tmp_path: Path) -> None:
    save_model(tmp_path / "m", uneven(rng, scan=scan))
    with pytest.raises(CheckpointError, match="the official form has two directions, this model one") as error:
        convert(tmp_path / "m", tmp_path / "m.pth")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "m.pth").exists()
