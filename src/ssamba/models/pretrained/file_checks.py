"""Digests of a run's small files, listed in ``checks.json``: a changed number in one of them is seen, and reported.

Weights and states have digests of their own. What a run has written to its end (its recipe, log, summary and results)
is listed here with its SHA-256. A folder without the list, of an older version, is not checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from ssamba.utils.atomic_write import write_text
from ssamba.utils.errors import SsambaError
from ssamba.utils.files import read_text, sha256_of
from ssamba.utils.json_text import parse_json
from ssamba.utils.terminal import note

CHECKS_FILE = "checks.json"


def record_files(folder: Path, written: Iterable[str], kept: Iterable[str] = ()) -> None:
    """List files of a folder by their names in it, those that exist: ``written`` as they are now.

    ``kept`` are those that were not written since they were listed: the digest that they have in the list stays. So
    does what else is listed. Raises ``WriteError``.
    """
    files = _listed(folder)[0]
    written = set(written)
    for name in written.union(kept):
        if (name in written or name not in files) and (folder / name).is_file():
            files[name] = sha256_of(folder / name)
    _write(folder, files)


def forget_files(folder: Path, but: Iterable[str] = ()) -> None:
    """Take files off the list that are about to change, all ``but`` these. Raises ``WriteError``."""
    files, but = _listed(folder)[0], set(but)
    if not files.keys() <= but:
        _write(folder, {name: digest for name, digest in files.items() if name in but})


def changed_files(folder: Path) -> list[str]:
    """As ``differing_files``, with a warning for each."""
    changed = differing_files(folder)
    for name in changed:
        note(f"{folder / name}: is damaged or was edited: it is not what the run wrote")
    return changed


def differing_files(folder: Path) -> list[str]:
    """Files that are not what the list says, the list itself included.

    A file that is missing is none of them: what needs it says so.
    """
    files, changed = _listed(folder)
    for name, digest in files.items():
        try:
            if not (folder / name).exists() or sha256_of(folder / name) == digest:
                continue
        except SsambaError:
            pass  # cannot be read
        changed.append(name)
    return changed


def _listed(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Digest by name, and the list's own name where it is damaged: it is as empty then."""
    path = folder / CHECKS_FILE
    if not path.exists():
        return {}, []
    try:
        text = read_text(path)
        files = parse_json(text, str(path))["files"]
        if _text(files) == text:
            return files, []
    except (SsambaError, KeyError, TypeError, AttributeError):
        pass
    return {}, [CHECKS_FILE]


def _write(folder: Path, files: dict[str, str]) -> None:
    write_text(folder / CHECKS_FILE, _text(files))


def _text(files: dict[str, str]) -> str:
    """The whole file: its content covers itself."""
    files = dict(sorted(files.items()))
    total = hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in files.items()).encode()).hexdigest()
    return json.dumps({"files": files, "digest": total}, indent=2) + "\n"
