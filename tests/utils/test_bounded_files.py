"""Files from elsewhere: special files, sizes, texts that blow up, damaged tensors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ssamba.utils.errors import CheckpointError, ConfigError
from ssamba.utils.files import open_regular, read_bytes, read_text
from ssamba.utils.json_text import parse_json
from ssamba.utils.tensor_file import read_header, read_tensors, write_tensors
from ssamba.utils.terminal import printable, shorten
from ssamba.utils.yaml_text import parse_yaml

TENSORS = {
    "matrix": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)),
    "count": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "half": torch.ones(4, 3).bfloat16().T,
    "mask": torch.tensor([True, False]),
}


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_special_files_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    server = socket.socket(socket.AF_UNIX)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=f"^{path}: (is|cannot)"):
        open_regular(path)
    server.close()
    assert time.monotonic() - begin < 1


def test_sizes_are_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"has 1,099,511,627,776 bytes, at most 67,108,864 are read"):
        read_bytes(path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 0xe9 at 3\)"):
        read_text(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested more than 32"),
        ('{"a":' * 2000, "nested more than 32"),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ('{"a": 1e999}', "1e999 is out of range"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("[1]", "holds a list, expected a JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_json_that_blows_up_or_misleads(text: str, reason: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_json(text, "x.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.monotonic() - begin < 5


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(10)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ALIASES, "aliases"),
        ("[" * 100_000, "nested more than 32"),
        ("a: " + "9" * 5000, "a number of 5000 characters in line 1"),
        ("a: 1:" + "1:" * 500 + "1", "a number of 1003 characters"),
        ("lr: 1\nlr: 2", "the key 'lr' stands twice"),
        ("a: 2001-01-01", "type 'timestamp' are not read, put quotes around it"),
        ("!!python/object/apply:os.system [id]", "os.system' are not read"),
        ("!!set {a}", "type 'set'"),
        ("? [a]\n: 1", "unhashable"),
        ("\x00", "not allowed"),
        ('a: !!int ""', "is not YAML"),
        ("a: {b", "is not YAML"),
    ],
)
def test_yaml_that_blows_up_or_misleads(text: str, reason: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_yaml(text, "x.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.monotonic() - begin < 5


def test_tensors_are_those_that_the_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"state": "{}"})
    ours, texts = read_tensors(path)
    theirs = safetensors.torch.load_file(path)
    assert texts["state"] == "{}"
    assert ours.keys() == theirs.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(ours[name], tensor)
        assert torch.equal(theirs[name], tensor)
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
    safetensors.torch.save_file({k: v.contiguous() for k, v in TENSORS.items()}, path)
    assert torch.equal(read_tensors(path)[0]["matrix"], TENSORS["matrix"])
    with pytest.raises(CheckpointError, match="has no digest"):
        read_tensors(path, digest_required=True)


def test_equal_tensors_make_equal_files_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from ssamba.utils.tensor_file import write_tensors;"
        "write_tensors(Path(sys.argv[1]), {n: torch.arange(5.0) for n in 'abc'}, {'x': '1', 'state': '{}', 'z': ''})"
    )
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_every_flipped_bit_is_detected_or_harmless(tmp_path: Path) -> None:
    """A flip may only go unnoticed in the key of the digest, which then is not compared."""
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"state": '{"step": 3}'})
    good = path.read_bytes()
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            path.write_bytes(bad)
            with pytest.raises(CheckpointError, match=r"damaged|type"):
                read_tensors(path, digest_required=True)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 100, -1])
def test_truncated_tensors(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        read_header(path)


def test_claimed_sizes_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="its header describes 4,000,000,000,0"):
        read_tensors(path)
    path.write_bytes((1 << 40).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="a header of 1,099,511,627,776 bytes"):
        read_tensors(path)


def test_text_for_a_terminal() -> None:
    assert printable("plain é 音.wav") == "plain é 音.wav"
    assert printable("a\x1b[31m\n\x07b\u202ec\udce9") == "a\\x1b[31m\\x0a\\x07b\\u202ec\\udce9"
    assert shorten(10**5000) == "a number of about 4983 digits"
    assert len(shorten(["x"] * 10**6)) <= 80
    assert len(shorten("x" * 10**6)) <= 80
    nested: list[object] = []
    for _ in range(30):
        nested = [nested, nested]
    assert shorten(nested) == "list of 2"
