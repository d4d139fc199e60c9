"""``ssamba finetune``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command, launch_processes, say_classifier, say_note
from ssamba.cli.parser import SHIPPED_HELP, add_dataclass, add_devices, add_labels, add_run, given


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from ssamba.models.pretrained.weights import DEFAULT
    from ssamba.training.finetune.recipe import NO_OPTIONS, FinetuneRecipe, recipe_names

    parser.usage = "ssamba finetune RECIPE --data ROOT [--from SOURCE] --out RUN [options]"
    parser.epilog = f"recipes: {', '.join(recipe_names())}"
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe (see below), or a YAML file")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="the labelled set (docs/data.md)")
    parser.add_argument(
        "--from", dest="source", metavar="SOURCE", default=DEFAULT, help=f"{SHIPPED_HELP}; none: random weights"
    )
    add_labels(parser)
    add_run(parser)
    add_devices(parser)
    values = parser.add_argument_group("values of the recipe", "Defaults hold where the recipe says nothing.")
    add_dataclass(values, FinetuneRecipe, exclude=NO_OPTIONS)


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.models.pretrained.load import check_shape
    from ssamba.training.finetune.recipe import FinetuneRecipe, load_finetune_recipe
    from ssamba.training.finetune.report import TABLE_FILE, headline
    from ssamba.training.finetune.run import finetune

    recipe = load_finetune_recipe(arguments.recipe, given(arguments, FinetuneRecipe))
    source = None if arguments.source == "none" else arguments.source
    check_shape(source, given(arguments, FinetuneRecipe))
    if arguments.devices:
        return launch_processes(arguments)
    places = (arguments.data, arguments.out, source, arguments.device, say_note)
    values = finetune(recipe, *places, labels=arguments.labels, background=arguments.background)
    if not values:  # another process of the run has them
        return EXIT_DONE
    say_classifier(arguments.out, headline(values), arguments.out / TABLE_FILE)
    return EXIT_DONE


COMMAND = Command("train a classifier on a labelled set, from a pretrained model", add_options, run)
