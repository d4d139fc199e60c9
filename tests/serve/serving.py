"""A real ``ssamba serve`` process, and a plain HTTP client."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16000
AUDIO = {"Content-Type": "application/octet-stream"}


class Reply(NamedTuple):
    """Status, headers in small letters, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A server process on a free port; its lines on stderr are in ``log``."""

    def __init__(self, folder: Path, *words: object) -> None:
        self.log = folder / f"serve-{time.monotonic_ns()}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        command = [sys.executable, "-m", "ssamba", "serve", *map(str, words), "--port", "0", "--device", "cpu"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=folder, text=True
            )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        assert self.line.startswith("serving "), self.log.read_text()
        self.port = int(self.line.split(":")[-1].split("/")[0])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 120
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
        return self.ask("POST", path, body, AUDIO if headers is None else headers)

    def metric(self, name: str) -> float:
        """A metric's value; ``name`` with its labels."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        raise KeyError(name)

    def end(self, number: int = signal.SIGTERM, wait: float = 60) -> int:
        self.process.send_signal(number)
        return self.process.wait(wait)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def encoded(samples: NDArray[Any], format: str = "WAV", rate: int = RATE, **settings: Any) -> bytes:
    """Samples as a file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, **settings)
    return file.getvalue()


def form(content: bytes, name: str = "clip.wav", field: str = "file") -> tuple[bytes, dict[str, str]]:
    """A recording as curl -F sends it: the body and its headers."""
    head = f'--limit\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
    body = head.encode() + b"Content-Type: audio/wav\r\n\r\n" + content + b"\r\n--limit--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=limit"}


def tone(seconds: float, seed: int) -> NDArray[np.float32]:
    """A pitch that jumps every 0.1 s: no two stretches are alike."""
    rng = np.random.default_rng(seed)
    count = round(seconds * RATE)
    pitch = np.repeat(rng.uniform(250, 2500, count // 1600 + 1), 1600)[:count]
    wave = 0.4 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
    return (wave + rng.normal(0, 0.003, count)).astype(np.float32)


def hiss(seconds: float, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.15, round(seconds * RATE)).astype(np.float32)


def clicks(seconds: float, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    wave = rng.normal(0, 0.003, round(seconds * RATE) + 200)
    for at in np.arange(0, seconds, rng.uniform(0.08, 0.16)):
        begin = round(at * RATE)
        wave[begin : begin + 200] += rng.choice([-0.8, 0.8]) * np.exp(-np.arange(200) / 30)
    return wave[:-200].astype(np.float32)


KINDS = {"clicks": clicks, "hiss": hiss, "tone": tone}


def scene() -> NDArray[np.float32]:
    """3 s of a tone, 2.5 s of hiss, 3 s of clicks."""
    return np.concatenate([tone(3.0, 101), hiss(2.5, 102), clicks(3.0, 103)])
