"""``ssamba push`` up to the network's edge: what it sends to a hub of our own, its card, its errors."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import ssamba
from ssamba.cli import main
from ssamba.inference.hf.card import model_card
from ssamba.models.pretrained.model_dir import read_model

yaml = pytest.importorskip("yaml")


class Hub(BaseHTTPRequestHandler):
    """The calls that an upload makes, answered as the hub does; ``refuse``: the status of every answer."""

    files: dict[str, bytes]
    calls: list[str]
    refuse: int | None

    def answer(self, values: Any, status: int = 200) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        self.calls.append(f"GET {self.path}")
        if self.refuse:
            return self.answer({"error": "no"}, self.refuse)
        self.answer({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body, path = self.body(), self.path.partition("?")[0]
        self.calls.append(f"POST {path}")
        address = f"http://{self.headers['Host']}"
        if self.refuse:
            return self.answer({"error": "no"}, self.refuse)
        if path == "/api/repos/create":
            self.files["create"] = body
            return self.answer({"url": f"{address}/me/model", "name": "me/model"})
        if path.endswith("/preupload/main"):
            names = [f["path"] for f in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "lfs" if n.endswith("safetensors") else "regular"} for n in names]
            return self.answer({"files": [m | {"shouldIgnore": False} for m in modes]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [{"oid": o["oid"], "size": o["size"], "authenticated": True,
                        "actions": {"upload": {"href": f"{address}/lfs/{o['oid']}", "header": {}}}}
                       for o in json.loads(body)["objects"]]  # fmt: skip
            return self.answer({"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "lfsFile":
                    self.files[line["value"]["path"]] = self.files.pop(line["value"]["oid"])
            done = {
                "success": True,
                "commitOid": "1" * 40,
                "commitUrl": f"{address}/me/model/commit/1",
                "hookOutput": "",
            }
            return self.answer(done)
        self.answer({})

    def do_PUT(self) -> None:
        self.files[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    """Address and records of a hub on this machine."""
    kind = type("Recorder", (Hub,), {"files": {}, "calls": [], "refuse": None, "protocol_version": "HTTP/1.1"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()
    server.server_close()


def push(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "ssamba", "push", *words, cwd=cwd, **environment)


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, without settings of the hub but these."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    clean |= {"HF_HOME": str(cwd / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
              "HF_TOKEN": "hf_made_up", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    command = [sys.executable, *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=clean | environment, timeout=200, stdin=subprocess.DEVNULL
    )


def test_what_is_sent(hub: tuple[str, type[Hub]], classifying: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    address, records = hub
    words = ["me/model", "--model", str(classifying), "--private", "--license", "cc-by-4.0"]
    done = push(*words, cwd=tmp_path, HF_ENDPOINT=address)
    assert (done.returncode, done.stdout) == (0, f"{address}/me/model\n"), done.stderr
    sent = dict(records.files)
    created = json.loads(sent.pop("create"))
    assert created["name"] == "model"
    # As versions of the library say it.
    assert created.get("private") is True or created.get("visibility") == "private"
    assert set(sent) == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "configuration_ssamba.py",
        "encoder_ssamba.py", "feature_extraction_ssamba.py", "modeling_ssamba.py",
    }  # fmt: skip
    folder = tmp_path / "sent"
    folder.mkdir()
    for name, content in sent.items():
        (folder / name).write_bytes(content)
    assert ssamba.load(folder, "cpu").classifier is not None
    assert read_model(folder)[1].keys() == read_model(classifying)[1].keys()
    assert "license: cc-by-4.0" in sent["README.md"].decode()


def test_what_transformers_sends(hub: tuple[str, type[Hub]], folder: Path, tmp_path: Path) -> None:
    """Also when the model is uploaded while it is saved: nothing that auto_map names is left out."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    address, records = hub
    code = f"""
import ssamba
model = ssamba.hf.SsambaModel.from_pretrained({str(folder)!r})
model.save_pretrained("saved", push_to_hub=True, repo_id="me/model")
"""
    done = run("-c", code, cwd=tmp_path, HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr[-2000:]
    sent = {name: content for name, content in records.files.items() if name != "create"}
    mapped = json.loads(sent["config.json"])["auto_map"].values()
    extractor = json.loads(sent["preprocessor_config.json"])["auto_map"].values()
    modules = {f"{name.partition('.')[0]}.py" for name in (*mapped, *extractor)}
    assert modules | {"encoder_ssamba.py", "model.safetensors"} <= set(sent)


@pytest.mark.parametrize(("status", "message"), [(401, "the hub wants a token"), (403, "may not write there")])
def test_a_hub_that_refuses(
    hub: tuple[str, type[Hub]], folder: Path, tmp_path: Path, status: int, message: str
) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    address, records = hub
    records.refuse = status
    done = push("me/model", "--model", str(folder), "--folder", "kept", cwd=tmp_path, HF_ENDPOINT=address)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.endswith("; what was to be uploaded lies in kept\n")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "kept" / "README.md").exists()


@pytest.mark.parametrize("offline", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_network(folder: Path, tmp_path: Path, offline: dict[str, str]) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    done = push("me/model", "--model", str(folder), cwd=tmp_path, **offline)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ssamba: error: me/model: was not uploaded, huggingface.co cannot be reached\n"


def test_bad_words(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = str(tmp_path / "f")
    for words, message in [
        (["a/b/c", "--model", str(folder)], "a/b/c: is no name of a repository; give user/model"),
        (["me/model"], "--model"),
        (["me/model", "--model", "nothing", "--folder", new, "--dry-run"], "nothing: no such file"),
        (["me/model", "--model", str(folder), "--dry-run"], "give --folder DIR"),
        (["me/model", "--model", str(folder), "--folder", str(folder), "--dry-run"], "is no empty folder"),
        (
            ["me/model", "--model", str(folder), "--folder", new, "--dry-run", "--card", "no.md"],
            "no.md",
        ),
    ]:
        assert main.main(["push", *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1


def test_without_huggingface_hub(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main.main(["push", "me/model", "--model", str(folder)]) == 2
    assert capsys.readouterr().err.endswith("me/model: to upload it, pip install 'ssamba[hf]'\n")


def test_the_card(classifying: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (classifying / "results.json").write_text(json.dumps({"accuracy": 0.9375, "folds": [1], "metric": "accuracy"}))
    out = tmp_path / "out"
    words = ["me/cats", "--model", str(classifying), "--folder", str(out), "--dry-run"]
    assert main.main(["push", *words]) == 0
    assert sorted(capsys.readouterr().out.split()) == sorted(str(p) for p in out.iterdir())
    text = (out / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["pipeline_tag"] == "audio-classification"
    assert head["library_name"] == "transformers"
    assert "license" not in head
    count = sum(p.numel() for p in ssamba.load(classifying, "cpu").parameters())
    loads = 'AutoModelForAudioClassification.from_pretrained("me/cats", trust_remote_code=True)'
    holds = f"{count:,}, stored as float32, with a classifier"
    for part in ("# me/cats\n", "cat, dog, rain", holds, "| accuracy | 0.9375 |", loads, "many times slower"):
        assert part in text
    description, tensors = read_model(folder)
    bare = model_card("me/m", description, tensors, folder, "mit", remote_code=False)
    assert yaml.safe_load(bare.split("---")[1])["license"] == "mit"
    assert "trust_remote_code" not in bare
    assert "feature-extraction" in bare
    mine = tmp_path / "mine.md"
    mine.write_text("# Mine\n")
    assert main.main(["push", *words[:-2], str(tmp_path / "two"), "--dry-run", "--card", str(mine)]) == 0
    assert (tmp_path / "two" / "README.md").read_text() == "# Mine\n"


def test_the_card_of_the_package_s_model_is_complete(tmp_path: Path) -> None:
    """Nothing is left to fill in; the hub's own library reads its metadata; its numbers are those of the documents."""
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    assert main.main(["push", "me/tiny", "--model", "tiny", "--folder", str(tmp_path / "out"), "--dry-run"]) == 0
    card = hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert card.data.pipeline_tag == "feature-extraction"
    assert {"ssamba", "audio", "self-supervised"} <= set(card.data.tags)
    for heading in ("Use", "Data", "Training", "Evaluation", "Limits", "Intended use"):
        assert f"\n## {heading}\n" in card.text
    assert "filled in" not in card.text
    ours = (Path(ssamba.__file__).parent / "models/pretrained/weights/tiny/CARD.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"\d[\d,]*\.\d+|\d+,\d{3}", ours))
    documents = (Path(__file__).parents[3] / "docs" / "models" / "tiny.md").read_text(encoding="utf-8")
    assert len(numbers) >= 12
    assert not {n for n in numbers if n not in documents}
    # A copy of the weights may hold anything: only the package's folder has this card.
    description, tensors = read_model(tmp_path / "out")
    copied = model_card("me/m", description, tensors, tmp_path / "out", None, remote_code=False)
    assert "To be filled in by the author" in copied
    assert "license:" not in copied


def test_the_copied_modules_are_those_of_the_package(folder: Path, tmp_path: Path) -> None:
    from ssamba.inference.hf.folder import CODE, code_file

    ssamba.hf.export(folder, tmp_path / "out")
    assert {p.name for p in code_file("").iterdir() if p.suffix == ".py"} - {"__init__.py"} == set(CODE)
    for name in CODE:
        assert (tmp_path / "out" / name).read_bytes() == code_file(name).read_bytes()


def test_names_that_need_transformers_say_so() -> None:
    code = """
import sys
sys.modules["transformers"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "transformers" else find(name, *rest)
import ssamba
for name in ("SsambaModel", "register", "SsambaConfig"):
    try:
        getattr(ssamba.hf, name)
    except ImportError as error:
        print(error)
print(ssamba.hf.export.__name__, hasattr(ssamba.hf, "nothing"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.splitlines() == [
        f"ssamba.hf.{n}: needs transformers: pip install 'ssamba[transformers]'"
        for n in ("SsambaModel", "register", "SsambaConfig")
    ] + ["export False"]
