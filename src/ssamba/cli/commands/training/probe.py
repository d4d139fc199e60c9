"""``ssamba probe``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.parser import add_dtype, add_model, real
from ssamba.cli.streams import say_lines


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "recipe", metavar="RECIPE|LAYOUT", help="a data set's layout, or a recipe (.yaml) that names it"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder of the data set")
    add_model(parser)
    add_dtype(parser)
    parser.add_argument("--layer", default="last", metavar="N|all|last", help="whose tokens to take, from 1")
    parser.add_argument("--c", type=real, nargs="+", metavar="X", help="values of the regression's C to choose from")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the features, for the next time, and results.json"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.evaluation.probe.probe import layout_of, probe, probe_table
    from ssamba.inference.load import load
    from ssamba.models.pretrained.weights import DEFAULT
    from ssamba.utils.progress import progress_bar

    layout = layout_of(arguments.recipe)
    model = load(arguments.model, arguments.device, dtype=arguments.dtype)
    source = arguments.model or DEFAULT
    result = probe(layout, arguments.data, model, arguments.layer, arguments.out, source, progress_bar, arguments.c)
    say_lines(probe_table(result))
    return EXIT_DONE


COMMAND = Command("score a frozen model's features on a labelled data set", add_options, run)
