"""``ssamba fit``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command, say_classifier, say_note
from ssamba.cli.parser import SHIPPED_HELP, add_dataclass, add_device, add_labels, add_run, given


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from ssamba.models.pretrained.weights import DEFAULT
    from ssamba.training.fit.recipe import FitRecipe

    parser.add_argument(
        "--data", type=Path, required=True, metavar="ROOT", help="class folders, or a table of files and labels"
    )
    parser.add_argument("--from", dest="source", metavar="SOURCE", default=DEFAULT, help=SHIPPED_HELP)
    add_labels(parser)
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
    places = (arguments.data, arguments.out, arguments.source, arguments.device, say_note, progress_bar)
    values = fit(recipe, *places, labels=arguments.labels, background=arguments.background)
    say_classifier(arguments.out, headline(values), arguments.out / TABLE_FILE, f", fitted on {values['model']}")
    return EXIT_DONE


COMMAND = Command("fit a classifier on a frozen model's features, in seconds", add_options, run)
