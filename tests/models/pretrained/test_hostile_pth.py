"""`.pth` files from elsewhere: foreign tensors, numbers that are none, archives that blow up, larger checkpoints."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peak_memory import PEAK
from torch import Tensor

import ssamba
from ssamba.cli import main
from ssamba.models.pretrained.convert import convert, official_state
from ssamba.models.pretrained.describe import describe
from ssamba.models.pretrained.pth_file import read_pth
from ssamba.models.ssast import SSAST
from ssamba.utils.errors import CheckpointError, SsambaError

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
State = dict[str, Tensor]
NAME = "module.v.norm_f.bias"


def refused(path: Path, reason: str) -> str:
    """The one line with which a file is refused, soon, by reading and by the command line alike."""
    begin = time.monotonic()
    with pytest.raises(SsambaError, match=reason) as caught:
        ssamba.load(path, "cpu")
    message = str(caught.value)
    assert time.monotonic() - begin < 5
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 600
    assert main.main(["info", str(path)]) == 2
    return message


def saved(tmp_path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, tmp_path / "x.pth", **options)
    return tmp_path / "x.pth"


FOREIGN: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised|holds qint8|asks for"),
    "quantised per channel": (
        lambda t: torch.quantize_per_channel(t[:, None], torch.ones(len(t)), torch.zeros(len(t)), 0, torch.qint8),
        "quantised|asks for",
    ),
    "nested": (lambda t: torch.nested.nested_tensor([t, t]), "nested|damaged|asks for"),
    "jagged": (lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged), "nested|asks for|damaged"),
    "sparse": (lambda t: t.to_sparse(), "sparse"),
    "sparse rows": (lambda t: t[:, None].to_sparse_csr(), "sparse"),
    "meta": (lambda t: t.to("meta"), "device 'meta'"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn numbers: save it in float32|damaged"),
    "float8 wide": (lambda t: t.to(torch.float8_e5m2), "float8_e5m2 numbers|damaged"),
    "complex": (lambda t: t.to(torch.complex64), "complex64 numbers"),
    "bool": (lambda t: t > 0, "bool numbers"),
    "int": (lambda t: t.to(torch.int32), "int32 numbers"),
    "long": (lambda t: t.to(torch.int64), "int64 numbers"),
    "bytes": (lambda t: t.to(torch.uint8), "uint8 numbers"),
    "uint16": (lambda t: t.to(torch.uint16), "uint16 numbers|damaged"),
    "NaN": (lambda t: t.index_fill(0, torch.tensor([1]), float("nan")), "holds NaN"),
    "infinite": (lambda t: t.index_fill(0, torch.tensor([0]), float("inf")), "holds inf, beyond"),
    "minus infinite": (lambda t: t.index_fill(0, torch.tensor([0]), float("-inf")), "holds -inf, beyond"),
    "1e30": (lambda t: t.index_fill(0, torch.tensor([0]), -1e30), r"holds -1e\+30, beyond 1e\+06"),
    "half infinite": (lambda t: t.half().index_fill(0, torch.tensor([0]), float("inf")), "holds inf"),
    "bfloat16 1e20": (lambda t: t.bfloat16().index_fill(0, torch.tensor([0]), 1e20), "holds 9.97e"),
    "double 1e300": (lambda t: t.double().index_fill(0, torch.tensor([0]), 1e300), "holds 1e\\+300"),
    "expanded": (lambda t: torch.zeros(1).expand(10**6, 10**6), "they repeat values"),
    "expanded and small": (lambda t: torch.zeros(1, 1).expand(3000, 1000), "they repeat values"),
    "text": (lambda t: "0.5", "something else than a state dict"),
    "a list": (lambda t: [0.5], "something else than a state dict"),
    "none": (lambda t: None, "something else than a state dict"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_foreign_tensors(tmp_path: Path, official: State, kind: str, form: str) -> None:
    change, reason = FOREIGN[kind]
    try:
        path = saved(tmp_path, {**official, NAME: change(official[NAME])}, _use_new_zipfile_serialization=form == "zip")
    except (
        RuntimeError,
        NotImplementedError,
        KeyError,
        AttributeError,
        AssertionError,
        TypeError,
        pickle.PicklingError,
    ):
        assert form == "legacy"  # which has no form for it
        return
    message = refused(path, reason)
    if "was not loaded" not in message and "something else" not in message and "repeat" not in message:
        assert NAME in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read(tmp_path: Path, official: State, dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in official.items()}
    model = ssamba.load(saved(tmp_path, state), "cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_parameters_and_shared_storage_are_read(tmp_path: Path, official: State) -> None:
    state = {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in official.items()}
    both = torch.stack([official[NAME], official[NAME]])
    state[NAME] = both[1]
    expected = ssamba.load(saved(tmp_path, official), "cpu").state_dict()
    found = ssamba.load(saved(tmp_path, state), "cpu").state_dict()
    assert all(torch.equal(found[k], v) for k, v in expected.items())


# ---- files that are no archive of tensors

KINDS = {
    "empty": (b"", "it is empty"),
    "one byte": (b"P", "damaged, or something else"),
    "html": (b"<!DOCTYPE html><html>404</html>", "it is a web page"),
    "html after spaces": (b"\n\n  <html>", "it is a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\x00\x00", "compressed with gzip"),
    "xz": (b"\xfd7zXZ\x00\x00", "compressed with xz"),
    "zstd": (b"(\xb5/\xfd\x00", "compressed with Zstandard"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "npy": (b"\x93NUMPY\x01\x00", "NumPy array"),
    "safetensors": ((2).to_bytes(8, "little") + b"{}", "safetensors file; give the directory"),
    "text": (b"hello world", "damaged, or something else"),
    "python 2 pickle": (pickle.dumps({"a": 1}, protocol=0), "damaged, or something else"),
    "protocol 1": (pickle.dumps({"a": 1}, protocol=1), "damaged, or something else"),
    "protocol 2": (pickle.dumps({"a": 1}, protocol=2), "damaged, or something else"),
    "protocol 5": (pickle.dumps({"a": 1}, protocol=5), "damaged, or something else"),
    "zeros": (bytes(1000), "damaged, or something else"),
    "zip start": (b"PK\x03\x04" + bytes(100), "damaged, or something else"),
    "escape": (b"\x1b[2J\x1b]0;title\x07", "damaged, or something else"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin", ".pt", ""])
def test_files_of_other_kinds(tmp_path: Path, kind: str, suffix: str) -> None:
    content, reason = KINDS[kind]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    refused(path, reason)


def test_a_tar_archive(tmp_path: Path, official_path: Path) -> None:
    with tarfile.open(tmp_path / "x.pth", "w") as archive:
        archive.add(official_path, "storages")
    refused(tmp_path / "x.pth", "tar archive; unpack it first")


def test_a_torchscript_program(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "TorchScript program; save the state dict")


@pytest.mark.parametrize("name", ["x.pth", "model.safetensors", "x.ckpt"])
def test_a_pipe_is_refused_at_once(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    if name != "model.safetensors":
        refused(tmp_path / name, "is not a regular file")
        return
    ssamba_folder = tmp_path / "run"
    convert_tiny(ssamba_folder)
    (ssamba_folder / name).unlink()
    os.mkfifo(ssamba_folder / name)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        ssamba.load(ssamba_folder, "cpu")
    (ssamba_folder / "config.json").unlink()
    os.mkfifo(ssamba_folder / "config.json")
    with pytest.raises(SsambaError, match=r"holds no config\.json"):
        ssamba.load(ssamba_folder, "cpu")


def convert_tiny(folder: Path) -> None:
    from ssamba.models.pretrained.model_dir import save_model

    save_model(folder, ssamba.SSAMBA(ssamba.Config(width=16, depth=2, frames=128)))


# ---- archives that blow up

MEASURE = f"""
import sys
{PEAK}
import ssamba
from ssamba.utils.errors import SsambaError
from ssamba.models.pretrained.pth_file import read_pth
from pathlib import Path
try:
    read_pth(Path(sys.argv[1]))
except SsambaError as error:
    print(error)
print(peak())
"""


def in_a_process(path: Path) -> tuple[str, float]:
    """The message about a file, and the most memory of the process that read it in MB."""
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    *lines, peak = done.stdout.splitlines()
    return " ".join(lines), float(peak)


def rezipped(source: Path, dest: Path, compression: int, more: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(dest, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        for name, content in (more or {}).items():
            new.writestr(name, content)
    return dest


def test_an_archive_that_unpacks_to_a_gibibyte(tmp_path: Path) -> None:
    small, bomb = saved(tmp_path, {"a": torch.zeros(3)}), tmp_path / "bomb.pth"
    with zipfile.ZipFile(small) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name in old.namelist():
            new.writestr(name.replace("data/0", "data/1"), old.read(name))
        with new.open("x/data/0", "w") as entry:
            for _ in range(1 << 8):
                entry.write(bytes(1 << 22))
    assert bomb.stat().st_size < 5 << 20
    message, peak = in_a_process(bomb)
    _, plain = in_a_process(tmp_path / "none.pth")
    assert "would unpack to 1,073,7" in message
    assert peak < plain + 50


def test_an_archive_that_is_only_repacked_is_read(tmp_path: Path, official_path: Path, official: State) -> None:
    path = rezipped(official_path, tmp_path / "again.pth", zipfile.ZIP_STORED)
    assert read_pth(path).keys() == official.keys()


@pytest.mark.parametrize("content", [b"\x80\x02" + b"]" * 4_500_000, b"\x80\x02" + b"(" * 4_500_000])
def test_a_pickle_of_many_objects(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    begin = time.process_time()
    with pytest.raises(CheckpointError, match=r"pickle has more than 4,194,304 bytes|was not loaded"):
        read_pth(path)
    assert time.process_time() - begin < 30


def test_a_directory_of_many_entries(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(60_000):
            archive.writestr(f"archive/data/{i:020}", b"")
    refused(path, "the directory of its archive has more than 4,194,304 bytes")


def test_bytes_out_of_nothing(tmp_path: Path) -> None:
    """``bytearray(n)`` is on torch's list of harmless functions, and takes n bytes."""
    bomb = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (2 << 30).to_bytes(5, "little") + b"\x85R."
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, stream)
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(tmp_path / "x.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, bomb if name.endswith("data.pkl") else old.read(name))
    (tmp_path / "y.pth").write_bytes(bomb)
    _, plain = in_a_process(tmp_path / "none.pth")
    for path in (tmp_path / "x.pth", tmp_path / "y.pth"):
        message, peak = in_a_process(path)
        assert "it asks for builtins.bytearray" in message
        assert peak < plain + 100


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_truncated_files(tmp_path: Path, official: State, share: float, form: str) -> None:
    path = saved(tmp_path, official, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "was not loaded|is missing")


def test_flipped_bytes_never_raise_anything_else(tmp_path: Path, official_path: Path) -> None:
    content, path = official_path.read_bytes(), tmp_path / "x.pth"
    generator = torch.Generator().manual_seed(5)
    for _ in range(150):
        bad = bytearray(content)
        for place in torch.randint(len(bad), (8,), generator=generator).tolist():
            bad[place if place % 2 else -1 - place % 40_000] ^= 1 << place % 8
        path.write_bytes(bad)
        with contextlib.suppress(SsambaError):
            ssamba.load(path, "cpu")


# ---- larger checkpoints

WRAPS: dict[str, Callable[[State], Any]] = {
    "lightning": lambda s: {
        "state_dict": {f"model.{k.removeprefix('module.')}": v for k, v in s.items()},
        "epoch": 3,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "hyper_parameters": {"lr": 1e-3},
    },
    "trainer": lambda s: {"model": s, "step": 5},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}, "param_groups": []}},
    "with another dict of tensors": lambda s: {"net": s, "moments": {"a": torch.zeros(2)}},
    "prefix": lambda s: {f"encoder.net.{k.removeprefix('module.')}": v for k, v in s.items()},
    "module twice": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "bare": lambda s: {k.removeprefix("module."): v for k, v in s.items()},
}


@pytest.mark.parametrize("kind", WRAPS)
def test_a_state_dict_in_a_larger_checkpoint(tmp_path: Path, official: State, kind: str) -> None:
    expected = ssamba.load(saved(tmp_path, official), "cpu", heads=True).state_dict()
    found = ssamba.load(saved(tmp_path, WRAPS[kind](official)), "cpu", heads=True).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    _, again = ssamba.models.pretrained.load.read_model_source(tmp_path / "x.pth")
    assert "extras.v.head.bias" in again


AMBIGUOUS: dict[str, tuple[Callable[[State], Any], str]] = {
    "two": (lambda s: {"state_dict": s, "ema": s}, r"several state dicts, 'state_dict', 'ema': .*\['state_dict'\]"),
    "teacher": (
        lambda s: {f"{w}.{k}": v for w in ("student", "teacher") for k, v in s.items()},
        r"a model under 'student\.module\.' and also 'teacher\.",
    ),
    "others": (
        lambda s: {"state_dict": {**{f"model.{k}": v for k, v in s.items()}, "loss.weight": torch.zeros(1)}},
        r"a model under 'model\.module\.' and also 'loss\.weight'.*removeprefix",
    ),
    "no model": (
        lambda s: {"state_dict": {"a": torch.zeros(1)}, "epoch": 1},
        "something else .* 'state_dict', 'epoch'",
    ),
    "optimizer": (lambda s: {"state": {}, "param_groups": []}, "something else"),
    "escape": (lambda s: {"\x1b[2J": 1}, "something else"),
    "numbers": (lambda s: {1: torch.zeros(1)}, "something else"),
    "a list": (lambda s: [s], "something else"),
    "a tensor": (lambda s: torch.zeros(1), "something else"),
    "escape in a key": (lambda s: {**s, "module.\x1b]0;x\x07": torch.zeros(1)}, r"unexpected \\x1b"),
    "a long key": (lambda s: {**s, "k" * 100_000: torch.zeros(1)}, "unexpected kkk"),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_cannot_be_told_apart_is_refused_with_the_way_out(tmp_path: Path, official: State, kind: str) -> None:
    content, reason = AMBIGUOUS[kind]
    refused(saved(tmp_path, content(official)), reason)


def test_the_way_out_leads_out(tmp_path: Path, official: State) -> None:
    path = saved(tmp_path, {"state_dict": official, "ema": official})
    message = refused(path, "several")
    code = message.partition("by itself, ")[2].replace("FILE", repr(str(path))).replace("'inner.pth'", "target")
    exec(code, {"torch": torch, "target": tmp_path / "inner.pth"})
    assert read_pth(tmp_path / "inner.pth").keys() == official.keys()


# ---- SSAST of a width that is not published


@pytest.mark.parametrize("width", [64, 128, 256, 320, 1024, 48])
def test_the_number_of_attention_heads_is_not_assumed(
    tmp_path: Path, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ssamba.Config(encoder="ssast", width=width, depth=1, frames=128, attention_heads=2)
    path = saved(tmp_path, official_state(config, SSAST(config).state_dict()))
    for call in (lambda: ssamba.load(path, "cpu"), lambda: describe(path), lambda: convert(path, tmp_path / "d")):
        with pytest.raises(
            CheckpointError, match=rf"SSAST of width {width}, .* attention_heads=N .* --attention-heads N"
        ):
            call()
    assert main.main(["embed", "x.wav", "--model", str(path)]) == 2
    assert ssamba.load(path, "cpu", attention_heads=2).config.attention_heads == 2
    assert main.main(["convert", str(path), str(tmp_path / "d"), "--attention-heads", "2"]) == 0
    assert ssamba.load(tmp_path / "d", "cpu").config == config.replace(drop_path=0.0)
    capsys.readouterr()
    assert main.main(["info", str(path), "--attention-heads", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["config"]["attention_heads"] == 2
    assert not any("attention heads" in line for line in facts["assumed"])


def test_info_says_what_was_assumed(tmp_path: Path, official_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ssamba.Config(encoder="ssast", width=192, depth=1, frames=128)
    path = saved(tmp_path, official_state(config, SSAST(config).state_dict()))
    assert main.main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "3 attention heads, one for each 64 values of width" in text
    assert "mean -4.267739 and std 4.568997, AudioSet's" in text
    assert main.main(["info", str(official_path)]) == 0
    text = capsys.readouterr().out
    assert "AudioSet's" in text
    assert "attention heads" not in text


def test_checking_the_numbers_of_base_is_fast() -> None:
    from ssamba.models.pretrained.tensor_checks import check_tensors

    tensors = {str(i): torch.zeros(10_000_000) for i in range(10)}
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    check_tensors(tensors, "x")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - begin < 0.3
