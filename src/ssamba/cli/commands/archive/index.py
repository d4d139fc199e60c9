"""``ssamba index``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import DATA_HELP, Command, list_unreadable, say_note
from ssamba.cli.parser import SOURCE_HELP, add_device, add_dtype, add_passes
from ssamba.cli.streams import say

MANY_PIECES = 1_000_000
"""Vectors from which a comparison with all of them takes several seconds (docs/similarity.md)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"{DATA_HELP}; none updates what an index holds")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="INDEX", help="the index, a folder; an existing one is updated"
    )
    parser.add_argument("--model", metavar="SOURCE", help=f"{SOURCE_HELP} (default: the index's, tiny for a new one)")
    parser.add_argument("--relative", action="store_true", help="store paths from the index's folder on")
    parser.add_argument(
        "--space",
        default="auto",
        choices=("auto", "fitted", "plain"),
        help="space of the vectors: auto takes the one learned for tiny, for other models one fitted to the files",
    )
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="make lists for fast search in large indexes (needs faiss, the extra [search]); updates keep them in step",
    )
    add_device(parser)
    add_dtype(parser, None, "(default: the index's, fp32 for a new one)")
    add_passes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.inference.search.make import index
    from ssamba.utils.progress import Bar

    with Bar("indexing") as bar:
        report = index(
            arguments.files,
            arguments.out,
            arguments.model,
            relative=arguments.relative or None,
            space=arguments.space,
            approximate=arguments.approximate,
            device=arguments.device,
            dtype=arguments.dtype,
            batch=arguments.batch,
            threads=arguments.threads,
            progress=bar.update,
        ).report
    assert report is not None
    twice = f", {report.again} given twice" if report.again else ""
    say(
        f"{arguments.out}: {report.total} recordings ({report.added} read, {report.kept} as they were, "
        f"{report.dropped} gone{twice}), {report.space} space"
        + (", lists for approximate search" if report.approximate else "")
    )
    if report.pieces > MANY_PIECES and not report.approximate:
        say_note(f"{report.pieces:,} vectors of pieces; --approximate makes lists that search finds them by")
    return list_unreadable(report.failures)


COMMAND = Command("make an index of recordings for search, or update it", add_options, run)
