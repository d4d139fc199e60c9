"""A digest of what the files of a data set hold, from a few blocks of each, so that it costs no decoding."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from itertools import chain

from ssamba.utils.threads import ThreadPool

SAMPLE_BLOCK = 4096
WHOLE_BYTES = 4 * SAMPLE_BLOCK
"""Files of at most so many bytes are read whole."""
READING_THREADS = 8
GROUP = 256
"""Files that a thread reads at a time."""


def content_digest(files: Mapping[str, str]) -> str:
    """A digest of files by name: the size of each, and its first, middle and last 4 KiB.

    It does not depend on folders, times or machines, so that a copied data set has the same. A recording that was
    replaced by another of equal size has another one; a change of a few samples in the middle of a long file may be
    missed. A file that cannot be read counts as such.
    """
    total, paths = hashlib.blake2b(digest_size=8), list(files.values())
    groups = [paths[i : i + GROUP] for i in range(0, len(paths), GROUP)]
    with ThreadPool(READING_THREADS) as pool:
        found = chain.from_iterable(pool.map(lambda group: [_sample(path) for path in group], groups))
        for name, digest in zip(files, found, strict=True):
            total.update(name.encode("utf-8", "surrogateescape") + b"\0" + digest)
    return total.hexdigest()


def _sample(path: str) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return b"unreadable"
    try:
        size = os.fstat(handle).st_size
        if size <= WHOLE_BYTES:
            places = [(0, WHOLE_BYTES)]
        else:
            places = [(place, SAMPLE_BLOCK) for place in (0, size // 2, size - SAMPLE_BLOCK)]
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        for place, count in places:
            os.lseek(handle, place, os.SEEK_SET)
            digest.update(os.read(handle, count))
        return digest.digest()
    except OSError:
        return b"unreadable"
    finally:
        os.close(handle)
