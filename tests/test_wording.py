"""Words that the package is to lose: each may stand in the source as often as listed, and no more.

A reader looks for the field's terms (MLP, gradient, CLS token, visible patch); CONTRIBUTING.md lists them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ssamba

ROOT = Path(ssamba.__file__).parent
SUFFIXES = {".py", ".cu", ".cuh", ".yaml"}

ALLOWED = {
    r"(?i)\bperceptrons?\b": 5,
    r"(?i)\bslopes?\b": 20,
    r"(?i)\btokens? in front\b": 14,
    r"(?i)\bmend(s|ed|ing)?\b": 13,
    r"(?i)\bshown\b": 42,
    r"(?i)\bheard\b": 27,
    r"(?i)\bhears?\b": 10,
    r"\b_?MOST_\w+": 32,
    r"\b_?LEAST_\w+": 11,
    r"(?i)\bguilty\b": 3,
    r"\bbeside\(": 9,
    r"(?i)\btold\b": 9,
    r"\bjudged?\b": 12,
    r"\bdraws? (patches|it|them)\b": 3,
    r"\bof so many\b": 4,
    r"\bPassed\b": 8,
}
"""Pattern -> lines of the source that may match it. Lower a number when words go; never raise one."""


def lines(pattern: str) -> list[str]:
    """``file:line: text`` of each line of the source that a pattern matches."""
    found = []
    for path in sorted(p for p in ROOT.rglob("*") if p.suffix in SUFFIXES):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(pattern, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return found


@pytest.mark.parametrize("pattern", ALLOWED)
def test_no_more_of_this_word(pattern: str) -> None:
    found = lines(pattern)
    assert len(found) <= ALLOWED[pattern], "\n".join(found)


def test_the_search_finds_words() -> None:
    assert len(lines(r"\bimport\b")) > 100
