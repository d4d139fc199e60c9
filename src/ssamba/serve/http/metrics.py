"""Counters and histograms, as Prometheus reads them."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

LATENCY_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds, upper bounds of a histogram's buckets."""
GROUP_BOUNDS = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts of values up to each of ``bounds``, their sum and their number."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        place = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1
        self.total += value

    def lines(self, name: str, labels: str = "") -> list[str]:
        """The histogram's lines; ``labels`` are those before ``le``, with a comma behind them."""
        so_far, found = 0, []
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            so_far += count
            found.append(f'{name}_bucket{{{labels}le="{bound}"}} {so_far}')
        plain = f"{{{labels.rstrip(',')}}}" if labels else ""
        return [*found, f"{name}_sum{plain} {self.total:.6f}", f"{name}_count{plain} {so_far}"]


class Metrics:
    """What a server has done. May be used by any number of threads.

    ``gauges``: name -> (help, function of the present value), read when the metrics are asked for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = defaultdict(int)
        self._latency: dict[str, Histogram] = defaultdict(lambda: Histogram(LATENCY_BOUNDS))
        self._groups = Histogram(GROUP_BOUNDS)
        self._model_seconds = self._audio_seconds = 0.0
        self._bytes = 0
        self._begin = time.time()
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request; ``path`` is a route's, never one that a client made up."""
        with self._lock:
            self._requests[path, status] += 1
            self._latency[path].add(seconds)

    def upload(self, size: int, seconds: float) -> None:
        """Count the bytes and the seconds of a recording."""
        with self._lock:
            self._bytes += size
            self._audio_seconds += seconds

    def group(self, size: int, seconds: float) -> None:
        """Count recordings that went through the model together."""
        with self._lock:
            self._groups.add(size)
            self._model_seconds += seconds

    def text(self) -> str:
        """All of them."""
        with self._lock:
            lines = _head("ssamba_requests_total", "counter", "Requests by route and status code.")
            for (path, status), count in sorted(self._requests.items()):
                lines.append(f'ssamba_requests_total{{path="{path}",status="{status}"}} {count}')
            lines += _head("ssamba_request_seconds", "histogram", "From a request's head to its answer.")
            for path, histogram in sorted(self._latency.items()):
                lines += histogram.lines("ssamba_request_seconds", f'path="{path}",')
            lines += _head("ssamba_group_recordings", "histogram", "Recordings that went through the model together.")
            lines += self._groups.lines("ssamba_group_recordings")
            lines += _single("ssamba_model_seconds_total", "counter", "Time in the model.", self._model_seconds)
            lines += _single("ssamba_audio_seconds_total", "counter", "Audio that was decoded.", self._audio_seconds)
            lines += _single("ssamba_upload_bytes_total", "counter", "Bytes of recordings.", self._bytes)
            lines += _single("process_start_time_seconds", "gauge", "Start of the server.", self._begin)
        for name, (text, value) in self.gauges.items():
            lines += _single(name, "counter" if name.endswith("_total") else "gauge", text, value())
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _single(name: str, kind: str, text: str, value: float) -> list[str]:
    return [*_head(name, kind, text), f"{name} {value:.15g}"]


def resident_memory() -> float:
    """Resident memory of this process, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        return 0.0
