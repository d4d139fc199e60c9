"""The command line: finds the subcommand, and turns what goes wrong into one line and an exit code.

Exit codes: 0 done; 1 done, but some files could not be read; 2 nothing done, or its result could not be printed, with
one line on stderr that says why; 130 stopped by Ctrl-C; 141 the reader of stdout has gone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ssamba.cli.commands import COMMANDS
from ssamba.cli.commands.common import EXIT_DONE
from ssamba.cli.parser import HelpFormatter, Parser, unknown_command
from ssamba.cli.streams import drop_stdout, prepare_streams, silence_finalisers, warn
from ssamba.data.unread import take_unread, unread_line
from ssamba.utils.errors import SsambaError
from ssamba.utils.threads import InterruptsHeld, interrupts_kept

EXIT_ERROR, EXIT_PIPE, EXIT_INTERRUPTED = 2, 141, 130
WAIT_SPINS = "2000"
"""Rounds for which an OpenMP thread spins while it waits for work, before it sleeps (docs/cpu-scan.md): on cores that
other programs use, too, threads that spin for long, GNU's default, slow everything. ``GOMP_SPINCOUNT`` in the
environment stands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("GOMP_SPINCOUNT", WAIT_SPINS)  # read when torch is imported, which is later
    take_unread()  # of an earlier call in this process
    try:
        with InterruptsHeld():
            prepare_streams()
        with interrupts_kept():
            code = _run(words)
        sys.stdout.flush()
        _name_unread()
        return code
    except KeyboardInterrupt as stop:
        if argv is None:
            silence_finalisers()
        return _fail(str(stop) or "interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `ssamba info X | head -1`
        drop_stdout()
        return EXIT_PIPE
    except SsambaError as error:
        return _fail(str(error), EXIT_ERROR)
    except OSError as error:
        drop_stdout()
        return _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", EXIT_ERROR)


def _run(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except SystemExit as stop:  # argparse, after --help and --version
        return stop.code if isinstance(stop.code, int) else EXIT_DONE


def _dispatch(words: list[str]) -> int:
    name = next((i for i, word in enumerate(words) if not word.startswith("-")), None)
    if name is None:
        _main_parser().read(words or ["--help"])
        raise SystemExit(EXIT_DONE)
    if words[name] not in COMMANDS:
        raise unknown_command(words[name], COMMANDS)
    _main_parser().read(words[:name])
    command = COMMANDS[words[name]]
    parser = Parser(prog=f"ssamba {words[name]}", description=command.help[0].upper() + command.help[1:] + ".")
    command.add_options(parser)
    arguments = parser.read(words[name + 1 :])
    arguments.words = words
    return command.run(arguments)


def _name_unread() -> None:
    """One line for files of searched folders that look like audio and are not read, from a run's first process."""
    line = unread_line(take_unread())
    if line and os.environ.get("RANK", "0") == "0":
        warn(f"note: {line}")


def _main_parser() -> Parser:
    from ssamba import __version__

    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.help}" for name, command in COMMANDS.items()]
    parser = Parser(
        prog="ssamba",
        usage="ssamba COMMAND ... (ssamba COMMAND --help tells more)",
        description="Linear-time audio representations (SSAMBA).",
        epilog="\n".join(["commands:", *lines]),
        formatter_class=_PlainHelp,
    )
    parser.add_argument(
        "--version", action="version", version=f"ssamba {__version__}", help="show the version and exit"
    )
    return parser


class _PlainHelp(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the list of commands as it is laid out."""


def _fail(message: str, code: int) -> int:
    warn(f"error: {message}")
    return code
