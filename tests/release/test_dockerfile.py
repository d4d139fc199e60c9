"""The image: the linter has nothing to say, its steps find their files, and give a program that a plain user runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docker_steps import ROOT, can_mount, context, copies, script, stages

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_linter_has_nothing_to_say(tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint has no wheel for this machine")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text(TEXT.replace("-slim-bookworm AS build", " AS build").replace("python:3.12", "python"))
    assert "DL3006" in subprocess.run([hadolint, str(bad)], capture_output=True, text=True).stdout


def test_what_is_copied_is_there_and_let_in() -> None:
    """A build without one of these would fail, or install another version than the tested one."""
    names = context()
    for stage in stages(TEXT):
        for origin, sources, _ in copies(stage):
            if origin is None:
                assert all(source == "." or source in names for source in sources), sources
    project = re.search(r'^readme = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert project is not None
    needed = {project[1], "LICENSE", "WEIGHTS.md", "THIRD_PARTY.md", "docs/models/tiny-debian-sources.csv"}
    assert needed <= set(names)
    package = {p for p in names if p.startswith("src/ssamba/")}
    tracked = subprocess.run(["git", "ls-files", "src/ssamba"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.splitlines()) <= package
    assert not {n for n in names if n.startswith(("tests/", "docs/images", "experiments/", ".git"))}


def test_installs_are_constrained_and_the_user_has_no_rights() -> None:
    build, final = stages(TEXT)
    installs = [v for kind, v in build.steps if kind == "RUN" and "pip install" in v]
    assert len(installs) == 2
    assert all("--constraint constraints.txt --constraint constraints-dev.txt" in v for v in installs)
    assert int(final.last("USER")) > 0
    assert json.loads(final.last("ENTRYPOINT")) == ["ssamba"]
    assert build.base == final.base
    assert "-slim" in final.base


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_steps_give_a_program(tmp_path: Path) -> None:
    """Every RUN and COPY as it stands, over an overlay of this machine; then the entry point as the image's user."""
    if not can_mount():
        pytest.skip("needs root and overlay mounts")
    checks = """
run --version
run info tiny | head -3
python - <<END
import math, struct, wave
for name in range(8):
    with wave.open(f"$DATA/{name}.wav", "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(t / 8))) for t in range(64000)))
END
run embed . --out embeddings.npz
stat -c %u "$DATA/embeddings.npz"
ls "$CACHE"
"""
    text = script(tmp_path)
    root = tmp_path / "root-1"
    text += f"DATA={root}/data; CACHE={root}/cache; export DATA CACHE\n" + checks
    (tmp_path / "steps.sh").write_text(text)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SSAMBA_", "XDG_"))}
    command = ["unshare", "-m", "bash", str(tmp_path / "steps.sh")]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "embeddings.npz: 8 x 192 from 8 files\n10001\n" in done.stdout
    assert "No broken requirements found." in done.stdout
    assert "\nnumba" in done.stdout, "compiled kernels are kept where the image says"
