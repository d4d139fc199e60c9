"""What a progress bar leaves on the terminal when the work ends, also in the middle of being drawn."""

from __future__ import annotations

import io
import subprocess
import sys
import time

import pytest

from ssamba.utils.progress import Bar


class Terminal(io.StringIO):
    """A terminal on which Ctrl-C is pressed when the bar is first shown, before the write has returned."""

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        if "%" in self.getvalue() and not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt

    interrupted = False


def work(steps: int) -> None:
    with Bar("working", "clips") as bar:
        for step in range(steps):
            bar.update(step + 1, steps)
            time.sleep(0.1)


def test_a_bar_interrupted_at_its_first_showing_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyboardInterrupt):
        work(10)
    *_, cleared, rest = terminal.getvalue().split("\r")
    assert (cleared.strip(), rest) == ("", ""), terminal.getvalue()


def test_a_bar_that_was_never_shown_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(1)
    assert terminal.getvalue() == ""


LOST = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
from ssamba.utils.progress import Bar
from ssamba.utils.threads import interrupts_kept
class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
try:
    with interrupts_kept(), Bar("working") as bar:
        for step in range(10):
            if step == 3:
                Finalised()
            print(step)
            bar.update(step, 10)
except KeyboardInterrupt:
    print("interrupted")
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_an_interrupt_within_a_finaliser_is_not_lost() -> None:
    """Python prints it as ignored, and would go on."""
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=True)
    assert "Exception ignored" in done.stderr
    assert done.stdout.split() == ["0", "1", "2", "3", "interrupted", "True"]
