"""``ssamba duplicates``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.parser import real


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--index", type=Path, required=True, metavar="INDEX", help="what ssamba index made")
    parser.add_argument(
        "--threshold", type=real, metavar="X", help="lowest score of a pair, above 0 and up to 1 (default: 0.8)"
    )
    parser.add_argument("--groups", action="store_true", help="groups of recordings that are linked, not pairs")
    parser.add_argument("--exact", action="store_true", help="compare all pieces also where the index has lists")
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"), help="of the output")


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.cli.commands.archive.tables import print_rows
    from ssamba.inference.search.duplicates import groups
    from ssamba.inference.search.query import DUPLICATE_SCORE, Index

    threshold = DUPLICATE_SCORE if arguments.threshold is None else arguments.threshold
    pairs = Index(arguments.index).duplicates(threshold, arguments.exact)
    if arguments.groups:
        rows = [[number, path] for number, group in enumerate(groups(pairs), start=1) for path in group]
        print_rows(("group", "path"), rows, arguments.format)
    else:
        print_rows(("first", "second", "score", "offset"), [list(pair) for pair in pairs], arguments.format)
    return EXIT_DONE


COMMAND = Command("find recordings of an index that hold the same sound", add_options, run)
