"""Model directories from elsewhere: an edited config.json, numbers that are none, sizes that take all memory."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peak_memory import peak_of_this_process
from torch import Tensor

import ssamba
from ssamba.audio.front_end import FrontEnd
from ssamba.cli import main
from ssamba.inference.model import SSAMBA, make_encoder
from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.models.pretrained.config_digest import OWN_KEYS, digest_of_config
from ssamba.models.pretrained.model_dir import load_tensors, read_config, save_model
from ssamba.utils.errors import CheckpointError, ConfigError, SsambaError
from ssamba.utils.tensor_file import write_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
Values = dict[str, Any]
TASK = Classification(("cat", "dog", "rain"))


@pytest.fixture
def folder(tmp_path: Path, small_config: Config) -> Path:
    """A fine-tuned model."""
    save_model(tmp_path / "run", make_encoder(small_config, classification=TASK))
    return tmp_path / "run"


def rewrite(folder: Path, change: Callable[[Values], Any], digest: bool = False) -> None:
    """Edit config.json; without ``digest`` as one who removes that line on purpose."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    if not digest:
        values.pop("digest", None)
    change(values)
    path.write_text(json.dumps(values))


def refused(folder: Path, reason: str) -> str:
    begin = time.monotonic()
    with pytest.raises(SsambaError, match=reason) as caught:
        ssamba.load(folder, "cpu")
    message = str(caught.value)
    assert time.monotonic() - begin < 5
    assert message.startswith(f"{folder}/")
    assert message.isprintable()
    assert len(message) < 500
    if "config.json: " in message:  # info reads no weights
        assert main.main(["info", str(folder)]) == 2
    return message


# ---- the digest of config.json

EDITS: dict[str, Callable[[Values], Any]] = {
    "mean": lambda v: v["config"].update(mean=v["config"]["mean"] + 1e-12),
    "std": lambda v: v["config"].update(std=v["config"]["std"] * 2),
    "a whole number as a fraction": lambda v: v["config"].update(width=16.0),
    "a value left out": lambda v: v["config"].pop("drop_path"),
    "heads": lambda v: v.update(heads=True),
    "classes in another order": lambda v: v["classification"]["classes"].reverse(),
    "another class": lambda v: v["classification"]["classes"].append("bird"),
    "loss": lambda v: v["classification"].update(loss="bce"),
    "no classifier": lambda v: v.pop("classification"),
    "encoder": lambda v: v.update(encoder="ssast"),
    "format": lambda v: v.update(format=2),
    "digest of another": lambda v: v.update(digest="0" * 64),
    "digest cut": lambda v: v.update(digest=v["digest"][:-1]),
    "digest in capitals": lambda v: v.update(digest=v["digest"].upper()),
    "digest no text": lambda v: v.update(digest=[1]),
    "digest empty": lambda v: v.update(digest=""),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_is_noticed(folder: Path, kind: str) -> None:
    rewrite(folder, EDITS[kind], digest=True)
    message = refused(folder, r'config\.json: is damaged or was edited .* remove its line "digest"')
    assert message.startswith(f"{folder / 'config.json'}: ")


def test_the_way_out_leads_out(folder: Path) -> None:
    """The line is removed as a line, with an editor."""
    path = folder / "config.json"
    text = path.read_text().replace('"std": 4.5689974', '"std": 4.25')
    path.write_text(text)
    refused(folder, "was edited")
    path.write_text("".join(line for line in text.splitlines(True) if '"digest"' not in line))
    assert ssamba.load(folder, "cpu").config.std == 4.25


def test_what_transformers_adds_is_not_covered(folder: Path) -> None:
    expected = read_config(folder)
    rewrite(folder, lambda v: v.update(id2label={"0": "x"}, transformers_version="9", dtype="float16"), digest=True)
    assert read_config(folder) == expected
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(list(values.items()))), indent=7))  # order and spaces
    assert read_config(folder) == expected


def test_the_digest_covers_every_key_that_is_read() -> None:
    values = {key: {} for key in OWN_KEYS}
    seen = {digest_of_config(values)}
    for key in OWN_KEYS:
        seen.add(digest_of_config({**values, key: {"a": 1}}))
        seen.add(digest_of_config({k: v for k, v in values.items() if k != key}))
    assert len(seen) == 1 + 2 * len(OWN_KEYS)


# ---- fields of config.json

FIELDS: dict[str, tuple[Callable[[Values], Any], str]] = {
    "encoder a list": (lambda v: v.update(encoder=["ssamba"]), r"encoder \['ssamba'\]"),
    "encoder an object": (lambda v: v.update(encoder={"a": {}}), "encoder"),
    "encoder missing": (lambda v: v.pop("encoder"), "encoder None"),
    "encoder long": (lambda v: v.update(encoder="s" * 10**6), "encoder 'sss"),
    "encoder with an escape": (lambda v: v.update(encoder="\x1b[31m"), r"encoder '\\+x1b"),
    "format a list": (lambda v: v.update(format=[1]), r"format \[1\]"),
    "format text": (lambda v: v.update(format="1"), "format '1'"),
    "heads text": (lambda v: v.update(heads="no"), "heads is 'no': give true or false"),
    "heads a number": (lambda v: v.update(heads=1), "heads is 1: give true or false"),
    "heads null": (lambda v: v.update(heads=None), "heads is None"),
    "config text": (lambda v: v.update(config="x"), "has no 'config' object"),
    "config null": (lambda v: v.update(config=None), "has no 'config' object"),
    "an unknown value": (lambda v: v["config"].update(widht=1), "unknown value 'widht', did you mean 'width'"),
    "an unknown long value": (lambda v: v["config"].update({"w" * 10**5: 1}), "unknown value 'www"),
    "an unknown escape": (lambda v: v["config"].update({"\x9b31m": 1}), r"unknown value '\\x9b"),
    "width text": (lambda v: v["config"].update(width="16"), "width is '16': give a whole number"),
    "width a list": (lambda v: v["config"].update(width=list(range(10**5))), "width is list of 100000"),
    "width true": (lambda v: v["config"].update(width=True), "width is True"),
    "width large": (lambda v: v["config"].update(width=10**300), "width is a number of about"),
    "mean text": (lambda v: v["config"].update(mean="x"), "mean is 'x'"),
    "mean large": (lambda v: v["config"].update(mean=5000), "mean is 5000: give a number from -1000 to 1000"),
    "std 1e-300": (lambda v: v["config"].update(std=1e-300), "std is 1e-300: give a positive number, from 0.001"),
    "std 0": (lambda v: v["config"].update(std=0), "std is 0: give a positive number"),
    "std -0.0": (lambda v: v["config"].update(std=-0.0), "std is -0.0: give a positive number"),
    "std negative": (lambda v: v["config"].update(std=-4.5), "std is -4.5"),
    "std small": (lambda v: v["config"].update(std=9e-4), "std is 0.0009"),
    "std large": (lambda v: v["config"].update(std=1001), "std is 1001"),
    "mel bins": (lambda v: v["config"].update(mel_bins=4096), "at most 2048 mel bins"),
    "rate": (lambda v: v["config"].update(sample_rate=16), "sample_rate is 16: give 1000 to 384000 Hz"),
    "classification text": (lambda v: v.update(classification="x"), "'classification' is damaged"),
    "classification a list": (lambda v: v.update(classification=[]), "'classification' is damaged"),
    "classes text": (lambda v: v["classification"].update(classes="abc"), "'classification' is damaged"),
    "classes an object": (lambda v: v["classification"].update(classes={"a": 1}), "'classification' is damaged"),
    "no classes": (lambda v: v["classification"].update(classes=[]), "give one name or more"),
    "numbers as classes": (lambda v: v["classification"].update(classes=[1, 2]), "give one name or more"),
    "a class twice": (lambda v: v["classification"].update(classes=["a", "b", "a"]), "'a' is there twice"),
    "many classes, the last twice": (
        lambda v: v["classification"].update(classes=[*map(str, range(300_000)), "299999"]),
        "'299999' is there twice",
    ),
    "an escape twice": (lambda v: v["classification"].update(classes=["\x1b[2J"] * 2), r"'\\+x1b\[2J' is there twice"),
    "a long class": (lambda v: v["classification"].update(classes=["a" * 1001]), "a name of 1001 characters"),
    "pooling a list": (lambda v: v["classification"].update(pooling=["mean"]), r"pooling: \['mean'\], choose"),
    "pooling unknown": (lambda v: v["classification"].update(pooling="max"), "pooling: 'max', choose mean"),
    "loss a number": (lambda v: v["classification"].update(loss=1), "loss: 1, choose"),
    "multi_label text": (lambda v: v["classification"].update(multi_label="no"), "multi_label: 'no', give true"),
    "per_second a number": (lambda v: v["classification"].update(per_second=1), "per_second: 1, give true or false"),
    "recipe a list": (lambda v: v["classification"].update(recipe=[]), r"recipe: \[\], give text"),
    "recipe long": (lambda v: v["classification"].update(recipe="x" * 5000), "recipe: a name of 5000 characters"),
    "an unknown key": (lambda v: v["classification"].update(labels=[]), "'classification' is damaged, unknown value"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_of_another_type_or_out_of_bounds(folder: Path, kind: str) -> None:
    change, reason = FIELDS[kind]
    rewrite(folder, change)
    message = refused(folder, reason)
    assert message.startswith(f"{folder / 'config.json'}: ")


SIZES: dict[str, Values] = {
    "all of them": dict.fromkeys(
        ("width", "frames", "patch_frequency", "patch_time", "stride_frequency", "state_size", "expand", "conv_width"),
        10**6,
    ),
    "width": {"width": 10**6},
    "width and rank": {"width": 10**6, "dt_rank": 10**6},
    "states": {"state_size": 10**6, "expand": 1000},
    "expand": {"expand": 10**6, "width": 1000},
    "depth": {"depth": 1000, "width": 60_000},
    "the grid": {"frames": 10**6, "stride_time": 1, "stride_frequency": 1, "patch_frequency": 1, "patch_time": 1},
    "the patch": {"patch_time": 10**6, "frames": 10**6, "width": 10**4},
    "the kernel": {"conv_width": 10**6, "width": 10**4},
    "the decoder": {"decoder_depth": 1000, "width": 60_000},
    "a little too much": {"width": 24_000, "depth": 24},
    "much, but possible": {"width": 4096, "depth": 48},
    "wrong by one": {"state_size": 17},
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_take_no_memory(folder: Path, kind: str) -> None:
    """What is too large is refused by its number of parameters, the rest by the shapes in the header of the weights."""
    rewrite(folder, lambda v: v["config"].update(SIZES[kind]))
    before = peak_of_this_process()
    refused(folder, r"make about .* parameters|does not fit into|has shape .* says|missing|at most")
    assert peak_of_this_process() < before + 100


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
def test_the_number_of_parameters_is_estimated(encoder: str, size: str) -> None:
    config = getattr(Config, size)(encoder=encoder)
    with torch.device("meta"):
        model = make_encoder(config, heads=True)
    assert config.approximate_parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.05)


@pytest.mark.parametrize("std", [0.0, -1.0, 1e-300, 1e-4, 1e4, float("nan"), float("inf"), "1", None, True, [1.0]])
@pytest.mark.parametrize("name", ["std", "mean"])
def test_statistics_are_checked_in_every_place(name: str, std: Any) -> None:
    if name == "mean" and std in (0.0, -1.0, 1e-300, 1e-4) and std is not True:
        FrontEnd(mean=std)
        return
    for call in (lambda: FrontEnd(**{name: std}), lambda: ssamba.features([0.1] * 800, **{name: std})):
        with pytest.raises(ConfigError, match=f"{name} is .*: give a"):
            call()
    with pytest.raises(ConfigError, match=f"{name} is .*: give a"):
        Config(**{name: std})


@pytest.mark.parametrize(
    "values", [{"sample_rate": "16000"}, {"sample_rate": 16000.5}, {"mel_bins": None}, {"hop": 1.5}]
)
def test_a_front_end_of_another_type(values: Values) -> None:
    with pytest.raises(ConfigError, match=r"give (a whole number|1000 to)"):
        FrontEnd(**values)


# ---- weights

WEIGHTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN": (lambda t: t.index_fill(-1, torch.tensor([1]), float("nan")), "holds NaN"),
    "infinite": (lambda t: t.index_fill(-1, torch.tensor([1]), float("inf")), "holds inf, beyond"),
    "1e30": (lambda t: t.index_fill(-1, torch.tensor([1]), 1e30), r"holds 1e\+30, beyond 1e\+06"),
    "-2e6": (lambda t: t.index_fill(-1, torch.tensor([0]), -2e6), r"holds -2e\+06"),
    "half infinite": (lambda t: t.half().index_fill(-1, torch.tensor([0]), float("-inf")), "holds -inf"),
    "double 1e200": (lambda t: t.double().index_fill(-1, torch.tensor([0]), 1e200), r"holds 1e\+200"),
    "bool": (lambda t: t > 0, "bool numbers: save it in float32"),
    "int32": (lambda t: t.to(torch.int32), "int32 numbers"),
    "int64": (lambda t: t.to(torch.int64), "int64 numbers"),
    "int8": (lambda t: t.to(torch.int8), "int8 numbers"),
    "uint8": (lambda t: t.to(torch.uint8), "uint8 numbers"),
}
PLACES = ("positions", "norm.bias", "pairs.1.A_log_RKEN", "classifier.linear.weight", "patch_embed.weight")


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_numbers_that_no_model_has(folder: Path, kind: str, name: str) -> None:
    change, reason = WEIGHTS[kind]
    tensors = load_tensors(folder / "model.safetensors")
    write_tensors(folder / "model.safetensors", tensors | {name: change(tensors[name])})
    message = refused(folder, reason)
    assert message.startswith(f"{folder / 'model.safetensors'}: '{name}' ")


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "C64", "F4", "X", "", None, 3, ["F32"]])
def test_types_that_are_not_read(folder: Path, kind: Any) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["norm.bias"]["dtype"] = kind
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    message = refused(folder, r"norm\.bias|safetensors")
    assert message.startswith(f"{path}: ")


def test_extras_are_checked_too(folder: Path) -> None:
    tensors = load_tensors(folder / "model.safetensors")
    path = folder / "model.safetensors"
    write_tensors(path, tensors | {"extras.v.head.bias": torch.tensor([float("nan")])})
    refused(folder, r"extras\.v\.head\.bias' holds NaN")
    write_tensors(path, tensors | {"extras.p_input_fdim": torch.tensor(128), "extras.v.head.bias": torch.zeros(3)})
    assert ssamba.load(folder, "cpu").classifier is not None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "link to nothing", "link to itself", "device", "socket"])
def test_special_files(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, 0o140600)
    else:
        path.symlink_to({"device": "/dev/zero", "link to nothing": "nothing", "link to itself": name}[kind])
    begin = time.monotonic()
    with pytest.raises(SsambaError) as caught:
        ssamba.load(folder, "cpu")
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 2


def test_a_good_folder_is_read_as_before(folder: Path, small_config: Config) -> None:
    """Without a digest too, as version 0.1.0 and transformers write it."""
    first = ssamba.load(folder, "cpu")
    rewrite(folder, lambda v: None)
    values = json.loads((folder / "config.json").read_text())
    assert "digest" not in values
    again = ssamba.load(folder, "cpu")
    assert again.config == first.config == small_config
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())


# ---- a model's own statistics


def test_features_are_those_of_the_model(rng: torch.Generator) -> None:
    """``encode`` on ``model.features`` is what ``embed`` gives; on ``ssamba.features`` it was off by 11 percent."""
    model = ssamba.load(device="cpu")
    audio = 0.1 * torch.randn(2, 15600, generator=rng)  # 96 frames, six whole columns
    columns = model.config.patch_time
    features = model.features(audio)
    tokens = model.encode(features)[:, model.prefix_tokens :]
    expected = model.embed(audio).clip
    torch.testing.assert_close(tokens.mean(dim=1), expected, rtol=1e-4, atol=1e-5)
    other = model.encode(ssamba.features(audio))[:, model.prefix_tokens :].mean(dim=1)
    assert (other - expected).norm() > 0.02 * expected.norm()
    wanted = ssamba.features(audio, mean=model.config.mean, std=model.config.std)
    assert torch.equal(features, wanted)
    assert model.features(audio[0], 32000, target_length=3 * columns).shape == (1, 3 * columns, 128)
    with pytest.raises(ConfigError, match="target_length is 0"):
        model.features(audio, target_length=0)


def test_features_have_the_rate_and_bins_of_the_model() -> None:
    model = SSAMBA(Config(width=16, depth=2, frames=64, mel_bins=64, sample_rate=32000, mean=-5.0, std=3.0))
    features = model.features([0.1] * 44100, 44100)
    assert features.shape == (1, model.config.front_end.frame_count(32000), 64)
    assert model.encode(features).shape[2] == 16


@pytest.mark.parametrize("changes", [{}, {"frames": 200}, {"stride_time": 10, "frames": 205}, {"sample_rate": 44100}])
def test_the_window_is_the_same_everywhere(
    tmp_path: Path, small_config: Config, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from ssamba.inference.hf.card import model_card
    from ssamba.models.pretrained.model_dir import read_model

    config = small_config.replace(**changes)
    save_model(tmp_path / "m", SSAMBA(config))
    description, tensors = read_model(tmp_path / "m")
    card = model_card("x", description, tensors, tmp_path, None, False)
    assert main.main(["info", str(tmp_path / "m"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert f"| window | {facts['frames']} frames ({facts['seconds']:.2f} s)" in card
    covered = (config.grid[1] - 1) * config.stride_time + config.patch_time
    assert facts["frames"] == covered
    assert facts["seconds"] == config.window_seconds == pytest.approx(covered / config.front_end.frames_per_second)


def test_values_are_not_shared(folder: Path) -> None:
    """The digest is of what is written, not of what the caller's objects become."""
    values = json.loads((folder / "config.json").read_text())
    before = copy.deepcopy(values)
    digest_of_config(values)
    assert values == before


def test_a_deep_model_whose_official_form_no_reader_takes(tmp_path: Path) -> None:
    from ssamba.models.pretrained.convert import convert

    model = SSAMBA(Config(width=16, depth=80, frames=32, residual_scale=1))
    save_model(tmp_path / "m", model)
    with pytest.raises(CheckpointError, match=r"m\.pth: .*out_proj.* holds .*beyond 1e\+06"):
        convert(tmp_path / "m", tmp_path / "m.pth")
    assert not (tmp_path / "m.pth").exists()
