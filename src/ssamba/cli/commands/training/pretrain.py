"""``ssamba pretrain``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import DATA_HELP, EXIT_DONE, EXIT_SOME_UNREADABLE, Command, launch_processes
from ssamba.cli.parser import SOURCE_HELP, add_dataclass, add_devices, add_run, given


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from ssamba.training.pretrain.recipe import PretrainRecipe

    parser.usage = "ssamba pretrain DATA [DATA ...] --out RUN [options]"
    parser.add_argument("data", nargs="+", metavar="DATA", help=f"{DATA_HELP}, with a share as PATH=0.7 if wanted")
    add_run(parser)
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE", help="YAML of the values below (default: the reference's)"
    )
    parser.add_argument("--from", dest="source", metavar="SOURCE", help=f"start from these weights: {SOURCE_HELP}")
    add_devices(parser)
    add_dataclass(parser.add_argument_group("values of the recipe"), PretrainRecipe)


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.models.pretrained.load import check_shape
    from ssamba.training.pretrain.recipe import PretrainRecipe, make_recipe
    from ssamba.training.pretrain.run import pretrain

    recipe = make_recipe(arguments.recipe, given(arguments, PretrainRecipe))
    check_shape(arguments.source, given(arguments, PretrainRecipe))
    if arguments.devices:
        return launch_processes(arguments)
    problems: list[tuple[str, str]] = []
    pretrain(arguments.data, arguments.out, recipe, arguments.source, arguments.device, problems)
    return EXIT_SOME_UNREADABLE if problems else EXIT_DONE


COMMAND = Command("train a model on unlabelled audio, or go on with a run", add_options, run)
