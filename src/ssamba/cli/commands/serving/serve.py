"""``ssamba serve``."""

from __future__ import annotations

import argparse

from ssamba.cli.commands.common import EXIT_DONE, Command
from ssamba.cli.parser import SHIPPED_HELP, add_dataclass, add_device, add_dtype, given
from ssamba.cli.streams import say
from ssamba.serve.options import ServeOptions


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=SHIPPED_HELP)
    parser.add_argument("--index", metavar="INDEX", help="what ssamba index made, for search")
    add_device(parser)
    add_dtype(parser)
    add_dataclass(parser, ServeOptions, exclude=("allow_host",))
    parser.add_argument(
        "--allow-host",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="a name under which the server is reached, in addition to its addresses and localhost",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it, and return the exit code."""
    from ssamba.serve.run import ServeRequest, serve_until_stopped

    values = given(arguments, ServeOptions)
    if "allow_host" in values:
        values["allow_host"] = tuple(values["allow_host"])

    def announce(line: str) -> None:
        say(line)
        flush_stdout()

    request = ServeRequest(arguments.model, arguments.index, arguments.device, arguments.dtype)
    serve_until_stopped(request, ServeOptions(**values), announce)
    return EXIT_DONE


def flush_stdout() -> None:
    """What has been said is seen now, in a pipe, too."""
    import sys

    sys.stdout.flush()


COMMAND = Command("answer over HTTP, with a page to listen and look: embed, predict, search", add_options, run)
