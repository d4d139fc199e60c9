"""Work for the next steps done in a thread while the present one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ssamba.utils.threads import LOOK_SECONDS, InterruptsHeld, start_thread

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_END = object()


def prepare_ahead(items: Iterable[_Item], prepare: Callable[[_Item], _Result], depth: int = 2) -> Iterator[_Result]:
    """Yield ``prepare(item)`` for each item, in order, up to ``depth`` of them computed ahead by one thread.

    Iterating over ``items`` happens in that thread, too. An exception of either is raised here, in order. When the
    caller stops early, the thread ends after its current item.
    """
    # Queues without locks of Python's: a Ctrl-C within a method of one harms nothing.
    results: SimpleQueue[object] = SimpleQueue()
    places: SimpleQueue[None] = SimpleQueue()
    for _ in range(depth):
        places.put(None)
    stopped = False

    def put(value: object) -> None:
        while not stopped:
            try:
                places.get(timeout=LOOK_SECONDS)
            except Empty:
                continue
            results.put(value)
            return

    def work() -> None:
        """The thread: puts (result, None) for each item, or (None, error) in its place, and last ``_END``."""
        iterator = iter(items)
        try:
            for item in iterator:
                put((prepare(item), None))
                if stopped:
                    break
        except BaseException as error:
            put((None, error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        put(_END)

    thread = start_thread(work, "ssamba-prepare")
    try:
        while True:
            got: Any = results.get()
            if got is _END:
                return
            places.put(None)
            result, error = got
            if error is not None:
                raise error
            yield result
    finally:
        stopped = True
        with InterruptsHeld():
            thread.join()
