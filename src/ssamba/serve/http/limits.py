"""How much may be asked for at a time: bytes held, requests under way, requests of one client."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterator

from ssamba.serve.http.problems import TOO_MANY, RequestError, busy

KNOWN_CLIENTS = 10_000
"""Clients whose last requests are remembered; the one that was silent for longest is forgotten."""


class RateLimit:
    """Lets each client make ``per_minute`` requests a minute, a sixth of them at once; 0 lets through everything."""

    def __init__(self, per_minute: float) -> None:
        self._per_second = per_minute / 60
        self._burst = max(1.0, per_minute / 6)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> requests left, when

    def check(self, client: str, now: float | None = None) -> None:
        """Count a request. Raises ``RequestError`` (429) with the seconds to wait."""
        if not self._per_second:
            return
        now = time.monotonic() if now is None else now
        left, before = self._left.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - before) * self._per_second)
        self._left[client] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if len(self._left) > KNOWN_CLIENTS:
            self._left.popitem(last=False)
        if left < 1:
            wait = max(1, round((1 - left) / self._per_second + 0.5))
            limit = f"{60 * self._per_second:g} requests a minute"
            raise RequestError(TOO_MANY, f"more than {limit}: wait {wait} s", {"Retry-After": str(wait)})


class Held:
    """Bytes that one request holds of a ``ByteBudget``."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.count = 0

    def take(self, count: int) -> None:
        """Hold that many more. Raises ``RequestError`` (503) where all requests together hold too many."""
        if self._budget.used + count > self._budget.limit:
            raise busy("the server holds as much audio as it may")
        self._budget.used += count
        self.count += count

    def release(self) -> None:
        """Hold none any longer."""
        self._budget.used -= self.count
        self.count = 0


class ByteBudget:
    """Bytes of bodies and waveforms that all requests together may hold. Used by one thread.

    Attributes:
        used, limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.used, self.limit = 0, limit


class Places:
    """Requests that may be under way at a time. Used by one thread.

    Attributes:
        used, limit: requests.
    """

    def __init__(self, limit: int) -> None:
        self.used, self.limit = 0, limit

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A place for the block. Raises ``RequestError`` (503) where none is free."""
        if self.used >= self.limit:
            raise busy(f"{self.limit} requests are under way")
        self.used += 1
        try:
            yield
        finally:
            self.used -= 1
