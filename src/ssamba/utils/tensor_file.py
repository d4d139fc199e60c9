"""Tensor files (safetensors) with a digest of their content: written whole or not at all, checked when read.

The digest covers the names, types, shapes and bytes of all tensors and the other metadata. It stands in the file's own
metadata, so that the file stays one that any safetensors reader takes. Files of other writers have none; they are
checked for everything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.utils.atomic_write import atomic_write
from ssamba.utils.errors import CheckpointError, ConfigError, SsambaError
from ssamba.utils.files import open_regular
from ssamba.utils.json_text import parse_json
from ssamba.utils.terminal import shorten

DIGEST = "sha256"
"""Key of the digest in the metadata."""
HEADER_LIMIT = 16 << 20
"""Most bytes of a header: names, types and shapes of the tensors, and the metadata."""
BLOCK_BYTES = 1 << 20
"""Bytes read at a time when a file is only checked."""
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}


class Entry(NamedTuple):
    """A tensor in a file: its type, its shape, and where its bytes lie after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What stands before the bytes of the tensors.

    Attributes:
        entries: name -> tensor.
        metadata: name -> text, the digest included.
        size: bytes before the first tensor.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]
    size: int


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file with a digest, whole or not at all; return the digest.

    Raises ``SsambaError`` when it cannot be written.
    """
    with atomic_write(path) as temporary:
        return write_content(temporary, tensors, metadata)


def write_content(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """The content of such a file, into one that ``atomic_write`` gave; the digest. Raises ``OSError``."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = {"format": "pt", **(metadata or {})}
    digest = digest_of(plain, texts)
    # Written here, not by the library, whose order of metadata differs from process to process: equal runs write equal
    # files. Larger types come first, so that each tensor lies aligned.
    names = sorted(plain, key=lambda name: (-plain[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted({**texts, DIGEST: digest}.items()))}
    position = 0
    for name in names:
        end = position + plain[name].numel() * plain[name].element_size()
        header[name] = {
            "dtype": _NAMES[plain[name].dtype],
            "shape": list(plain[name].shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(_bytes_of(plain[name]))
    return digest


def renew_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """As ``write_tensors``; a good file that holds the same already is not touched."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        found = verify_tensors(path)
    except CheckpointError:
        found = None
    if found != digest_of(plain, {"format": "pt", **(metadata or {})}):
        write_tensors(path, plain, metadata)


def read_tensors(
    path: Path, error: type[SsambaError] = CheckpointError, digest_required: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, in memory that the caller owns.

    ``digest_required`` refuses a file without a digest. Raises ``error`` naming the file: missing, no regular file,
    damaged, or not what its digest says.
    """
    header = read_header(path, error)
    tensors: dict[str, Tensor] = {}
    with open_regular(path, error) as file:
        for name, entry in sorted(header.entries.items(), key=lambda item: item[1].begin):
            file.seek(header.size + entry.begin)
            content = bytearray(entry.end - entry.begin)
            if file.readinto(content) != len(content):
                raise error(f"{path}: is truncated")
            empty = torch.empty(0, dtype=entry.dtype, device="cpu")
            flat = torch.frombuffer(content, dtype=entry.dtype) if content else empty
            tensors[name] = flat.reshape(entry.shape)
    stated = header.metadata.get(DIGEST)
    if stated is None and digest_required:
        raise error(f"{path}: is damaged or not written by ssamba (it has no digest)")
    if stated is not None and stated != digest_of(tensors, header.metadata):
        raise error(f"{path}: is damaged (its content does not fit its digest); restore it from a copy")
    return tensors, header.metadata


def verify_tensors(path: Path, error: type[SsambaError] = CheckpointError) -> str | None:
    """Compare a file with its digest, block by block, and return it; None for a file that has none.

    The blocks come from the disk where the system can be asked for it, not from its memory of what was written. Raises
    ``error`` as ``read_tensors``.
    """
    header = read_header(path, error)
    stated = header.metadata.get(DIGEST)
    if stated is None:
        return None
    total = _begin_digest(header.metadata)
    block = bytearray(BLOCK_BYTES)
    with open_regular(path, error) as file:
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for name in sorted(header.entries):
            entry = header.entries[name]
            total.update(_described(name, _NAMES[entry.dtype], entry.shape))
            file.seek(header.size + entry.begin)
            left = entry.end - entry.begin
            while left:
                count = file.readinto(memoryview(block)[: min(left, BLOCK_BYTES)])
                if not count:
                    raise error(f"{path}: is truncated")
                total.update(memoryview(block)[:count])
                left -= count
    if total.hexdigest() != stated:
        raise error(f"{path}: is damaged (its content does not fit its digest); restore it from a copy")
    return stated


def read_header(path: Path, error: type[SsambaError] = CheckpointError) -> Header:
    """The header of a safetensors file, checked against the file's size; no tensor is read. Raises ``error``."""
    with open_regular(path, error) as file:
        total = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(HEADER_LIMIT, total - 8):
            raise error(f"{path}: is damaged or no safetensors file (it states a header of {length:,} bytes)")
        raw = file.read(length)
    try:
        values = parse_json(raw.decode("utf-8"), "header", ConfigError)
    except (ConfigError, UnicodeDecodeError) as problem:
        raise error(f"{path}: is damaged or no safetensors file ({problem})") from None
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise error(f"{path}: is damaged or no safetensors file (its metadata are no texts)")
    entries = {name: _entry(path, name, value, error) for name, value in values.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise error(
                f"{path}: is damaged or no safetensors file ({shorten(name)[1:-1]} does not follow the tensor before)"
            )
        position = entry.end
    described = 8 + length + position
    if described != total:
        raise error(f"{path}: is damaged or no safetensors file ({total:,} bytes, its header describes {described:,})")
    return Header(entries, metadata, 8 + length)


def _entry(path: Path, name: str, value: Any, error: type[SsambaError]) -> Entry:
    try:
        kind, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise error(f"{path}: is damaged or no safetensors file (the entry of {shorten(name)[1:-1]} cannot be read)")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise error(f"{path}: {shorten(name)[1:-1]} has the type {shorten(kind)}; convert it to F32")
    count = 1
    for number in shape:
        count *= number
    if end - begin != count * _TYPES[kind].itemsize or len(shape) > 16:
        raise error(f"{path}: is damaged or no safetensors file (shape and bytes of {shorten(name)[1:-1]} do not fit)")
    return Entry(_TYPES[kind], tuple(shape), begin, end)


def digest_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """SHA-256, in hexadecimal, of names, types, shapes and bytes of tensors, and of the metadata but for the digest."""
    total = _begin_digest(metadata or {})
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(_described(name, _NAMES.get(tensor.dtype, str(tensor.dtype)), tensor.shape))
        total.update(_bytes_of(tensor))
    return total.hexdigest()


def _begin_digest(metadata: Mapping[str, str]) -> hashlib._Hash:
    texts = {key: text for key, text in metadata.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode())


def _described(name: str, kind: str, shape: Sequence[int]) -> bytes:
    return json.dumps([name, kind, list(shape)]).encode()


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
