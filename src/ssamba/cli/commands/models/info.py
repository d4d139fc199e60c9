"""``ssamba info``."""

from __future__ import annotations

import argparse

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.parser import HEADS_HELP, SHIPPED_HELP, positive
from ssamba.cli.streams import say_lines


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", nargs="?", metavar="SOURCE", help=SHIPPED_HELP)
    parser.add_argument("--attention-heads", type=positive, metavar="N", help=HEADS_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.models.pretrained.describe import as_json, as_text, describe

    facts = describe(arguments.source, arguments.attention_heads)
    say_lines(as_json(facts) if arguments.json else as_text(facts))
    return EXIT_DONE


COMMAND = Command("show what a model or run holds", add_options, run)
