"""The nine official SSAMBA checkpoints by name, fetched from the authors' repository on the Hugging Face hub.

Sources: the README of the reference (github.com/SiavashShams/ssamba) names the repository, and its scripts the files as
``ssamba_{size}_{masked patches}.pth``.

The authors publish no digests. What the first download of a file brought (its sha256, and the repository's revision) is
written down next to the repository's folders in the hub's cache: later files come from the same revision, and a file
that is another one later is refused.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from ssamba.models.config import WIDTHS
from ssamba.utils.atomic_write import write_text
from ssamba.utils.errors import CheckpointError, SsambaError
from ssamba.utils.files import sha256_of
from ssamba.utils.json_text import read_json

REPOSITORY = "attentionisallyouneed369/ssamba"
PAGE = f"https://huggingface.co/{REPOSITORY}/tree/main"
MASKED = (250, 300, 400)
"""Masked patches of 512 in pretraining."""
OFFICIAL = tuple(f"ssamba-{size}-{masked}" for size in WIDTHS for masked in MASKED)
RECORD_FILE = "ssamba-digests.json"
"""What the first download brought: ``{"revision": commit, "sha256": {file: digest}}``."""
COMMIT = re.compile(r"[0-9a-f]{40}")

_log = logging.getLogger(__name__)


def file_of(name: str) -> str:
    """File name of an official checkpoint: ``ssamba-tiny-400`` -> ``ssamba_tiny_400.pth``."""
    return name.replace("-", "_") + ".pth"


def width_of(name: str) -> int:
    """Width of the encoder that an official name promises."""
    return WIDTHS[name.split("-")[1]]


def fetch(name: str) -> Path:
    """The local file of a name in ``OFFICIAL``: from the hub's cache, or downloaded into it.

    Raises ``CheckpointError`` in one line that says where to get the file instead: without huggingface_hub, without
    network, when the repository has no such file, when a download breaks off, and when the file is another one than at
    its first download.
    """
    by_hand = f"get {file_of(name)} from {PAGE} and give its path"
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError:
        raise CheckpointError(f"{name}: to download it, pip install 'ssamba[hf]'; or {by_hand}") from None
    record = Path(constants.HF_HUB_CACHE) / f"models--{REPOSITORY.replace('/', '--')}" / RECORD_FILE
    values = _read_record(record)
    try:
        revision = values["revision"]
        found = _cached(huggingface_hub, name, revision) or _downloaded(huggingface_hub, name, revision)
    except Exception as error:  # the library's own kinds differ between its versions, and those of its HTTP client too
        _log.info("%s: %r", name, error)
        raise CheckpointError(f"{name}: {_reason(error)}; {by_hand}") from None
    path = Path(found)
    _compare_with_record(name, path, record, values)
    return path


def _read_record(record: Path) -> dict[str, Any]:
    """``revision`` (a commit or None) and ``sha256`` of the first downloads. Raises ``CheckpointError`` if damaged."""
    if not record.exists():
        return {"revision": None, "sha256": {}}
    values = read_json(record, CheckpointError)
    revision, known = values.get("revision"), values.get("sha256")
    good = revision is None or (isinstance(revision, str) and COMMIT.fullmatch(revision))
    if not good or not isinstance(known, dict) or not all(isinstance(v, str) for v in known.values()):
        raise CheckpointError(f"{record}: is damaged; remove it, digests are then written down anew")
    return {"revision": revision, "sha256": known}


def _cached(hub: Any, name: str, revision: str | None) -> str | None:
    """The file in the hub's cache. A download would first ask the hub for news, and wait for it without a network."""
    found = hub.try_to_load_from_cache(REPOSITORY, file_of(name), revision=revision)
    return found if isinstance(found, str) else None


def _downloaded(hub: Any, name: str, revision: str | None) -> str:
    """The file, which the library writes under another name, compares with the stated size and renames at the end."""
    log = logging.getLogger("huggingface_hub")  # writes a line for every try; one at the end will do
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        path: str = hub.hf_hub_download(REPOSITORY, file_of(name), revision=revision)
    finally:
        log.setLevel(before)
    return path


def _compare_with_record(name: str, path: Path, record: Path, values: dict[str, Any]) -> None:
    """Write down the digest of a new file; refuse one that has changed since. Raises ``CheckpointError``."""
    found, known = sha256_of(path, CheckpointError), values["sha256"]
    expected = known.get(file_of(name), found)
    if expected != found:
        raise CheckpointError(
            f"{name}: {path} is not the file of its first download (sha256 {found[:16]}, then {expected[:16]}); remove "
            f"it to download it again, or, if it was replaced on purpose, remove {record}"
        )
    if file_of(name) in known:
        return
    commit = path.parent.name if COMMIT.fullmatch(path.parent.name) else None
    content = {"revision": values["revision"] or commit, "sha256": {**known, file_of(name): found}}
    try:
        write_text(record, json.dumps(content, indent=2, sort_keys=True) + "\n")
    except SsambaError as error:  # a cache that others have filled: the file is used all the same
        _log.info("%s", error)


def _reason(error: Exception) -> str:
    """Why a download failed, in a few words."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    # First, for it is a kind of EntryNotFoundError: neither in the cache nor to be had over the network.
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError"}:
        return "could not be downloaded, huggingface.co cannot be reached"
    if kinds & {"EntryNotFoundError", "RepositoryNotFoundError"}:
        return f"{REPOSITORY} on huggingface.co has no such file for everyone to read"
    first = next(iter(str(error).strip().splitlines()), "")[:200]
    return f"could not be downloaded ({first or type(error).__name__})"
