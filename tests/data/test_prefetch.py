"""Preparing ahead: order, errors at their place, and an end when the caller stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ssamba.data.loaders.prefetch import prepare_ahead


def test_order_and_depth() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(20):
            taken.append(i)
            yield i

    results = prepare_ahead(numbers(), lambda i: i * i, depth=2)
    assert next(results) == 0
    time.sleep(0.3)
    assert len(taken) <= 5  # one given out, two waiting, one in hand
    assert list(results) == [i * i for i in range(1, 20)]


@pytest.mark.parametrize("where", ["items", "prepare"])
def test_errors_are_raised_at_their_place(where: str) -> None:
    def numbers() -> Iterator[int]:
        for i in range(5):
            if where == "items" and i == 3:
                raise ValueError("three")
            yield i

    def prepare(i: int) -> int:
        if where == "prepare" and i == 3:
            raise ValueError("three")
        return i

    results = prepare_ahead(numbers(), prepare)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_stopping_early_ends_the_thread_and_closes_the_items() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    results = prepare_ahead(endless(), lambda i: i)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert closed.wait(5)
    assert not any(t.name == "ssamba-prepare" for t in threading.enumerate())
