"""The command line in a process that ends itself with a signal at a chosen point of a run.

    python tests/ended_run.py WHERE STEP SIGNAL [words of ssamba]

WHERE is ``state``: once a ``state.json`` of STEP, or of a later step, is in place (``fold-2/state.json``: in that
folder alone); or ``row``: as the row of STEP is written to TensorBoard, which follows the log. Only the border to the
system and to the event file is replaced: ``os.replace`` and ``EventFile.add_scalar``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from ssamba.training.log import EventFile


def end_after_state(name: str, step: int, number: int) -> None:
    plain = os.replace

    def replace(source: Any, target: Any) -> None:
        plain(source, target)
        if str(target).endswith(f"/{name}"):
            with open(target, encoding="utf-8") as file:
                if int(json.load(file)["step"]) >= step:
                    os.kill(os.getpid(), number)

    os.replace = replace  # type: ignore[assignment]


def end_at_row(step: int, number: int) -> None:
    plain = EventFile.add_scalar
    ended: list[str] = []

    def add_scalar(self: EventFile, tag: str, value: float, at: int) -> None:
        plain(self, tag, value, at)
        if at == step and not ended:
            ended.append(tag)
            os.kill(os.getpid(), number)

    EventFile.add_scalar = add_scalar  # type: ignore[method-assign]


def main() -> int:
    where, step, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if where == "row":
        end_at_row(step, number)
    else:
        end_after_state("state.json" if where == "state" else where, step, number)
    from ssamba.cli.main import main as ssamba

    return ssamba(sys.argv[4:])


if __name__ == "__main__":
    sys.exit(main())
