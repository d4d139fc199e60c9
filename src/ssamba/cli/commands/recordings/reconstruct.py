"""``ssamba reconstruct``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.parser import (
    add_model,
    positive,
    seconds,
    whole,
)
from ssamba.cli.streams import say


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", help="audio file")
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="X.png", help="the picture to write")
    parser.add_argument(
        "--mask", type=positive, metavar="N", help="patches to hide (default: 400 of 512, in proportion)"
    )
    parser.add_argument(
        "--mask-kind", default="cluster", choices=("cluster", "frame"), help="squares of patches, or single ones"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the mask")
    parser.add_argument("--start", type=seconds, default=0.0, metavar="S", help="second at which the excerpt begins")


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba import ops
    from ssamba.inference.load import load
    from ssamba.inference.plots import reconstruction_picture
    from ssamba.utils.plots import require_matplotlib

    require_matplotlib(arguments.out)
    model = load(arguments.model, arguments.device, heads=True)
    with ops.short_work(model.device, model.config.grid[0] * model.config.grid[1]):
        drawn = reconstruction_picture(
            model,
            arguments.file,
            arguments.out,
            mask=arguments.mask,
            mask_kind=arguments.mask_kind,
            seed=arguments.seed,
            start=arguments.start,
        )
    say(f"{arguments.out}: {drawn.summary()}")
    return EXIT_DONE


COMMAND = Command("draw a recording, masked and filled in by the model", add_options, run)
