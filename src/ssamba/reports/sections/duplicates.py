"""Near-duplicates of an index: pairs of recordings that hold the same sound, both to be played."""

from __future__ import annotations

import shlex

from ssamba.inference.outputs.html import escape
from ssamba.inference.search.duplicates import Pair, groups
from ssamba.inference.search.query import DUPLICATE_SCORE
from ssamba.reports.material import Material
from ssamba.reports.page import Section, data_table, remark
from ssamba.reports.runs import INDEX

MAX_SEARCHED = 20_000
"""Recordings among which pairs are looked for."""
LISTED_DUPLICATES = 100


def find_duplicates(material: Material) -> list[Pair]:
    """The pairs of an index of bounded size, the best first."""
    index = material.index
    return [] if index is None or not 0 < len(index) <= MAX_SEARCHED else index.duplicates()


def duplicates_section(material: Material, pairs: list[Pair]) -> Section | str:
    """The section, or why there is none."""
    index = material.index
    if material.run.kind != INDEX or index is None:
        return "Near-duplicates: they are looked for in an index (ssamba index)."
    if len(index) > MAX_SEARCHED:
        return (
            f"Near-duplicates: {len(index):,} recordings are more than {MAX_SEARCHED:,}; ssamba duplicates --index "
            f"{shlex.quote(str(material.run.folder))} finds them."
        )
    if not pairs:
        return f"Near-duplicates: no pair of recordings has a score of {DUPLICATE_SCORE:g} or more."
    linked = groups(pairs)
    rows = [
        [
            _named(material, pair.first),
            _named(material, pair.second),
            f"{pair.score:.3f}",
            f"{round(pair.offset, 2) + 0.0:.2f}",
        ]
        for pair in pairs[:LISTED_DUPLICATES]
    ]
    head = ["first", "second", "score", "offset (s)"]
    said = (
        f"{len(pairs)} pairs with a score of {DUPLICATE_SCORE:g} or more, {sum(map(len, linked))} recordings in "
        f"{len(linked)} groups. 1 is the same recording; the offset is the second of the first at which the second "
        "begins. Steady sounds score high although they share no second."
    )
    table = data_table(head, rows, f"The {len(rows)} highest pairs", raw=(0, 1))
    return Section("duplicates", "Near-duplicates", remark(said) + table)


def _named(material: Material, path: str) -> str:
    number = material.number_of(path)
    button = "" if number is None else material.store.play_button(number) + " "
    return f'{button}<span title="{escape(path)}">{escape(path.replace(chr(92), "/").rsplit("/", 1)[-1])}</span>'
