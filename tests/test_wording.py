"""Words that the package does without: the field's term stands for each (CONTRIBUTING.md, "Words")."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ssamba

ROOT = Path(ssamba.__file__).parent
SUFFIXES = {".py", ".cu", ".cuh", ".yaml"}

UNWANTED = (
    r"(?i)\bperceptrons?\b",
    r"(?i)\bslopes?\b",
    r"(?i)\btokens? in front\b",
    r"(?i)\bmend(s|ed|ing)?\b",
    r"(?i)\bshown\b",
    r"(?i)\bheard\b",
    r"(?<!adapters\.)\b[Hh]ears?\b",  # HEAR is the name of a benchmark
    r"\b_?MOST_\w+",
    r"\b_?LEAST_\w+",
    r"(?i)\bguilty\b",
    r"\bbeside\b",
    r"(?i)\btold\b",
    r"\bjudged?\b",
    r"\bdraws? (patches|it|them)\b",
    r"\bof so many\b",
    r"\bPassed\b",
)
"""Patterns that no line of the source may match."""

FROZEN = {"training/loop.py": 'f"beside.{name}."'}
"""File -> text that stays there: the prefix of keys in the state files of runs."""


def lines(pattern: str) -> list[str]:
    """``file:line: text`` of each line of the source that a pattern matches, outside of ``FROZEN``."""
    found = []
    for path in sorted(p for p in ROOT.rglob("*") if p.suffix in SUFFIXES):
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        if name in FROZEN:
            assert FROZEN[name] in text, f"{name} lacks {FROZEN[name]}: take it out of FROZEN"
            text = text.replace(FROZEN[name], "")
        for number, line in enumerate(text.splitlines(), start=1):
            if re.search(pattern, line):
                found.append(f"{name}:{number}: {line.strip()}")
    return found


@pytest.mark.parametrize("pattern", UNWANTED)
def test_the_source_does_without(pattern: str) -> None:
    assert lines(pattern) == []


def test_the_search_finds_words() -> None:
    assert len(lines(r"\bimport\b")) > 100
