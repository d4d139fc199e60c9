"""Progress on stderr: a bar on a terminal, and elsewhere a line now and then, only when the work takes long."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from tqdm import tqdm

from ssamba.utils.terminal import printable
from ssamba.utils.threads import InterruptsHeld, raise_lost_interrupt

QUIET_SECONDS = 30.0
"""Without a terminal nothing is printed before this time, and then one line each such interval."""


class _Line(tqdm):
    """A line that ``close`` clears as soon as it is on the screen.

    With a ``delay``, tqdm takes a line for unseen until the ``update`` that showed it has returned, so that an error in
    between, such as Ctrl-C, would be printed behind it. Each update looks at the time, so that no thread has to watch
    for a bar that has not been drawn for long: a lock shared with it may be left locked by Ctrl-C.
    """

    monitor_interval = 0

    def display(self, *arguments: Any, **named: Any) -> Any:
        self.delay = 0.0
        return super().display(*arguments, **named)


class Bar:
    """A context manager whose ``update`` fits every ``progress(done, total)`` of the package.

    ``note`` stands behind the bar, which gives the fraction done and the time left: two values, so that the line fits
    80 columns. Without a note, a ``unit`` gives the number done and the rate.
    """

    def __init__(self, label: str, unit: str = "") -> None:
        stream = sys.stderr or io.StringIO()  # an interpreter without a stderr
        terminal = stream.isatty()
        self._unit = unit
        with InterruptsHeld():  # a bar that is made by half complains when it is finalised
            self._bar = _Line(
                total=None,
                desc=printable(label),
                file=stream,
                ascii=None if terminal else True,
                leave=False,
                dynamic_ncols=True,
                delay=0.5 if terminal else QUIET_SECONDS,
                mininterval=0.2 if terminal else QUIET_SECONDS,
                miniters=0,
                bar_format="{desc} {percentage:3.0f}% |{bar:10}| {remaining} left{postfix}",
            )
        self._begin = time.monotonic()

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show that ``done`` of ``total`` is through. Raises ``KeyboardInterrupt`` after a Ctrl-C that was lost."""
        raise_lost_interrupt()
        self._bar.total = max(total, done) or 1
        if self._unit and not note:
            note = f"{done:,.0f} {self._unit}, {done / max(self.seconds, 1e-3):,.0f}/s"
        if note:
            self._bar.set_postfix_str(printable(note), refresh=False)
        self._bar.update(done - self._bar.n)

    @property
    def seconds(self) -> float:
        """Time since the bar was made."""
        return time.monotonic() - self._begin

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with InterruptsHeld():
            self._bar.close()


@contextlib.contextmanager
def progress_bar(label: str, unit: str = "") -> Iterator[Callable[[float, float, str], None]]:
    """A bar for one stage of some work; the block gets its ``update``."""
    with Bar(label, unit) as bar:
        yield bar.update
