"""``ssamba index``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssamba.cli.commands.common import DATA_HELP, Command, list_unreadable
from ssamba.cli.parser import SOURCE_HELP, add_device, add_passes
from ssamba.cli.streams import say


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"{DATA_HELP}; none updates what an index holds")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="INDEX", help="the index, a folder; an existing one is updated"
    )
    parser.add_argument("--model", metavar="SOURCE", help=f"{SOURCE_HELP} (default: the index's, tiny for a new one)")
    parser.add_argument("--relative", action="store_true", help="store paths from the index's folder on")
    parser.add_argument(
        "--space",
        default="auto",
        choices=("auto", "fitted", "plain"),
        help="space of the vectors: auto takes the one learned for tiny, for other models one fitted to the files",
    )
    add_device(parser)
    add_passes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.inference.search.make import index
    from ssamba.utils.progress import Bar

    with Bar("indexing") as bar:
        report = index(
            arguments.files,
            arguments.out,
            arguments.model,
            relative=arguments.relative or None,
            space=arguments.space,
            device=arguments.device,
            batch=arguments.batch,
            threads=arguments.threads,
            progress=bar.update,
        ).report
    assert report is not None
    twice = f", {report.again} given twice" if report.again else ""
    say(
        f"{arguments.out}: {report.total} recordings ({report.added} read, {report.kept} as they were, "
        f"{report.dropped} gone{twice}), {report.space} space"
    )
    return list_unreadable(report.failures)


COMMAND = Command("make an index of recordings for search, or update it", add_options, run)
