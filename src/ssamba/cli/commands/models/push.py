"""``ssamba push``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.parser import SOURCE_HELP
from ssamba.cli.streams import say


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", metavar="NAME", help="repository on the Hugging Face hub: user/model")
    parser.add_argument("--model", metavar="SOURCE", required=True, help=SOURCE_HELP)
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--license", metavar="ID", help="the weights' licence for the model card, such as cc-by-4.0")
    parser.add_argument("--card", type=Path, metavar="FILE", help="a model card (Markdown) instead of the one made")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="a new folder to keep what is uploaded in")
    parser.add_argument("--dry-run", action="store_true", help="write --folder and upload nothing")


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.inference.hf.folder import export
    from ssamba.inference.hf.upload import push
    from ssamba.utils.errors import ConfigError

    a = arguments
    if not a.dry_run:
        say(push(a.model, a.name, a.private, a.license, a.card, a.folder))
        return EXIT_DONE
    if a.folder is None:
        raise ConfigError("--dry-run writes a folder and uploads nothing: give --folder DIR")
    for path in export(a.model, a.folder, a.name, a.license, a.card):
        say(path)
    return EXIT_DONE


COMMAND = Command("upload a model to the Hugging Face hub, with a model card", add_options, run)
