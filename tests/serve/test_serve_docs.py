"""The commands of docs/serve.md run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import wave
from pathlib import Path

import pytest
from serving import Server, encoded, tone

from ssamba.serve.http.problems import BUSY
from ssamba.serve.openapi import description
from ssamba.serve.options import ServeOptions

DOCUMENT = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines()]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl is installed")
def test_the_examples_run(server: Server, tmp_path: Path) -> None:
    (tmp_path / "clip.flac").write_bytes(encoded(tone(3.0, 2), "FLAC"))
    assert len(COMMANDS) >= 13
    for command in COMMANDS:
        command = command.replace("http://127.0.0.1:8000", server.url).replace("curl ", "curl --fail-with-body -s ")
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if "format=" not in command and "/metrics" not in command and "--output" not in command:
            assert "error" not in json.loads(done.stdout)
    with wave.open(os.fspath(tmp_path / "found.wav")) as file:
        assert file.getnframes() == 16000


def test_defaults_and_statuses_are_those_of_the_document() -> None:
    options = ServeOptions()
    found = dict(re.findall(r"^\| `--([\w-]+)` \| ([\d.]+) \|", DOCUMENT, re.MULTILINE))
    assert len(found) == 7
    for name, value in found.items():
        assert float(value) == getattr(options, name.replace("-", "_"))
    named = {
        int(n) for row in re.findall(r"^\| (\d{3}(?:, \d{3})*) \|", DOCUMENT, re.MULTILINE) for n in row.split(", ")
    }
    described = description(options)["paths"]["/embed"]["post"]["responses"]
    assert named == {int(status) for status in described} - {200}
    assert BUSY in named
    for path in description(options)["paths"]:
        assert path.partition("/{")[0] in DOCUMENT
