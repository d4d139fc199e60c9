"""Work for the next steps done in a thread while the present one runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_END = object()


def prepare_ahead(items: Iterable[_Item], prepare: Callable[[_Item], _Result], depth: int = 2) -> Iterator[_Result]:
    """Yield ``prepare(item)`` for each item, in order, up to ``depth`` of them computed ahead by one thread.

    Iterating over ``items`` happens in that thread, too. An exception of either is raised here, in order. When the
    caller stops early, the thread ends after its current item.
    """
    results: queue.Queue[object] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(value: object) -> None:
        while not stop.is_set():
            try:
                results.put(value, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        """The thread: puts (result, None) for each item, or (None, error) in its place, and last ``_END``."""
        iterator = iter(items)
        try:
            for item in iterator:
                put((prepare(item), None))
                if stop.is_set():
                    break
        except BaseException as error:
            put((None, error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        put(_END)

    thread = threading.Thread(target=work, name="ssamba-prepare", daemon=True)
    thread.start()
    try:
        while True:
            got: Any = results.get()
            if got is _END:
                return
            result, error = got
            if error is not None:
                raise error
            yield result
    finally:
        stop.set()
        thread.join()
