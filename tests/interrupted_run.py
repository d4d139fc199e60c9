"""Ctrl-C at a chosen operation of the main thread: a tracer calls its handler there, as the interpreter would.

As a program: ``python tests/interrupted_run.py PLACE WORD ...`` runs the command line and presses Ctrl-C at the PLACEth
operation within the modules of threads, futures, queues and progress bars; PLACE 0 prints how many there are.
"""

from __future__ import annotations

import dis
import faulthandler
import signal
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

SHARED = (
    *("/threading.py", "/concurrent/futures/", "/queue.py", "/tqdm/"),
    *("/utils/threads.py", "/file_stream.py", "/prefetch.py"),
)
"""Parts of the names of modules whose main thread shares locks with others."""
SECONDS = 30
"""A run that takes longer after Ctrl-C has hung: it prints where its threads are, and ends with code 1."""


class Interruption:
    """A tracer that presses Ctrl-C at the ``place``th of the operations after which Python looks for signals.

    Python looks at the beginning of a function, after a call of a function in C, and before a loop goes round.
    """

    def __init__(self, place: int, modules: tuple[str, ...] = SHARED) -> None:
        self.count = 0
        self._place, self._modules = place, modules
        self._names: dict[CodeType, dict[int, str]] = {}
        self._before: dict[FrameType, str] = {}

    def run(self, work: Callable[[], Any]) -> Any:
        """``work()`` under the tracer."""
        sys.settrace(self._call)
        try:
            return work()
        finally:
            sys.settrace(None)

    def _call(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_back in self._before:
            self._before[frame.f_back] = "a function in Python"
        if not any(part in frame.f_code.co_filename for part in self._modules):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self._before[frame] = ""
        return self._operation

    def _operation(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "return":
            self._before.pop(frame, None)
        elif event == "opcode":
            names = self._names.setdefault(frame.f_code, {})
            if not names:
                names.update((each.offset, each.opname) for each in dis.get_instructions(frame.f_code))
            name, before = names.get(frame.f_lasti, ""), self._before.get(frame, "")
            self._before[frame] = name
            if name == "RESUME" or before.startswith(("CALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")):
                self.count += 1
                if self.count == self._place:
                    self._press(frame)
        return self._operation

    def _press(self, frame: FrameType) -> None:
        sys.settrace(None)
        above: FrameType | None = frame
        while above is not None:
            above.f_trace = None
            above = above.f_back
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler)
        handler(signal.SIGINT, frame)


def main() -> int:
    """The command line, interrupted."""
    from ssamba.cli import main

    place = sys.argv.pop(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
    interruption = Interruption(int(place))
    code = int(interruption.run(main.main))
    if place == "0":
        print(interruption.count)
    return code


if __name__ == "__main__":
    sys.exit(main())
