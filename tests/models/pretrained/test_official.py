"""Official checkpoints: strict both ways, and nothing in a file is executed."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_reference import plain_encode
from torch import Tensor

from ssamba import ops
from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import Description, build
from ssamba.models.pretrained.official import SSAMBA_EXTRAS, from_official, to_official
from ssamba.models.pretrained.pth_file import read_pth
from ssamba.utils.errors import CheckpointError

State = dict[str, Tensor]

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {
    "plain": {"width": 32, "depth": 4, "frames": 64},
    "odd": {"width": 24, "depth": 2, "expand": 3, "conv_width": 3, "state_size": 5, "dt_rank": 4, "frames": 32},
    "frames": {"width": 16, "depth": 2, "frames": 40, "patch_frequency": 128, "patch_time": 2, "stride_frequency": 128}
    | {"stride_time": 2},
}


def bare(state: State) -> State:
    return {k.removeprefix("module."): v for k, v in state.items()}


def without_heads(state: State) -> State:
    return {k: v for k, v in state.items() if "predlayer" not in k}


def refusal(state: State) -> str:
    with pytest.raises(CheckpointError) as caught:
        from_official(state, "some/file.pth")
    message = str(caught.value)
    assert message.startswith("some/file.pth: ")
    assert "\n" not in message
    return message


def test_the_configuration_is_read_from_shapes(official: State) -> None:
    config, tensors = from_official(official)
    assert config == Config(width=32, depth=4, frames=1024)
    assert set(tensors) == set(SSAMBA(config, heads=True).state_dict())


def test_prefix_heads_and_extras_are_optional(official: State) -> None:
    config, tensors = from_official(official)
    for state in (bare(official), {k: v for k, v in official.items() if k.split("module.")[1] not in SSAMBA_EXTRAS}):
        again_config, again = from_official(state)
        assert again_config == config
        assert all(torch.equal(again[k], v) for k, v in tensors.items())
    config_bare, encoder = from_official(without_heads(official))
    assert config_bare == config
    assert set(encoder) == {k for k in tensors if not k.startswith("heads.")}
    assert all(torch.equal(tensors[k], v) for k, v in encoder.items())


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("heads", [True, False])
def test_round_trip_from_the_official_side_is_exact(official: State, prefix: str, heads: bool) -> None:
    state = official if heads else without_heads(official)
    back = to_official(from_official(state)[1], prefix=prefix)
    expected = {prefix + k: v for k, v in bare(state).items() if k not in SSAMBA_EXTRAS}
    assert set(back) == set(expected)
    for name, tensor in expected.items():
        assert back[name].shape == tensor.shape, name
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("name", SHAPES)
def test_round_trip_from_our_side_is_exact(name: str, rng: torch.Generator) -> None:
    config = Config(**SHAPES[name])
    model = SSAMBA(config, heads=True)
    tensors = {k: torch.randn(v.shape, generator=rng) for k, v in model.state_dict().items()}
    state = to_official(tensors)
    if name == "frames":
        state["module.p_input_tdim"] = torch.tensor(40)
    again_config, again = from_official(state)
    assert again_config == config
    assert set(again) == set(tensors)
    assert all(torch.equal(again[k], v) for k, v in tensors.items())


def test_tensors_share_no_memory_with_the_file(official: State) -> None:
    before = {k: v.clone() for k, v in official.items()}
    for tensor in from_official(official)[1].values():
        tensor.zero_()
    assert all(torch.equal(official[k], v) for k, v in before.items())


@pytest.mark.parametrize("depth", [2, 4])
def test_odd_blocks_exchange_their_directions(depth: int, official: State, rng: torch.Generator) -> None:
    """The official weights, run word for word with flips, and the stacked ones must agree; without the exchange not."""
    state = {k: v for k, v in bare(official).items() if not k.startswith("v.layers.") or int(k.split(".")[2]) < depth}
    tokens = torch.randn(2, 11, 32, generator=rng)
    expected = plain_encode(state, tokens).float()

    def ours(state: State) -> Tensor:
        with torch.no_grad(), ops.use_backend("reference"):
            config, tensors = from_official(state)
            return build(Description(config), tensors).encode_tokens(tokens)

    torch.testing.assert_close(ours(state), expected, rtol=1e-4, atol=1e-5)
    # What a reading without the exchange would make of it: odd blocks' two directions under each other's names.
    exchanged = dict(state)
    for key in state:
        if re.match(r"v\.layers\.\d*[13579]\.mixer\.", key) and re.search(r"_b(\.|$)", key):
            plain = re.sub(r"_b(\.|$)", r"\1", key)
            exchanged[key], exchanged[plain] = state[plain], state[key]
    assert (ours(exchanged) - expected).abs().max() > 1e-3


def test_every_missing_key_is_named(official: State) -> None:
    for key in bare(official):
        if key in SSAMBA_EXTRAS:
            continue
        state = bare(official)
        del state[key]
        assert key in refusal(state)


def test_unexpected_keys_are_named(official: State) -> None:
    assert "unexpected v.stray" in refusal(official | {"module.v.stray": torch.zeros(1)})
    assert "unexpected mlp_head.1.weight" in refusal(official | {"module.mlp_head.1.weight": torch.zeros(1)})
    extra = official["module.v.layers.0.norm.weight"]
    assert "missing v.layers.4.*" in refusal(official | {"module.v.layers.999999999.norm.weight": extra})


@pytest.mark.parametrize(
    "key",
    [
        "v.cls_token",
        "mask_embed",
        "v.norm_f.bias",
        "v.layers.0.mixer.in_proj.weight",
        "v.layers.3.mixer.A_b_log",
        "v.layers.2.mixer.conv1d.weight",
        "v.layers.1.mixer.dt_proj_b.weight",
        "v.patch_embed.proj.bias",
        "cpredlayer.2.weight",
        "gpredlayer.0.bias",
    ],
)
def test_wrong_shapes_are_named(official: State, key: str) -> None:
    wrong = torch.zeros(3, *official["module." + key].shape[1:])
    message = refusal(official | {"module." + key: wrong})
    assert f"{key} has shape {tuple(wrong.shape)}, expected {tuple(official['module.' + key].shape)}" in message


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("v.pos_embed", torch.zeros(1, 500, 32), "499 positions do not fit the grid 8 x 64"),
        ("v.pos_embed", torch.zeros(513, 32), "shapes of v.pos_embed"),
        ("v.patch_embed.proj.weight", torch.zeros(0, 1, 16, 16), "shapes of"),
        ("v.patch_embed.proj.weight", torch.zeros(32, 1, 0, 16), "shapes of"),
        ("v.layers.0.mixer.conv1d.weight", torch.tensor(1.0), "shapes of"),
        ("v.layers.0.mixer.A_log", torch.zeros(64, 0), "shapes of"),
        ("p_input_fdim", torch.tensor(0), "mel_bins is 0"),
        ("p_input_fdim", torch.tensor([128, 128]), "p_input_fdim is no whole number"),
        ("p_input_tdim", torch.tensor(float("nan")), "p_input_tdim is no whole number"),
        ("p_input_tdim", torch.tensor(512), "512 positions do not fit the grid 8 x 32"),
    ],
)
def test_shapes_that_give_no_configuration(official: State, key: str, value: Tensor, reason: str) -> None:
    assert reason in refusal(official | {"module." + key: value})


def test_layers_that_come_in_no_pairs(official: State) -> None:
    assert "depth is 3" in refusal({k: v for k, v in official.items() if ".layers.3." not in k})
    assert "missing v.layers.2.*" in refusal({k: v for k, v in official.items() if ".layers.2." not in k})


def test_strangers_are_told_apart() -> None:
    ssast = {"module.v.blocks.0.attn.qkv.weight": torch.zeros(96, 32), "module.v.cls_token": torch.zeros(1, 1, 32)}
    assert "is not an SSAST checkpoint, v.patch_embed.proj.weight" in refusal(ssast)
    assert "is not an SSAMBA checkpoint, it lacks v.pos_embed" in refusal({"fc.weight": torch.zeros(2, 2)})
    assert "is not an SSAMBA checkpoint" in refusal({})


class Exploit:
    """Unpickling this touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle2", "pickle5", "nested"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, official: State, form: str) -> None:
    trap, path = tmp_path / "executed", tmp_path / "evil.pth"
    content: dict[str, Any] = {**official, "module.v.cls_token": Exploit(trap)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(Exploit(trap), protocol=int(form[-1])))
    elif form == "nested":
        torch.save([{"model": content}], path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match="is not a plain file of tensors and was not loaded") as caught:
        read_pth(path)
    assert not trap.exists()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "mkdir" in message or form == "pickle5"
    assert "weights_only" not in message  # torch's own text advises to load the file unsafely
    assert "\n" not in message


def test_the_trap_does_spring(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Exploit(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no archive", b"\x80\x02}q\x00."])
def test_files_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file\.pth: ") as caught:
        read_pth(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": 1}, {3: torch.zeros(2)}, {"a": {"b": torch.zeros(1)}}])
def test_plain_files_that_hold_no_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="holds something else than a state dict of tensors"):
        read_pth(tmp_path / "file.pth")


def test_damaged_and_missing_files(tmp_path: Path, official_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(official_path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="was not loaded"):
        read_pth(tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match="is missing"):
        read_pth(tmp_path / "none.pth")


def test_what_is_written_is_read_again(tmp_path: Path, official: State) -> None:
    config, tensors = from_official(official)
    torch.save(to_official(tensors), tmp_path / "out.pth")
    again_config, again = from_official(read_pth(tmp_path / "out.pth"))
    assert again_config == config
    assert all(torch.equal(again[k], v) for k, v in tensors.items())
