"""Names of splits, and splitting a set that comes without any."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from ssamba.data.examples import Example
from ssamba.utils.errors import DataError, nearest

__all__ = ["SPLITS", "split_name", "stratified_folds", "stratified_split"]

SPLITS = ("train", "validation", "test")

_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


def split_name(name: str, where: str) -> str:
    """One of :data:`SPLITS` for a name in common use (val, valid, dev; eval and testing mean test).

    Raises:
        DataError: an unknown name; the message begins with ``where``.
    """
    try:
        return _NAMES[name.lower()]
    except KeyError:
        known = ", ".join(_NAMES)
        raise DataError(f"{where}: the split {name!r} is unknown{nearest(name, _NAMES)} (known: {known})") from None


def stratified_split(
    examples: Sequence[Example], seed: int, shares: tuple[float, float] = (0.1, 0.1)
) -> dict[str, list[Example]]:
    """Divide examples into train, validation and test, each class by itself.

    An example counts for its rarest label. A class of three or more gives at least one example to each held-out split
    that has a share; a class of two gives one to test, a class of one none. Which examples are held out depends on a
    hash of (seed, key), so that it is the same everywhere and files added later move few others.

    Args:
        examples: with unique keys.
        seed: another seed, another choice.
        shares: of validation and test.

    Returns:
        Split -> examples, in the given order.
    """
    side: dict[str, str] = {}
    for group in _ranked_groups(examples, seed):
        sizes = [max(1, round(len(group) * share)) if share and len(group) >= 3 else 0 for share in shares]
        if len(group) == 2 and shares[1]:
            sizes = [0, 1]
        names = ["validation"] * sizes[0] + ["test"] * sizes[1]
        names += ["train"] * (len(group) - len(names))
        side.update((example.key, name) for example, name in zip(group, names, strict=True))
    return {split: [example for example in examples if side[example.key] == split] for split in SPLITS}


def stratified_folds(examples: Sequence[Example], seed: int, folds: int) -> dict[str, list[Example]]:
    """Divide examples into ``folds`` parts of nearly equal size, each class by itself, for cross-validation.

    An example counts for its rarest label; which part it falls into depends on a hash of (seed, key). The parts are
    named 1 to ``folds``; examples keep the given order.
    """
    part: dict[str, int] = {}
    for ranked in _ranked_groups(examples, seed):
        begin = len(part)  # go on where the class before ended, so that the parts stay equal
        part.update((example.key, (begin + i) % folds) for i, example in enumerate(ranked))
    return {str(n + 1): [example for example in examples if part[example.key] == n] for n in range(folds)}


def _ranked_groups(examples: Sequence[Example], seed: int) -> list[list[Example]]:
    """The examples of each rarest label, in the order of their hashes."""
    counts = Counter(label for example in examples for label in example.labels)
    groups: dict[int, list[Example]] = {}
    for example in examples:
        rarest = min(example.labels, key=lambda label: (counts[label], label), default=-1)
        groups.setdefault(rarest, []).append(example)
    return [sorted(group, key=lambda example: _rank(example.key, seed)) for group in groups.values()]


def _rank(key: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\0{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
