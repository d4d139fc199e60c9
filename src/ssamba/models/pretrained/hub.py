"""The nine official SSAMBA checkpoints by name, fetched from the authors' repository on the Hugging Face hub.

Sources: the README of the reference (github.com/SiavashShams/ssamba) names the repository, and its scripts the files as
``ssamba_{size}_{masked patches}.pth``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ssamba.models.config import WIDTHS
from ssamba.utils.errors import CheckpointError

REPOSITORY = "attentionisallyouneed369/ssamba"
PAGE = f"https://huggingface.co/{REPOSITORY}/tree/main"
MASKED = (250, 300, 400)
"""Masked patches of 512 in pretraining."""
OFFICIAL = tuple(f"ssamba-{size}-{masked}" for size in WIDTHS for masked in MASKED)

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
    network, when the repository has no such file, and when a download breaks off.
    """
    by_hand = f"get {file_of(name)} from {PAGE} and give its path"
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(f"{name}: to download it, pip install 'ssamba[hf]'; or {by_hand}") from None
    try:
        return Path(_cached(huggingface_hub, name) or _downloaded(huggingface_hub, name))
    except Exception as error:  # the library's own kinds differ between its versions, and those of its HTTP client too
        _log.info("%s: %r", name, error)
        raise CheckpointError(f"{name}: {_reason(error)}; {by_hand}") from None


def _cached(hub: Any, name: str) -> str | None:
    """The file in the hub's cache. A download would first ask the hub for news, and wait for it without a network."""
    found = hub.try_to_load_from_cache(REPOSITORY, file_of(name))
    return found if isinstance(found, str) else None


def _downloaded(hub: Any, name: str) -> str:
    log = logging.getLogger("huggingface_hub")  # writes a line for every try; one at the end will do
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        path: str = hub.hf_hub_download(REPOSITORY, file_of(name))
    finally:
        log.setLevel(before)
    return path


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
