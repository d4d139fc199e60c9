"""``ssamba stats``."""

from __future__ import annotations

import argparse

from ssamba.cli.commands.common import DATA_HELP, Command, list_unreadable
from ssamba.cli.streams import say_lines


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("data", nargs="+", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.models.pretrained.describe import as_json, data_statistics, statistics_line
    from ssamba.utils.progress import Bar

    with Bar("measuring", "files") as bar:
        facts, failures = data_statistics(arguments.data, bar.update)
    say_lines(as_json(facts) if arguments.json else statistics_line(facts))
    return list_unreadable(failures)


COMMAND = Command("measure mean and deviation of log-mel over audio files", add_options, run)
