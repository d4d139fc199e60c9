"""Untrusted `.pth` files: looked through before torch opens them, then read as tensors and nothing else.

Nothing in a file is executed (``weights_only``), and none takes much more memory than its size: what a zip archive
unpacks to and how large its pickle is are bounded beforehand.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ssamba.models.pretrained.tensor_checks import check_memory, check_tensors
from ssamba.utils.errors import CheckpointError
from ssamba.utils.files import open_regular
from ssamba.utils.terminal import shorten

MARK = "v.pos_embed"
"""The key of every official file, by which its state dict is found inside of a larger one."""
DIRECTORY_LIMIT = 4 << 20
"""Most bytes of a zip archive's directory: some 50,000 tensors."""
PICKLE_LIMIT = 4 << 20
"""Most bytes of the pickle that says what the tensors are called and how they lie: some 30,000 tensors."""
_UNPACKED = 2
"""What an archive may unpack to, as a multiple of its size. torch compresses nothing."""
_LEGACY_PICKLES = 5
_REFUSED = ("builtins bytearray", "__builtin__ bytearray")
"""What torch would make of a few bytes with any number of zeros."""
_STARTS = {
    b"<": "it is a web page or XML, perhaps an error page in the place of a download",
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the file itself with git lfs pull",
    b"\x1f\x8b": "it is compressed with gzip; unpack it first",
    b"BZh": "it is compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "it is compressed with xz; unpack it first",
    b"(\xb5/\xfd": "it is compressed with Zstandard; unpack it first",
    b"\x89HDF": "it is an HDF5 file",
    b"\x93NUMPY": "it is a NumPy array",
    b"GGUF": "it is a GGUF file",
}


def read_pth(path: Path) -> dict[str, Tensor]:
    """A state dict from an untrusted `.pth`: only tensors are read, nothing in the file is executed.

    A state dict inside of a larger checkpoint, and a common prefix of its keys (``model.``), are found where there is
    only one. Raises ``CheckpointError`` for files that hold anything else, for those that would unpack to much more
    than their size, and for tensors that no model has.
    """
    size = _inspect(path)
    try:
        with warnings.catch_warnings():  # the refusal says it all
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # the unpickler raises many kinds; each means that the file is not plain tensors
        # torch's own message advises to load the file unsafely. Only the name of what the file asked for is useful.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _refusal(path, f"it asks for {asked[1]}" if asked else "it is damaged, or something else") from None
    state = _without_prefix(_state_dict(loaded, path), path)
    check_memory(state, size, path)
    check_tensors(state, path)
    return state


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: is not a plain file of tensors and was not loaded: {reason}")


def _inspect(path: Path) -> int:
    """The size of a file that is a zip archive or a pickle of bounded content. Raises ``CheckpointError``."""
    with open_regular(path, CheckpointError) as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(512)
        file.seek(0)
        if start.startswith(b"PK\x03\x04"):
            _check_archive(file, size, path)
        elif start.startswith(b"\x80"):
            head = file.read(PICKLE_LIMIT)
            _check_pickles(head, _LEGACY_PICKLES, len(head) < size, path)
        else:
            raise _refusal(path, _kind(start))
    return size


def _kind(start: bytes) -> str:
    """What a file that torch did not write is, by its first 512 bytes."""
    if not start:
        return "it is empty"
    for mark, kind in _STARTS.items():
        if start.lstrip().startswith(mark):
            return kind
    if start[257:262] == b"ustar":
        return "it is a tar archive; unpack it first"
    if start[8:10] in (b'{"', b"{ ") or start[8:9] == b"{":
        return "it is a safetensors file; give the directory that holds it with its config.json"
    return "it is damaged, or something else"


def _check_archive(file: BinaryIO, size: int, path: Path) -> None:
    """Refuse an archive that unpacks to more than ``_UNPACKED`` times its size, and a TorchScript program."""
    stated = _directory_size(file, size)
    if stated is None:
        raise _refusal(path, "it is damaged, or something else")
    if stated > DIRECTORY_LIMIT:
        raise _refusal(path, f"the directory of its archive has more than {DIRECTORY_LIMIT:,} bytes")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if total > _UNPACKED * size + (1 << 20):
                raise _refusal(path, f"it has {size:,} bytes and would unpack to {total:,}; save it uncompressed")
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise _refusal(path, "it is a TorchScript program; save the state dict of its model instead")
            for entry in entries:
                if entry.filename.endswith("/data.pkl"):
                    with archive.open(entry) as pickled:
                        head = pickled.read(PICKLE_LIMIT)
                    _check_pickles(head, 1, len(head) < entry.file_size, path)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError, struct.error):
        raise _refusal(path, "it is damaged, or something else") from None


def _directory_size(file: BinaryIO, size: int) -> int | None:
    """Bytes that the end of a zip archive states for its directory, the larger of both forms; None without an end."""
    file.seek(max(0, size - 42))
    tail = file.read(42)
    if len(tail) < 42 or tail[20:24] != b"PK\x05\x06":
        return None
    stated: int = struct.unpack("<I", tail[32:36])[0]
    if tail[:4] == b"PK\x06\x07":  # the form for large archives, which counts where it is there
        stated = 0 if stated == 0xFFFFFFFF else stated
        file.seek(min(struct.unpack("<Q", tail[8:16])[0], size))
        large = file.read(56)
        if len(large) == 56:
            stated = max(stated, struct.unpack("<Q", large[40:48])[0])
    return stated


def _check_pickles(head: bytes, count: int, cut: bool, path: Path) -> None:
    """Look through the first ``count`` pickles for what takes memory without end. ``cut``: the file goes on."""
    stream = io.BytesIO(head)
    try:
        for _ in range(count):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST") and argument in _REFUSED:
                    raise _refusal(path, f"it asks for {argument.replace(' ', '.')}")
    except ValueError:  # damaged, or not the five pickles of torch: it will say so
        if cut:
            raise _refusal(path, f"it is damaged, or its pickle has more than {PICKLE_LIMIT:,} bytes") from None


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict that a file is or holds. Raises ``CheckpointError`` where there is none, or several."""
    if _is_state(loaded):
        state: dict[str, Tensor] = loaded
        return state
    found = {k: v for k, v in loaded.items() if _is_state(v)} if isinstance(loaded, dict) else {}
    marked = [k for k, v in found.items() if isinstance(k, str) and any(name.endswith(MARK) for name in v)]
    if len(marked) == 1:
        inner: dict[str, Tensor] = found[marked[0]]
        return inner
    if not marked:
        keys = f", but {', '.join(shorten(k, 40) for k in list(loaded)[:5])}" if isinstance(loaded, dict) else ""
        raise CheckpointError(f"{path}: holds something else than a state dict of tensors{keys}")
    names = ", ".join(shorten(k, 40) for k in marked[:5])
    raise CheckpointError(
        f"{path}: holds several state dicts, {names}: save the one you mean by itself, "
        f"torch.save(torch.load(FILE, weights_only=True)[{shorten(marked[0], 40)}], 'inner.pth')"
    )


def _without_prefix(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The keys as in an official file, without what a larger model put in front of them (``model.``)."""
    fronts = sorted({k.removesuffix(MARK) for k in state if k.endswith(MARK)})
    if not fronts or fronts[0] in ("", "module."):
        return state
    front = fronts[0]
    others = [k for k in state if not k.startswith(front)]
    if not others:
        return {k.removeprefix(front): v for k, v in state.items()}
    raise CheckpointError(
        f"{path}: its state dict holds a model under {shorten(front)} and also {shorten(others[0])}: save the "
        f"model's part by itself, torch.save({{k.removeprefix({shorten(front)}): v for k, v in STATE.items() if "
        f"k.startswith({shorten(front)})}}, 'inner.pth')"
    )
