"""Rewrites the guards' golden files, all or those named: ``python tests/guards/write_golden.py [NAME ...]``.

Only where a change of what users hold on to is meant; the diff of the golden files then says what it is. ``bits`` adds
this machine's digests and keeps those of other machines; ``cuda_units`` needs the package nvidia-cuda-nvrtc.
"""

from __future__ import annotations

import sys

from guard_snapshots import SNAPSHOTS, write


def main(names: list[str]) -> int:
    """Write, and say what was written."""
    known = ["help", *SNAPSHOTS]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or known:
        write(name)
        print(f"written: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
