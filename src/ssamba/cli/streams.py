"""The three standard streams of a command, whatever state the shell left them in, and all that it prints to them."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from typing import Any, TextIO

from ssamba.utils.terminal import one_line, printable, printable_lines


def say(line: object) -> None:
    """Print one line on stdout, whatever it holds: line ends inside become ``\\x0a``."""
    print(printable(str(line)))


def say_lines(text: str) -> None:
    """Print a result of several lines on stdout, such as a table; whoever made it has escaped the names in it."""
    print(printable_lines(text.removesuffix("\n")))


def warn(line: str) -> None:
    """Print ``ssamba: line`` on stderr, as one line whatever ``line`` holds. Never fails."""
    with contextlib.suppress(OSError, ValueError):
        print(f"ssamba: {one_line(line)}", file=sys.stderr)


def prepare_streams() -> None:
    """Make stdout and stderr fit for any text, and stderr fit to be written to without failing.

    A closed descriptor gets the null device, or the next file that is opened would take its number and receive what is
    printed. Characters that the stream's encoding lacks are escaped. What cannot be written to stderr is dropped: the
    work does not depend on it. Warnings and log lines become one line each. Streams that a caller in Python has
    replaced are left alone.
    """
    _open_closed()
    if sys.stdout is None:
        sys.stdout = sys.__stdout__ = open(1, "w", closefd=False, encoding="utf-8")  # type: ignore[misc]  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None or (sys.stderr is sys.__stderr__ and not isinstance(sys.stderr, _Stderr)):
        sys.stderr = sys.__stderr__ = _Stderr(sys.stderr)  # type: ignore[misc]
        warnings.showwarning = _show_warning
        logging.getLogger("ssamba").addHandler(_LogLines())


def drop_stdout() -> None:
    """Send what is still buffered nowhere: the interpreter would flush it at its end and complain again."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def silence_finalisers() -> None:
    """Have Python print nothing of objects whose making a Ctrl-C has broken off, and which cannot be finalised."""
    sys.unraisablehook = lambda _: None


def _open_closed() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # takes the lowest number
                if opened != number:
                    os.dup2(opened, number)
                    os.close(opened)
                os.set_inheritable(number, True)


class _Unfailing(io.FileIO):
    """A descriptor whose full disk, or reader that has gone, is nobody's business."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


class _Stderr(io.TextIOWrapper):
    """stderr, line by line, without errors."""

    def __init__(self, before: TextIO | None) -> None:
        encoding = "utf-8" if before is None else before.encoding
        raw = _Unfailing(2, "w", closefd=False)
        super().__init__(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    warn(f"warning: {message}")


class _LogLines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):
            warn(f"{record.levelname.lower()}: {record.getMessage()}")
