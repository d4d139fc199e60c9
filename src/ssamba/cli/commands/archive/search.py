"""``ssamba search``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.parser import SOURCE_HELP, add_device, add_dtype, positive, seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("query", metavar="QUERY", help="an audio file")
    parser.add_argument("--index", type=Path, required=True, metavar="INDEX", help="what ssamba index made")
    parser.add_argument("--start", type=seconds, metavar="S", help="the stretch of the query begins at this second")
    parser.add_argument("--seconds", type=seconds, metavar="S", help="length of the stretch (default: to the end)")
    parser.add_argument("--top", type=positive, default=10, metavar="N", help="how many recordings")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--fast",
        action="store_true",
        help="match in time only where the vectors of pieces are near (an index with --approximate: always)",
    )
    which.add_argument("--exact", action="store_true", help="match in time with every recording of any index")
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"), help="of the output")
    parser.add_argument("--model", metavar="SOURCE", help=f"{SOURCE_HELP} (default: the one that the index names)")
    add_device(parser)
    add_dtype(parser, None, "(default: the index's)")


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.cli.commands.archive.tables import print_rows
    from ssamba.inference.search.query import Index
    from ssamba.utils.errors import ConfigError

    if arguments.seconds == 0:
        raise ConfigError("--seconds 0: give a length above 0")
    index = Index(arguments.index, arguments.model, arguments.device, arguments.dtype)
    fast = False if arguments.exact else arguments.fast or None
    found = index.search(
        arguments.query, start=arguments.start, seconds=arguments.seconds, top=arguments.top, fast=fast
    )
    rows = [[match.path, match.score, match.offset] for match in found]
    print_rows(("path", "score", "offset"), rows, arguments.format)
    return EXIT_DONE


COMMAND = Command("find the recordings of an index that are most like one, and where", add_options, run)
