"""``ssamba report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.parser import add_device, whole
from ssamba.cli.streams import say


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from ssamba.reports.make import DEFAULT_CLIPS

    parser.add_argument(
        "folder", type=Path, metavar="RUN", help="folder of a pretraining, fine-tuning, fit, probe or index"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="the page (default: RUN/report.html)")
    parser.add_argument(
        "--clips", type=whole, metavar="N", default=DEFAULT_CLIPS, help="recordings to read at most, 0 for none"
    )
    parser.add_argument("--no-audio", action="store_true", help="no players: nothing of the recordings can be played")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the run's recordings lie now, if they moved")
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.reports.make import report
    from ssamba.utils.progress import progress_bar

    out = report(
        arguments.folder,
        arguments.out,
        arguments.clips,
        not arguments.no_audio,
        arguments.data,
        arguments.device,
        progress_bar,
    )
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, opens in any browser without a network")
    return EXIT_DONE


COMMAND = Command("write what a run or an index shows as one page, with charts and players", add_options, run)
