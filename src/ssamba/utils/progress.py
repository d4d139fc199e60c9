"""Progress on stderr: a bar on a terminal, and elsewhere a line now and then, only when the work takes long."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from tqdm import tqdm

QUIET_SECONDS = 30.0
"""Without a terminal nothing is printed before this time, and then one line each such interval."""


class Bar:
    """A context manager whose ``update`` fits every ``progress(done, total)`` of the package.

    ``note`` stands behind the bar, which gives the fraction done, the time taken and the time left.
    """

    def __init__(self, label: str) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=None,
            desc=label,
            file=sys.stderr,
            ascii=not terminal,
            leave=False,
            dynamic_ncols=True,
            delay=0.5 if terminal else QUIET_SECONDS,
            mininterval=0.2 if terminal else QUIET_SECONDS,
            maxinterval=10.0 if terminal else 2 * QUIET_SECONDS,
            bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed}, {remaining} left{postfix}",
        )
        self._begin = time.monotonic()

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show that ``done`` of ``total`` is through."""
        self._bar.total = max(total, done) or 1
        if note:
            self._bar.set_postfix_str(note, refresh=False)
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
        self._bar.close()


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[float, float, str], None]]:
    """A bar for one stage of some work; the block gets its ``update``."""
    with Bar(label) as bar:
        yield bar.update
