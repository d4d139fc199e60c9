"""Environment variables of the operators: defaults, what is parsed, and that no other module reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ssamba import ops
from ssamba.ops import environment

NAMES = (
    "SSAMBA_BACKEND",
    "SSAMBA_CACHE_DIR",
    "SSAMBA_GPU_SCAN",
    "SSAMBA_LPC",
    "SSAMBA_CUT",
    "SSAMBA_BACKWARD",
    "SSAMBA_PROJ",
    "SSAMBA_GATE",
    "SSAMBA_STATES",
    "SSAMBA_FP32",
    "SSAMBA_BIAS",
    "TRITON_INTERPRET",
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_defaults() -> None:
    assert environment.backend() == "auto"
    assert environment.gpu_scan() == "nvrtc"
    assert environment.lanes_per_channel() is None
    assert environment.scan_tiling() == {}
    assert environment.scan_backward() == ("", {})
    assert environment.projection_launch() == {}
    assert environment.gate_tile() is None
    assert environment.makes_next_input()
    assert environment.rounded_states() == ("forward", "backward")
    assert environment.fp32_products() == ("", {})
    assert environment.bias_gradient() == "mixer"
    assert not environment.interprets_triton()


def test_values_are_read_at_the_time_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"SSAMBA_BACKEND": "reference", "SSAMBA_GPU_SCAN": "triton", "SSAMBA_LPC": "0", "SSAMBA_PROJ": "8,2"}
    for name, value in {**values, "SSAMBA_CUT": "warps=8, stages=4", "SSAMBA_BACKWARD": "mma, movm=1"}.items():
        monkeypatch.setenv(name, value)
    assert (environment.backend(), environment.gpu_scan()) == ("reference", "triton")
    assert environment.lanes_per_channel() == 0
    assert environment.scan_tiling() == {"warps": 8, "stages": 4}
    assert environment.scan_backward() == ("mma", {"movm": 1})
    assert environment.projection_launch() == {"warps": 8, "blocks": 2}
    monkeypatch.setenv("SSAMBA_PROJ", "4,1, slices=4,rows=16")
    assert environment.projection_launch() == {"warps": 4, "blocks": 1, "slices": 4, "rows": 16}
    monkeypatch.setenv("SSAMBA_GATE", "64,128,32,4,2")
    assert environment.gate_tile() == (64, 128, 32, 4, 2)
    monkeypatch.setenv("SSAMBA_GATE", "pieces")
    assert environment.gate_tile() == ()
    assert environment.makes_next_input()
    monkeypatch.setenv("SSAMBA_GATE", "apart")
    assert environment.gate_tile() is None
    assert not environment.makes_next_input()
    for given, expected in (("given", ()), ("backward", ("backward",)), ("forward, backward", ("forward", "backward"))):
        monkeypatch.setenv("SSAMBA_STATES", given)
        assert environment.rounded_states() == expected
    monkeypatch.setenv("SSAMBA_STATES", "backwards")
    with pytest.raises(ValueError, match="SSAMBA_STATES: there is no 'backwards'"):
        environment.rounded_states()
    monkeypatch.setenv("SSAMBA_FP32", "split, columns=64,warps=4")
    assert environment.fp32_products() == ("split", {"columns": 64, "warps": 4})
    monkeypatch.setenv("SSAMBA_BIAS", "product")
    assert environment.bias_gradient() == "product"
    monkeypatch.setenv("SSAMBA_BIAS", "columns")
    with pytest.raises(ValueError, match="SSAMBA_BIAS: there is no 'columns'"):
        environment.bias_gradient()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert environment.interprets_triton()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "home/.cache/ssamba/kernels"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache/ssamba/kernels"),
        ("linux", {"XDG_CACHE_HOME": "{tmp}/xdg"}, "xdg/ssamba/kernels"),
        ("darwin", {}, "home/Library/Caches/ssamba/kernels"),
        ("win32", {"LOCALAPPDATA": "{tmp}/local"}, "local/ssamba/kernels"),
        ("linux", {"SSAMBA_CACHE_DIR": "~/kernels", "XDG_CACHE_HOME": "{tmp}/xdg"}, "home/kernels"),
    ],
)
def test_the_cache_folder_of_each_platform(
    platform: str, variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    monkeypatch.setattr(environment.sys, "platform", platform)
    assert environment.cache_dir() == tmp_path / expected


def test_every_variable_is_documented() -> None:
    assert environment.__doc__ is not None
    for name in NAMES:
        assert f"\n{name} " in environment.__doc__


def test_cuda_modules_read_no_environment_themselves() -> None:
    for path in (Path(ops.__file__).parent / "mamba" / "cuda").rglob("*.py"):
        assert not re.search(r"\benviron\b|\bgetenv\b", path.read_text(encoding="utf-8")), path
