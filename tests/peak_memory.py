"""How much memory a process has taken at most since its program began.

``ru_maxrss`` is no measure of a process that a test starts: Linux begins it with what the starting process held.
"""

from __future__ import annotations

from pathlib import Path

PEAK = """
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) / 1024
"""
"""For programs that tests start: ``peak()`` in MiB. Linux alone."""


def peak_of_this_process() -> float:
    """MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
