"""The Dockerfile's steps without Docker: parsed, and carried out in a change root over this machine's own system.

What stands in for the base image is this machine, seen through an overlay: nothing that a step writes reaches it.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Stage:
    """A stage: its base image, its name and its instructions in order."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        """The value of the last instruction of a kind."""
        return [value for kind, value in self.steps if kind == instruction][-1]


def stages(text: str) -> list[Stage]:
    """Parse a Dockerfile of the form that ours has: comments at the beginning of lines, back-slash continuations."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found: list[Stage] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        kind, _, value = line.partition(" ")
        if kind == "FROM":
            base, _, name = value.partition(" AS ")
            found.append(Stage(base, name))
        else:
            found[-1].steps.append((kind, re.sub(r"  +", " ", value.strip())))
    return found


def context() -> list[str]:
    """Tracked files that .dockerignore lets into the build, with its rules: the last line that matches decides."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file() and not _ignored(name, rules)]


def _ignored(name: str, rules: list[str]) -> bool:
    parts = name.split("/")
    prefixes = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        bare = pattern.removeprefix("**/")
        candidates = prefixes if bare == pattern else [*prefixes, *parts]
        if any(fnmatch.fnmatchcase(c, bare) for c in candidates):
            ignored = not rule.startswith("!")
    return ignored


def copies(stage: Stage) -> list[tuple[str | None, list[str], str]]:
    """``COPY``: (stage or None, sources, destination)."""
    found: list[tuple[str | None, list[str], str]] = []
    for kind, value in stage.steps:
        if kind == "COPY":
            words = value.split()
            origin = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
            found.append((origin, words[:-1], words[-1]))
    return found


def script(folder: Path) -> str:
    """A shell script that carries out the Dockerfile in ``folder``, and leaves the image's ``run`` there.

    ``run WORDS`` runs the entry point with WORDS as the image's user, in its working folder.
    """
    build = ROOT / "Dockerfile"
    lines = ["set -euo pipefail"]
    made = folder / "context"
    for name in context():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, made / name)
    for number, stage in enumerate(stages(build.read_text(encoding="utf-8"))):
        root = folder / f"root-{stage.name or number}"
        lines += _mount(folder, root)
        lines += _steps(stage, root, folder, made)
    return "\n".join([*lines, _run(stages(build.read_text(encoding="utf-8"))[-1], root), ""])


def _mount(folder: Path, root: Path) -> list[str]:
    upper, work = folder / f"{root.name}-upper", folder / f"{root.name}-work"
    for path in (root, upper, work):
        path.mkdir()
    return [
        f"mount -t overlay overlay -o lowerdir=/,upperdir={upper},workdir={work} {root}",
        f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev",
        f"chmod go+rx {root}/root && ln -sf {sys.executable} {root}/usr/local/bin/python",
    ]


def _steps(stage: Stage, root: Path, folder: Path, made: Path) -> list[str]:
    lines, place = [], "/"
    for kind, value in stage.steps:
        if kind in ("ENV", "ARG"):
            lines += [f"export {value}"]
        elif kind == "WORKDIR":
            place = value
            lines.append(f"mkdir -p {root}{place}")
        elif kind == "RUN":
            lines.append(f"chroot {root} /bin/sh -c {shlex.quote(f'cd {place} && {value}')}")
        elif kind == "COPY":
            words = value.split()
            origin = folder / f"root-{words.pop(0).removeprefix('--from=')}" if words[0].startswith("--from=") else made
            goal = words[-1] if words[-1].startswith("/") else f"{place}/{words[-1]}"
            for word in words[:-1]:
                whole = (origin != made) or word == "."
                source = f"{origin}/{word.lstrip('/')}" + ("/." if whole else "")
                lines.append(f"mkdir -p {root}{goal} && cp -a {source} {root}{goal}/")
    return lines


def _run(stage: Stage, root: Path) -> str:
    words = " ".join(shlex.quote(word) for word in json.loads(stage.last("ENTRYPOINT")))
    user, place = stage.last("USER"), stage.last("WORKDIR")
    inner = f'cd {place} && exec setpriv --reuid {user} --regid {user} --clear-groups {words} "$@"'
    return f'run() {{ HOME=/ chroot {root} /bin/sh -c {shlex.quote(inner)} sh "$@"; }}'


def can_mount() -> bool:
    """Whether this process may make mounts of its own: root, on a system with overlays."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    probe = "d=$(mktemp -d) && mkdir $d/u $d/w $d/m && mount -t overlay o -o lowerdir=/,upperdir=$d/u,workdir=$d/w $d/m"
    return subprocess.run(["unshare", "-m", "bash", "-c", probe], capture_output=True).returncode == 0
