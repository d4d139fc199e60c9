"""Runs exported models in headless Chromium with onnxruntime-web and compares them with torch (see README.md).

    npm install --ignore-scripts
    python check.py [SOURCE] [--chromium /usr/bin/chromium]

Exit code 0 when every value is within 1e-3 of torch's, in models whose tokens reach about 10.
"""

from __future__ import annotations

import argparse
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ssamba
from ssamba.audio import log_mel
from ssamba.inference.onnx.export import export_onnx, made_up_sound
from ssamba.inference.onnx.weights import rounded
from ssamba.models import patches

HERE = Path(__file__).parent
SECONDS, RATE = (0.5, 2.0, 10.0), 16000
FILES = (("tokens", "fp32"), ("clip", "fp32"), ("clip", "fp16"), ("clip", "int8"))
CLOSE, PATIENCE = 1e-3, 600
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@torch.no_grad()
def prepare(model: ssamba.Encoder, folder: Path) -> None:
    """Model files, sounds and torch's answers in ``folder``, and cases.json, which lists them."""
    cases = []
    sound = made_up_sound().astype(np.float32) / 2**15
    for seconds in SECONDS:
        sound[: round(seconds * RATE)].tofile(folder / f"sound-{seconds}.f32")
    for output, weights in FILES:
        name = f"{output}-{weights}"
        export_onnx(model, folder / f"{name}.onnx", output, weights=weights)
        tests = []
        for seconds in SECONDS:
            waveform = torch.from_numpy(sound[: round(seconds * RATE)])
            wanted = answer(rounded(model, weights), waveform, output)
            wanted.numpy().tofile(folder / f"{name}-{seconds}.f32")
            case = {"name": f"{name}, {seconds:g} s, {shape(wanted)}", "output": output, "shape": [1, len(waveform)]}
            files = {"input": f"/sound-{seconds}.f32", "wanted": f"/{name}-{seconds}.f32"}
            tests.append(case | files)
        cases.append({"model": f"/{name}.onnx", "tests": tests})
    (folder / "cases.json").write_text(json.dumps(cases))


def answer(model: Any, waveform: torch.Tensor, output: str) -> torch.Tensor:
    """What the file gives: all tokens, or the mean of the patch tokens."""
    config = model.config
    logs = log_mel.filter_bank(waveform[None], config.front_end)
    frames = patches.covered_frames(patches.columns(logs.shape[1], config), config)
    tokens = model.encode(config.front_end.normalise(log_mel.fit_length(logs, frames)))
    return tokens if output == "tokens" else tokens[:, model.prefix_tokens :].mean(dim=1)


def shape(values: torch.Tensor) -> str:
    """Sizes as text."""
    return " x ".join(map(str, values.shape))


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves this folder and the prepared files; takes the result."""

    def __init__(self, *args: Any, prepared: Path, arrived: threading.Event, results: list[Any], **more: Any) -> None:
        self._prepared, self._arrived, self._results = prepared, arrived, results
        super().__init__(*args, directory=str(HERE), **more)

    def translate_path(self, path: str) -> str:
        """A prepared file, or one of this folder."""
        name = self._prepared / path.lstrip("/").partition("?")[0]
        return str(name) if name.is_file() else super().translate_path(path)

    def do_POST(self) -> None:
        """The page's result."""
        self._results.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self._arrived.set()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def browse(chromium: str, prepared: Path) -> Any:
    """Open the page in headless Chromium; returns what it posts, or None when it takes too long."""
    arrived, results = threading.Event(), list[Any]()
    handler = partial(Handler, prepared=prepared, arrived=arrived, results=results)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/page.html"
        words = [chromium, *FLAGS, f"--user-data-dir={profile}", url]
        browser = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        arrived.wait(PATIENCE)
        browser.terminate()
        browser.wait(30)
        server.shutdown()
        shutil.rmtree(profile, ignore_errors=True)
        Path(profile).mkdir(exist_ok=True)
    return results[0] if results else None


def main() -> int:
    """Prepare, browse, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="what ssamba.load takes (default: tiny)")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(ssamba.load(arguments.source, device="cpu"), Path(folder))
        results = browse(arguments.chromium, Path(folder))
    if not isinstance(results, list):
        print(f"failed: {results or 'no answer from the page'}", file=sys.stderr)
        return 1
    version = subprocess.run([arguments.chromium, "--version"], capture_output=True, text=True, check=False).stdout
    print(
        f"{version.strip()}, one thread\n\n| file, sound, values | to load | a run | largest error |\n|---|---|---|---|"
    )
    for row in results:
        print(f"| {row['name']} | {row['load_ms']:.0f} ms | {row['ms']:.0f} ms | {row['error']:.1e} |")
    return int(max(row["error"] for row in results) > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
