"""The official names with the real huggingface_hub and a server on this machine in the place of the hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.models.pretrained.convert import official_state

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.slow  # a new process for each answer
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import sys, ssamba
try:
    model = ssamba.load(sys.argv[1], "cpu")
    print("loaded", model.config.width)
except ssamba.SsambaError as error:
    print("refused", error)
"""


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, as far as a download goes; what it says is set in the server."""

    def log_message(self, *_: Any) -> None:
        """No lines."""

    def do_HEAD(self) -> None:
        """Size, digest and revision of a file."""
        self.answer(body=False)

    def do_GET(self) -> None:
        """A file."""
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        """The file, or what the mode has in its place."""
        server: Any = self.server
        server.asked.append((self.command, self.path))
        mode, content = server.mode, server.content
        if mode in ("404", "403", "500"):
            self.send_response(int(mode))
            if mode == "404":
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        html = b"<!DOCTYPE html><html>Please log in to this network</html>"
        sent = html if mode in ("portal", "html") else content
        self.send_response(200)
        if mode != "portal":
            self.send_header("X-Repo-Commit", server.commit)
            self.send_header("ETag", f'"{hashlib.sha256(sent).hexdigest()}"')
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if body:
            self.wfile.write(sent[: len(sent) // 2] if mode == "truncated" else sent)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model = SSAMBA(Config.tiny(depth=2), generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("hub") / "x.pth"
    torch.save(official_state(model.config, model.state_dict()), path)
    return path.read_bytes()


@pytest.fixture
def hub(weights: bytes) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.mode, server.content, server.commit, server.asked = "good", weights, COMMIT, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def load(hub: Any, home: Path, name: str = "ssamba-tiny-400", **more: str) -> str:
    """What a new process says of a name."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "no_proxy": "*",
        **more,
    }
    command = [sys.executable, "-c", CODE, name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, timeout=300, check=True)
    assert done.stdout.count("\n") == 1, done.stdout
    return done.stdout.strip()


def files(home: Path) -> list[str]:
    return sorted(path.name for path in home.rglob("*.pth")) + sorted(p.name for p in home.rglob("*.incomplete"))


def test_a_download_is_written_down_and_compared_later(hub: Any, tmp_path: Path, weights: bytes) -> None:
    assert load(hub, tmp_path) == "loaded 192"
    (record,) = tmp_path.rglob("ssamba-digests.json")
    digest = hashlib.sha256(weights).hexdigest()
    assert json.loads(record.read_text()) == {"revision": COMMIT, "sha256": {"ssamba_tiny_400.pth": digest}}
    hub.asked.clear()
    assert load(hub, tmp_path) == "loaded 192"
    assert not hub.asked  # nothing is asked for that is here
    # Later files come from the same revision, whatever "main" has become.
    hub.commit = "f" * 40
    load(hub, tmp_path, "ssamba-tiny-300")
    assert {path for _, path in hub.asked if "300" in path} == {
        f"/attentionisallyouneed369/ssamba/resolve/{COMMIT}/ssamba_tiny_300.pth"
    }
    (found,) = tmp_path.rglob("ssamba_tiny_400.pth")
    content = bytearray(weights)
    content[len(content) // 2] ^= 1
    Path(os.path.realpath(found)).write_bytes(content)
    message = load(hub, tmp_path)
    assert message.startswith("refused ssamba-tiny-400: ")
    assert "is not the file of its first download (sha256 " in message
    assert f"remove {record}" in message
    record.unlink()
    assert "first download" not in load(hub, tmp_path)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("404", "has no such file for everyone to read"),
        ("403", "could not be downloaded"),
        ("portal", "could not be downloaded"),
        ("truncated", "could not be downloaded"),
    ],
)
def test_bad_answers_leave_no_file(hub: Any, tmp_path: Path, mode: str, reason: str) -> None:
    hub.mode = mode
    message = load(hub, tmp_path)
    assert message.startswith("refused ssamba-tiny-400: ")
    assert reason in message
    assert message.endswith("get ssamba_tiny_400.pth from https://huggingface.co/attentionisallyouneed369/ssamba/tree/"
                            "main and give its path")  # fmt: skip
    assert files(tmp_path) == []
    hub.mode = "good"
    assert load(hub, tmp_path) == "loaded 192"


def test_a_web_page_in_the_place_of_the_weights(hub: Any, tmp_path: Path) -> None:
    hub.mode = "html"
    message = load(hub, tmp_path)
    assert "it is a web page" in message
    assert message.endswith("; remove that file to download it again")


def test_without_a_network(hub: Any, tmp_path: Path) -> None:
    message = load(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "huggingface.co cannot be reached" in message
    assert "huggingface.co cannot be reached" in load(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert load(hub, tmp_path) == "loaded 192"
    assert load(hub, tmp_path, HF_HUB_OFFLINE="1") == "loaded 192"


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"revision": 3}', '{"revision": "main", "sha256": {}}', '{"sha256": 1}']
)
def test_a_damaged_record(hub: Any, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "hub" / "models--attentionisallyouneed369--ssamba"
    folder.mkdir(parents=True)
    (folder / "ssamba-digests.json").write_text(content)
    message = load(hub, tmp_path)
    assert message.startswith("refused ")
    assert "ssamba-digests.json: " in message
