"""``ssamba fit``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.parser import SHIPPED_HELP, add_dataclass, add_device, add_run, given
from ssamba.cli.streams import say, warn


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from ssamba.models.pretrained.weights import DEFAULT
    from ssamba.training.fit.recipe import FitRecipe

    parser.add_argument(
        "--data", type=Path, required=True, metavar="ROOT", help="class folders, or a table of files and labels"
    )
    parser.add_argument("--from", dest="source", metavar="SOURCE", default=DEFAULT, help=SHIPPED_HELP)
    add_run(parser)
    add_device(parser)
    add_dataclass(parser, FitRecipe, exclude=("name",))


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.training.finetune.report import TABLE_FILE, headline
    from ssamba.training.fit.recipe import FitRecipe
    from ssamba.training.fit.run import fit
    from ssamba.utils.progress import progress_bar

    recipe = FitRecipe(**given(arguments, FitRecipe))
    values = fit(recipe, arguments.data, arguments.out, arguments.source, arguments.device, _note, progress_bar)
    say(headline(values))
    say(f"{arguments.out / TABLE_FILE} has every fold, {arguments.out} the model, fitted on {values['model']}")
    say(f"next: ssamba predict FILES --model {shlex.quote(str(arguments.out))}")
    return EXIT_DONE


def _note(line: str) -> None:
    warn(f"note: {line}")


COMMAND = Command("fit a classifier on a frozen model's features, in seconds", add_options, run)
