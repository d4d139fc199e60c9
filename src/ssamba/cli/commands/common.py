"""What several subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssamba.cli.streams import warn
from ssamba.utils.terminal import printable

EXIT_DONE, EXIT_SOME_UNREADABLE = 0, 1
"""Exit codes: all done; done, but some files could not be read."""
DATA_HELP = "folder (searched recursively), manifest (.csv, .tsv, .json) or audio file"


@dataclass(frozen=True)
class Command:
    """One subcommand: its line in the help, its options, and what it runs (returning the exit code)."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def list_unreadable(failures: Sequence[tuple[str, str]]) -> int:
    """Name the files that were left out, on stderr, and return the exit code."""
    for path, reason in failures:
        warn(f"left out {printable(path)}: {reason}")
    return EXIT_SOME_UNREADABLE if failures else EXIT_DONE


def launch_processes(arguments: argparse.Namespace) -> int:
    """The same command in several processes."""
    from ssamba.training.launch import launch

    return launch(arguments.words, arguments.devices)
