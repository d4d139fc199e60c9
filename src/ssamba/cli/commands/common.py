"""What several subcommands share."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssamba.cli.streams import say, warn
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


def say_note(line: str) -> None:
    """A line about what the command chose or left out, on stderr."""
    warn(f"note: {line}")


def say_classifier(out: Path, headline: str, table: Path, about: str = "") -> None:
    """How good a new classifier is, where its files are and what to do next."""
    say(headline)
    say(f"{table} has every fold, {out} the model{about}")
    say(f"next: ssamba predict FILES --model {shlex.quote(str(out))}")


def launch_processes(arguments: argparse.Namespace) -> int:
    """The same command in several processes."""
    from ssamba.training.launch import launch

    return launch(arguments.words, arguments.devices)
