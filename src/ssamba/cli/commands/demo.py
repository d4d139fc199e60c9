"""``ssamba demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.streams import say_lines


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what the demo writes")


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.cli import demo

    say_lines(demo.run(arguments.out))
    return EXIT_DONE


COMMAND = Command("train and use a small model on synthetic sounds", add_options, run)
