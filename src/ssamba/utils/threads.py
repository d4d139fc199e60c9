"""Ctrl-C and threads: none is lost, and none leaves a thread waiting for ever.

Python raises KeyboardInterrupt between any two operations of the main thread. Within ``threading`` and
``concurrent.futures`` that may be after a lock has been acquired and before the ``with`` block that releases it has
begun: another thread then waits for this lock for ever, and whoever joins it does, too.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

LOOK_SECONDS = 0.1
"""A wait looks so often whether Ctrl-C has been pressed."""
_interrupts: list[int] = []
"""Ctrl-Cs that no KeyboardInterrupt is known of to have ended anything."""


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """A context in which no Ctrl-C is lost: Python drops a KeyboardInterrupt that is raised within a finaliser.

    ``raise_lost_interrupt`` raises it again. Does nothing outside of the main thread, or where Ctrl-C has a handler.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(number: int, _: object) -> None:
        _interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        _interrupts.clear()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def raise_lost_interrupt() -> None:
    """Raise ``KeyboardInterrupt`` where one was asked for and work goes on nevertheless."""
    if _interrupts and _in_main_thread():
        _interrupts.clear()
        raise KeyboardInterrupt


class InterruptsHeld:
    """A context that a Ctrl-C does not break into: what handles it is called when the context has ended.

    A long wait within it looks at ``asked`` now and then, and leaves the context when it is set. Contexts may be
    nested; a generator must not yield within one. Does nothing outside of the main thread, or where Ctrl-C has no
    handler in Python.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether Ctrl-C has been pressed since the context began."""
        self._before: Any = None

    def __enter__(self) -> InterruptsHeld:
        # A Ctrl-C that comes before _hold is the handler is raised here, where nothing has begun.
        if _in_main_thread() and callable(before := signal.getsignal(signal.SIGINT)):
            self._before = before
            signal.signal(signal.SIGINT, self._hold)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            return
        signal.signal(signal.SIGINT, self._before)
        if self.asked:
            self._before(signal.SIGINT, None)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class PoolJob(Generic[_Result]):
    """A call that another thread makes, as one of a :class:`ThreadPool`, by its future."""

    def __init__(self, future: Future[_Result]) -> None:
        self._future = future

    def result(self) -> _Result:
        """Wait for what the call returns. Raises what it raises; Ctrl-C ends the wait."""
        while True:
            with InterruptsHeld() as held:
                while not self._future.done() and not held.asked:
                    wait((self._future,), LOOK_SECONDS)
                if self._future.done():
                    return self._future.result()


class ThreadPool:
    """``concurrent.futures.ThreadPoolExecutor``, without harm from a Ctrl-C in the middle of one of its methods.

    A context manager: at its end the calls under way are waited for, and those that have not begun never do.

    Args:
        threads: of the pool, at least 1.
        name: what the names of its threads begin with.
    """

    def __init__(self, threads: int, name: str = "ssamba") -> None:
        self.closing = False
        """Whether the pool is being closed; a long call may look at it and end early."""
        self._executor = ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix=name)

    def __enter__(self) -> ThreadPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, function: Callable[..., _Result], *arguments: Any) -> PoolJob[_Result]:
        """Have ``function(*arguments)`` called by a thread."""
        with InterruptsHeld():
            return PoolJob(self._executor.submit(function, *arguments))

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """The results of ``function`` for each item, in order; all of the calls are submitted at once."""
        jobs = deque([self.submit(function, item) for item in items])
        while jobs:
            yield jobs.popleft().result()

    def close(self) -> None:
        """Wait for the calls under way; those that have not begun never do."""
        self.closing = True
        with InterruptsHeld():
            self._executor.shutdown(wait=True, cancel_futures=True)


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """A running daemon thread that does ``work``."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    with InterruptsHeld():
        thread.start()
    return thread
