"""The command line's parser: one line for each mistake, the nearest name for a wrong one, dataclasses as options."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ssamba.utils.errors import SsambaError, nearest

SOURCE_HELP = "run or model directory, official .pth, or the name of a model"
SHIPPED_HELP = f"{SOURCE_HELP} (default: tiny, which comes with the package)"
HEADS_HELP = "of an official SSAST whose width is not a published one"
Number = TypeVar("Number", int, float)
VALUE_LENGTH = 40
"""Most characters of a value in an error."""


class UsageError(SsambaError):
    """A command line that cannot be read."""


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``UsageError`` instead of printing the usage, and names the nearest option.

    ``read`` refuses unknown options before anything else, so that a mistyped one is not reported as a missing one.
    """

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", HelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """One line instead of usage and exit."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """As ``parse_args``, with unknown options refused first."""
        for word in words:
            if word == "--":
                break
            self._refuse_unknown(word)
        return self.parse_args(words)

    def _print_message(self, message: str, file: Any = None) -> None:
        """As ``argparse`` does, but a full disk or a reader that has gone is no secret."""
        (file or sys.stdout).write(message)

    def _refuse_unknown(self, word: str) -> None:
        name = word.partition("=")[0]
        if not re.match(r"--?[A-Za-z]", name) or name in self._option_string_actions:
            return
        if not name.startswith("--") and name[:2] in self._option_string_actions:
            return
        options = [o for o in self._option_string_actions if o.startswith("--")]
        raise UsageError(f"unknown option {name}{_nearest_bare(name, options)} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(c) for c in action.choices]
            name = action.option_strings[-1] if action.option_strings else action.dest
            raise UsageError(f"{name} {value}: choose {' or '.join(choices)}{nearest(str(value), choices)}")


class HelpFormatter(argparse.HelpFormatter):
    """Help that shows each default, in a width that fits the terminal."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, max_help_position=32, **settings)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        has_default = action.default not in (None, argparse.SUPPRESS, False) and action.option_strings
        return f"{text} (default %(default)s)" if has_default and "default" not in (text or "") else text


def _nearest_bare(word: str, known: list[str]) -> str:
    return nearest(word, known).replace("'", "")


def unknown_command(word: str, known: Iterable[str]) -> UsageError:
    """The error for a subcommand that does not exist."""
    known = list(known)
    near = nearest(word, known).replace("'", "")
    return UsageError(f"unknown command {word}{near or ', choose one of ' + ', '.join(known)}")


def add_dataclass(parser: argparse._ActionsContainer, kind: type, exclude: Iterable[str] = ()) -> None:
    """One option for each field of a dataclass: ``--field-name VALUE``, or ``--flag`` and ``--no-flag`` for bool.

    Field metadata may hold ``help`` and ``choices``. Types are int, float, str and bool, each perhaps ``| None``.
    Options that are not given leave no trace: see ``given``.
    """
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in exclude:
            continue
        base = _base_type(hints[field.name])
        text = str(field.metadata.get("help", "")).replace("%", "%%")
        settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
        default = _default(field)
        settings["help"] = f"{text} (default {default})".strip() if default else text
        name = "--" + field.name.replace("_", "-")
        if base is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, **settings)
            continue
        choices = field.metadata.get("choices") or None
        metavar = None if choices else {int: "N", float: "X"}.get(base, "TEXT")
        parser.add_argument(name, type=_reader(base), choices=choices, metavar=metavar, **settings)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and where it runs."""
    parser.add_argument("--model", metavar="SOURCE", help=SHIPPED_HELP)
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where the model runs."""
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def add_dtype(parser: argparse.ArgumentParser, default: str | None = "fp32", note: str = "") -> None:
    """The precision of a pass."""
    text = "weights and products: fp32, bf16, fp16 or auto (bf16 on a GPU that has it)"
    parser.add_argument("--dtype", default=default, help=f"{text} {note}".strip())


def add_run(parser: argparse.ArgumentParser) -> None:
    """Where a run's files go."""
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run directory; an existing run goes on")


def add_labels(parser: argparse.ArgumentParser) -> None:
    """Labels with times, and what is between them."""
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="PATH",
        help="custom: labels with times for the recordings in ROOT: Audacity, Raven, CSV, JSON, JAMS (docs/data.md)",
    )
    parser.add_argument(
        "--background",
        metavar="FOLDER|NAME",
        help="recordings of nothing of interest, which then have no class; or, with labels with times, the name of a "
        "class for the stretches without label",
    )


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Where a run trains, and in how many processes."""
    add_device(parser)
    parser.add_argument(
        "--devices", type=positive, metavar="N", help="share each batch out to N processes with a GPU each (default: 1)"
    )


def add_paths(parser: argparse.ArgumentParser) -> None:
    """How an output names its recordings."""
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--relative", action="store_true", help="name files by paths from the output's folder on")
    names.add_argument("--absolute", action="store_true", help="name files by absolute paths (default: as given)")


def paths_option(arguments: argparse.Namespace) -> str:
    """One of ``ssamba.inference.outputs.file_names.PATHS``."""
    return "relative" if arguments.relative else "absolute" if arguments.absolute else "given"


def add_passes(parser: argparse.ArgumentParser) -> None:
    """How much goes through the model, and is decoded, at once."""
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="windows in a pass (default: what suits the device)"
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="decoding threads (default: one per core, up to 8)"
    )


def given(arguments: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of a dataclass that the command line gave explicitly."""
    return {f.name: getattr(arguments, f.name) for f in dataclasses.fields(kind) if hasattr(arguments, f.name)}


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number above 0")
    return number


def whole(text: str) -> int:
    """A whole number, for argparse."""
    return _number(text, int, "a whole number")


def seconds(text: str) -> float:
    """Seconds from 0 on, for argparse."""
    number = real(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: give seconds, 0 or more")
    return number


def real(text: str) -> float:
    """A number, for argparse."""
    return _number(text, float, "a number")


def _number(text: str, kind: Callable[[str], Number], wanted: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        short = text if len(text) <= VALUE_LENGTH else f"{text[:VALUE_LENGTH]}..."
        raise argparse.ArgumentTypeError(f"{short}: give {wanted}") from None


def _reader(base: type) -> Any:
    return {int: whole, float: real}.get(base, base)


def _base_type(hint: Any) -> type:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    base: type = hint
    return base


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING or field.default is None:
        return ""
    return (
        ("yes" if field.default else "no") if isinstance(field.default, bool) else str(field.default).replace("%", "%%")
    )
