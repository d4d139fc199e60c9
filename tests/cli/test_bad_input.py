"""Bad input through the command line: exit code 2, one line on stderr, no traceback, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssamba.cli.main import main
from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model

pytestmark = pytest.mark.usefixtures("one_thread")
NOISE = (np.random.default_rng(0).standard_normal(16000) / 10).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, SSAMBA(Config(width=16, depth=2, frames=128), heads=True))
    return folder


def wav(path: Path, samples: np.ndarray = NOISE, rate: int = 16000, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_size) for p in folder.rglob("*"))


def refused(argv: list[object], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail cleanly; returns its one line."""
    before = listing(folder)
    code = main([str(word) for word in argv])
    err = capsys.readouterr().err
    assert code == 2, err
    return one_line(err, before, folder)


def one_line(err: str, before: list[tuple[str, int]], folder: Path) -> str:
    assert err.startswith("ssamba: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert listing(folder) == before
    return err


def _zero(path: Path) -> None:
    path.touch()


def _text(path: Path) -> None:
    path.write_text("this is a letter\n")


def _truncated(path: Path) -> None:
    soundfile.write(path, NOISE, 16000, format="FLAC")
    path.write_bytes(path.read_bytes()[:-9000])


def _nan(path: Path) -> None:
    wav(path, np.where(np.arange(16000) == 500, np.nan, NOISE).astype(np.float32), subtype="FLOAT")


def _infinite(path: Path) -> None:
    wav(path, np.where(np.arange(16000) == 500, -np.inf, NOISE).astype(np.float32), subtype="FLOAT")


def _one_sample(path: Path) -> None:
    wav(path, NOISE[:1])


BAD_AUDIO = {
    "zero.wav": (_zero, "empty"),
    "text.wav": (_text, "not audio"),
    "cut.flac": (_truncated, "truncated"),
    "nan.wav": (_nan, "NaN at sample 500"),
    "infinite.wav": (_infinite, "infinite value at sample 500"),
    "one.wav": (_one_sample, "shorter than one 25 ms frame"),
}


@pytest.mark.parametrize("name", BAD_AUDIO)
@pytest.mark.parametrize("command", ["embed", "reconstruct", "stats"])
def test_bad_audio(name: str, command: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, reason = BAD_AUDIO[name]
    path = tmp_path / name
    write(path)
    options = {
        "embed": ["--model", model, "--out", tmp_path / "x.npz"],
        "reconstruct": ["--model", model, "--out", tmp_path / "x.png"],
        "stats": [],
    }
    line = refused([command, path, *options[command]], tmp_path, capsys)
    assert str(path) in line
    assert reason in line


def test_missing_path_and_empty_folder(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav(tmp_path / "speech.wav")
    (tmp_path / "empty").mkdir()
    end = ["--model", model, "--out", tmp_path / "x.npz"]
    assert "did you mean" in refused(["embed", tmp_path / "speach.wav", *end], tmp_path, capsys)
    assert "no audio files" in refused(["embed", tmp_path / "empty", *end], tmp_path, capsys)
    assert "no such file" in refused(["stats", tmp_path / "nowhere"], tmp_path, capsys)
    assert "no such file" in refused(
        ["reconstruct", tmp_path / "no.wav", *end[:3], tmp_path / "x.png"], tmp_path, capsys
    )


def test_good_files_are_written_beside_a_bad_one(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wav(tmp_path / "good.wav")
    _nan(tmp_path / "nan.wav")
    assert main(["embed", str(tmp_path), "--model", str(model), "--out", str(tmp_path / "x.npz")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"left out {tmp_path / 'nan.wav'}: holds NaN" in err
    assert list(np.load(tmp_path / "x.npz")["paths"]) == [str(tmp_path / "good.wav")]


def test_unusual_but_good_audio(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate in (8000, 192000):
        wav(tmp_path / f"rate{rate}.wav", np.tile(NOISE, 12)[: rate // 2], rate)
    wav(tmp_path / "eight channels.wav", np.stack([NOISE] * 8, axis=1))
    wav(tmp_path / "silence.wav", np.zeros(16000, np.float32))
    wav(tmp_path / "shortest.wav", NOISE[:400])
    assert main(["embed", str(tmp_path), "--model", str(model), "--out", str(tmp_path / "x.npz")]) == 0
    assert capsys.readouterr().err == ""
    rows = np.load(tmp_path / "x.npz")["embedding"]
    assert rows.shape == (5, 16)
    assert np.isfinite(rows).all()


def test_unwritable_output(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = wav(tmp_path / "good.wav")
    (tmp_path / "folder.npz").mkdir()
    for out, reason in (
        (tmp_path / "good.wav" / "x.npz", "cannot be written"),
        ("/proc/nowhere/x.npz", "cannot be written"),
        (tmp_path / "folder.npz", "is a folder"),
        (tmp_path / "x.npy", "did you mean '.npz'"),
    ):
        assert reason in refused(["embed", good, "--model", model, "--out", out], tmp_path, capsys)
    end = ["--model", model, "--out", tmp_path / "good.wav" / "x.png"]
    assert "cannot be written" in refused(["reconstruct", good, *end], tmp_path, capsys)
    assert "cannot be written" in refused(["convert", model, tmp_path / "good.wav" / "x.pth"], tmp_path, capsys)


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from ssamba.cli.main import main
codes = []
for limit, *argv in (line.split("\\t") for line in sys.stdin.read().splitlines()):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    codes.append(main(argv))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(codes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits")
def test_full_disk(model: Path, official_path: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: writes fail in the same place, with an OSError."""
    wav(tmp_path / "good.wav", np.tile(NOISE, 20))
    embed = ["embed", tmp_path / "good.wav", "--model", model, "--level", "patch", "--out"]
    commands: list[list[object]] = [
        [4096, *embed, tmp_path / "spool.npz"],
        # The spooled rows fit, the output with its times and rows does not.
        [spooled_bytes(20.0) + 64, *embed, tmp_path / "final.npz"],
        [1024, "convert", official_path, tmp_path / "model"],
        [4096, "convert", official_path, tmp_path / "model"],
        [4096, "convert", model, tmp_path / "x.pth"],
        [4096, "export", model, tmp_path / "x.onnx"],
        [1024, "reconstruct", tmp_path / "good.wav", "--model", model, "--out", tmp_path / "x.png"],
    ]
    if _has("pyarrow"):
        commands.insert(2, [spooled_bytes(20.0) + 64, *embed, tmp_path / "final.parquet"])
    before = listing(tmp_path)
    script = "\n".join("\t".join(map(str, command)) for command in commands)
    words, env = [sys.executable, "-c", FULL_DISK], os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(words, input=script, capture_output=True, text=True, env=env, check=False)
    assert json.loads(done.stdout) == [2] * len(commands), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands), done.stderr
    assert all(line.startswith("ssamba: error: ") and "cannot be written" in line for line in lines)
    assert listing(tmp_path) == before


def spooled_bytes(seconds: float) -> int:
    columns = -(-(round(seconds * 100) - 2 - 16) // 16) + 1
    return columns * 8 * 16 * 4


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_behind_stdout(model: Path) -> None:
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "ssamba", "info", str(model)]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


class Exploit:
    """A pickle that writes a file when it is loaded carelessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_is_never_executed(
    archive: bool, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, owned, path = wav(tmp_path / "good.wav"), tmp_path / "owned", tmp_path / "evil.pth"
    state = {"module.v.cls_token": torch.zeros(1), "x": Exploit(owned)}
    torch.save(state, path, _use_new_zipfile_serialization=archive)
    for command in (
        ["info", path],
        ["convert", path, tmp_path / "out"],
        ["embed", good, "--model", path, "--out", tmp_path / "x.npz"],
        ["reconstruct", good, "--model", path, "--out", tmp_path / "x.png"],
    ):
        assert str(path) in refused(command, tmp_path, capsys)
    assert not owned.exists()


def ssast_keys() -> dict[str, torch.Tensor]:
    """The outline of an SSAST checkpoint: a distilled vision transformer under the same outer keys."""
    block = {f"module.v.blocks.0.attn.qkv.{kind}": torch.zeros(96, 32) for kind in ("weight", "bias")}
    return block | {
        "module.v.cls_token": torch.zeros(1, 1, 32),
        "module.v.dist_token": torch.zeros(1, 1, 32),
        "module.v.pos_embed": torch.zeros(1, 514, 32),
        "module.v.patch_embed.proj.weight": torch.zeros(32, 1, 16, 16),
        "module.mask_embed": torch.zeros(1, 1, 32),
    }


def test_bad_checkpoints(
    model: Path, official: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, end = wav(tmp_path / "good.wav"), ["--out", tmp_path / "x.npz"]
    del official["module.v.norm_f.weight"]
    cases = {
        "ssast.pth": (ssast_keys(), "SSAST"),
        "other.pth": ({"layer1.weight": torch.zeros(3)}, "not an SSAMBA checkpoint"),
        "lacking.pth": (official, "missing v.norm_f.weight"),
        "list.pth": ([torch.zeros(3)], "state dict"),
    }
    for name, (state, _) in cases.items():
        torch.save(state, tmp_path / name)
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)))
    (tmp_path / "void.pth").touch()
    reasons = {name: reason for name, (_, reason) in cases.items()}
    for name, reason in (reasons | {"noise.pth": "not", "void.pth": "", "missing.pth": "no such file"}).items():
        for command in (["info", tmp_path / name], ["embed", good, "--model", tmp_path / name, *end]):
            line = refused(command, tmp_path, capsys)
            assert reason in line
            assert name in line


def test_bad_model_directories(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, end = wav(tmp_path / "good.wav"), ["--out", tmp_path / "x.npz"]

    def broken(name: str) -> Path:
        return Path(shutil.copytree(model, tmp_path / name))

    def change(folder: Path, **values: object) -> None:
        file = folder / "config.json"
        description = json.loads(file.read_text())
        description["config"] |= values
        description.pop("digest", None)
        file.write_text(json.dumps(description))

    change(broken("negative"), width=-192)
    change(broken("other"), width=32)
    change(broken("typo"), widht=16)
    (broken("cut") / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-100])
    (broken("garbage") / "model.safetensors").write_bytes(b"\xff" * 100)
    (broken("weightless") / "model.safetensors").unlink()
    (broken("configless") / "config.json").write_text("{")
    (tmp_path / "void").mkdir()
    reasons = {
        "negative": "width is -192",
        "other": "has shape",
        "typo": "did you mean 'width'",
        "cut": "damaged",
        "garbage": "damaged",
        "weightless": "is missing",
        "configless": "is not JSON",
        "void": "config.json",
    }
    for name, reason in reasons.items():
        assert reason in refused(["embed", good, "--model", tmp_path / name, *end], tmp_path, capsys)
        if name != "other":  # its headers alone do not tell
            assert reason in refused(["info", tmp_path / name], tmp_path, capsys)


def test_bad_values(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = wav(tmp_path / "good.wav")
    start = ["embed", good, "--model", model, "--out", tmp_path / "x.npz"]
    assert "--level fram: choose" in refused([*start, "--level", "fram"], tmp_path, capsys)
    assert "above 0" in refused([*start, "--batch", "0"], tmp_path, capsys)
    assert "patch of 16 x 16" in refused([*start, "--frames", "8"], tmp_path, capsys)
    assert "device 'tpu'" in refused([*start, "--device", "tpu"], tmp_path, capsys)
    draw = ["reconstruct", good, "--model", model, "--out", tmp_path / "x.png"]
    assert "the grid 8 x 7 has 56" in refused([*draw, "--mask", "400"], tmp_path, capsys)
    assert "ends at 1 s" in refused([*draw, "--start", "20"], tmp_path, capsys)
    assert "give seconds" in refused([*draw, "--start", "nan"], tmp_path, capsys)
    assert ".png" in refused([*draw[:-1], tmp_path / "x.pdf"], tmp_path, capsys)
