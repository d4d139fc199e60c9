"""Snapshots of help, options, exit codes and error lines of the command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from guard_support import GOLDEN, call, own_lines, write_sound, write_sounds

COMMANDS = [
    "embed",
    "pretrain",
    "predict",
    "probe",
    "fit",
    "finetune",
    "report",
    "reconstruct",
    "index",
    "search",
    "serve",
    "duplicates",
    "info",
    "convert",
    "export",
    "push",
    "stats",
    "bench",
    "demo",
]
HELP_FOLDER = GOLDEN / "help"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def help_texts() -> dict[str, str]:
    """The help of the main command and of each subcommand, 100 columns wide."""
    texts = {}
    for name in ("ssamba", *COMMANDS):
        code, out, err = call(["--help"] if name == "ssamba" else [name, "--help"], Path.cwd())
        assert (code, err) == (0, "")
        texts[name] = out
    return texts


def listed_commands(text: str) -> list[str]:
    """Names in the main help's list of commands."""
    return re.findall(r"^  (\w+)  ", text.partition("commands:\n")[2], re.MULTILINE)


def options_of(text: str) -> dict[str, Any]:
    """Options and arguments in a help text: their spellings, metavar or choices, and default."""
    entries: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        started = re.match(r"  (\S.*?)(?:\s{2,}(\S.*))?$", line) if not line.startswith("   ") else None
        if started:
            current = entries.setdefault(started[1], [])
            current.extend([started[2]] if started[2] else [])
        elif line.startswith("    "):
            current.append(line.strip())
        else:
            current = []
    found: dict[str, Any] = {}
    for head, words in entries.items():
        names = re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", head)
        value = re.sub(r"\s+", " ", re.sub(r"(?<![\w-])--?[A-Za-z][\w-]*,?", "", head)).strip()
        default = re.search(r"\(default:? ([^()]*)\)", " ".join(words))
        found[", ".join(names) or head] = [value if names else "argument", default[1] if default else None]
    return found


def options() -> dict[str, Any]:
    """Spellings, metavars, choices and defaults of all options, whatever the wording around them."""
    texts = help_texts()
    found: dict[str, Any] = {"commands": listed_commands(texts["ssamba"])}
    return found | {name: options_of(text) for name, text in texts.items()}


INVOCATIONS: dict[str, list[str]] = {
    "version": ["--version"],
    "unknown command": ["embd"],
    "no near command": ["qqq"],
    "unknown main option": ["--verion"],
    "unknown option": ["embed", "x.wav", "--modle", "m"],
    "unknown short option": ["embed", "x.wav", "-q"],
    "missing argument": ["embed"],
    "missing option": ["reconstruct", "x.wav"],
    "too many arguments": ["info", "a", "b"],
    "wrong choice": ["pretrain", "x", "--out", "r", "--objective", "jiont"],
    "not a number": ["pretrain", "x", "--out", "r", "--lr", "fast"],
    "not whole": ["pretrain", "x", "--out", "r", "--batch", "1.5"],
    "not positive": ["embed", "good.wav", "--batch", "0"],
    "not a device": ["embed", "good.wav", "--device", "quantum", "--out", "a.npz"],
    "no such file": ["embed", "nowhere.wav", "--out", "a.npz"],
    "no such model": ["info", "nowhere"],
    "wrong ending": ["embed", "good.wav", "--out", "a.npy"],
    "folder as output": ["embed", "good.wav", "--out", "folder.npz"],
    "nothing readable": ["embed", "bad.wav", "--out", "b.npz"],
    "embed": ["embed", "good.wav", "--out", "good.npz", "--device", "cpu"],
    "some unreadable": ["embed", "good.wav", "bad.wav", "--out", "c.npz", "--device", "cpu"],
    "stats": ["stats", "good.wav"],
    "stats, some unreadable": ["stats", "good.wav", "bad.wav"],
    "predict without model": ["predict", "good.wav"],
    "predict without classifier": ["predict", "good.wav", "--model", "tiny", "--device", "cpu"],
    "predict, wrong ending": ["predict", "good.wav", "--model", "tiny", "--out", "x.txt"],
    "probe, no such layout": ["probe", "esc-50", "--data", "sounds"],
    "probe, no such data": ["probe", "custom", "--data", "nowhere"],
    "finetune, no such recipe": ["finetune", "esc-50", "--data", "sounds", "--out", "r"],
    "finetune, not the layout": ["finetune", "esc50", "--data", "sounds", "--out", "r"],
    "finetune, not the shape": ["finetune", "custom", "--data", "sounds", "--out", "r", "--size", "base"],
    "pretrain, no such data": ["pretrain", "nowhere", "--out", "r"],
    "pretrain, bad value": ["pretrain", "sounds", "--out", "r", "--batch", "0"],
    "pretrain, bad recipe": ["pretrain", "sounds", "--out", "r", "--recipe", "bad.yaml"],
    "pretrain, mask too large": ["pretrain", "sounds", "--out", "r", "--frames", "64", "--device", "cpu"],
    "bad checkpoint": ["info", "bad.pth"],
    "bad config": ["info", "badmodel"],
    "bench, bad size": ["bench", "--out", "b", "--sizes", "tyni"],
    "convert, no such source": ["convert", "nowhere", "d"],
    "convert, existing": ["convert", "tiny", "folder.npz"],
    "reconstruct, wrong ending": ["reconstruct", "good.wav", "--out", "a.xyz"],
    "info": ["info"],
}
"""Good and bad command lines, run in order in one folder."""


def make_inputs(folder: Path) -> None:
    """The files that ``INVOCATIONS`` name."""
    write_sound(folder / "good.wav", 1)
    (folder / "bad.wav").write_bytes(b"no sound")
    (folder / "bad.pth").write_bytes(b"no tensors")
    (folder / "bad.yaml").write_text("bacth: 3\n")
    (folder / "folder.npz").mkdir()
    (folder / "folder.npz" / "file").touch()
    (folder / "badmodel").mkdir()
    (folder / "badmodel" / "config.json").write_text('{"format": 99}')
    write_sounds(folder / "sounds", 6)


def outcomes(folder: Path) -> dict[str, Any]:
    """Exit code and lines on stderr of each invocation. None: a traceback."""
    make_inputs(folder)
    found = {}
    for name, words in INVOCATIONS.items():
        code, out, err = call(words, folder)
        found[name] = {"words": " ".join(words), "code": code, "lines": own_lines(err), "prints": bool(out)}
    return found
