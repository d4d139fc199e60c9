"""``ssamba convert``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.parser import HEADS_HELP, SOURCE_HELP, positive
from ssamba.cli.streams import say


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("dest", type=Path, metavar="DEST", help="a new directory, or a new .pth")
    parser.add_argument("--half", action="store_true", help="write a directory in fp16, half as large, to hand on")
    parser.add_argument("--attention-heads", type=positive, metavar="N", help=HEADS_HELP)
    parser.add_argument(
        "--decay",
        choices=("free", "tied"),
        help="tied: keep one decay a channel, where those of an official file allow it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.models.pretrained.convert import convert

    a = arguments
    for line in convert(a.source, a.dest, a.half, a.attention_heads, a.decay):
        say(line)
    return EXIT_DONE


COMMAND = Command("convert an official .pth to a model directory, or back", add_options, run)
