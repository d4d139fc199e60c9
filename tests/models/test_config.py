"""Dimensions: what is refused, and the way to and from ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ssamba.audio.front_end import PUBLISHED, FrontEnd
from ssamba.models.config import Config
from ssamba.utils.errors import ConfigError, nearest
from ssamba.utils.json_text import read_json


def test_defaults_are_the_tiny_model_of_the_paper() -> None:
    config = Config()
    assert config == Config.tiny()
    assert (config.width, config.depth, config.inner, config.dt_rank) == (192, 24, 384, 12)
    assert (config.grid, config.patch_size, config.tiles) == ((8, 64), 256, True)
    assert (Config.small().width, Config.base().width) == (384, 768)


def test_the_rank_is_a_sixteenth_of_the_width_rounded_up() -> None:
    assert [Config(width=w).dt_rank for w in (16, 17, 40, 768)] == [1, 2, 3, 48]
    assert Config(width=64, dt_rank=7).dt_rank == 7


@pytest.mark.parametrize(
    ("changes", "grid", "tiles"),
    [
        ({"stride_frequency": 10, "stride_time": 10}, (12, 101), False),
        ({"frames": 16}, (8, 1), True),
        ({"frames": 31, "mel_bins": 40}, (2, 1), True),
        ({"patch_frequency": 128, "stride_frequency": 128, "patch_time": 2, "stride_time": 2}, (1, 512), True),
    ],
)
def test_grid(changes: dict[str, int], grid: tuple[int, int], tiles: bool) -> None:
    config = Config(**changes)
    assert (config.grid, config.tiles) == (grid, tiles)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", -1),
        ("width", 0),
        ("width", True),
        ("width", "192"),
        ("width", 19.5),
        ("width", None),
        ("width", 10**30),
        ("depth", 3),
        ("depth", 10**6),
        ("dt_rank", -1),
        ("stride_time", 0),
        ("stride_frequency", -16),
        ("state_size", 0),
        ("frames", 15),
        ("mel_bins", 15),
        ("drop_path", -0.1),
        ("drop_path", 1),
        ("drop_path", False),
        ("std", 0.0),
        ("std", -1.0),
        ("std", float("nan")),
        ("mean", float("inf")),
        ("mean", float("nan")),
        ("mean", -1e9),
        ("drop_path", float("nan")),
        ("mean", 10**400),
        ("mean", [1.0]),
        ("sample_rate", 0),
        ("sample_rate", 999),
        ("sample_rate", 384_001),
        ("sample_rate", 16000.0),
    ],
)
def test_refuses_what_no_model_can_have(name: str, value: Any) -> None:
    word = {"frames": "patch of 16 x 16", "mel_bins": "patch of 16 x 16"}.get(name, name)
    with pytest.raises(ConfigError, match=word) as caught:
        Config(**{name: value})
    assert "\n" not in str(caught.value)


def test_the_front_end_is_flat_in_the_config() -> None:
    assert Config().front_end == PUBLISHED
    config = Config(sample_rate=32000, mel_bins=64, mean=-5.0, std=3.0)
    assert config.front_end == FrontEnd(32000, 64, mean=-5.0, std=3.0)
    assert (config.front_end.frame_length, config.front_end.hop) == (800, 320)
    assert Config.from_dict(config.to_dict()).front_end == config.front_end
    assert "front_end" not in config.to_dict()


def test_is_frozen_and_validated_again_when_changed() -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 1  # type: ignore[misc]
    assert config.replace(depth=2).depth == 2
    with pytest.raises(ConfigError, match="depth is 5"):
        config.replace(depth=5)


def test_goes_through_json_unchanged() -> None:
    config = Config(width=40, depth=2, frames=300, patch_time=8, stride_time=5, drop_path=0.25, mean=-3, std=2.5)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_key_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"^run/config\.json: unknown value 'widht', did you mean 'width'\?$"):
        Config.from_dict({"widht": 192}, "run/config.json")
    with pytest.raises(ConfigError, match=r"unknown value 'zzz'$"):
        Config.from_dict({"zzz": 1})
    assert nearest("dept", ["width", "depth"]) == ", did you mean 'depth'?"


def test_bad_value_in_a_file_is_told_with_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^run/config\.json: depth is 3"):
        Config.from_dict({"depth": 3}, "run/config.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1, 2]", "holds a list, expected a JSON object"),
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b'{"a": "\xff"}', "is not UTF-8 text"),
    ],
)
def test_json_of_the_wrong_kind(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match=r"is missing|is a folder"):
            read_json(path)
