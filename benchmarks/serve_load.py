"""``ssamba serve`` under load: many clients for a while, next to one process that calls ``embed``.

    PYTHONPATH=src python benchmarks/serve_load.py --clients 100 --seconds 60

Each client sends one clip after the other over one connection and compares each answer with what ``embed`` gives here.
Prints a table in markdown: requests, what was lost or wrong, latency, throughput, and the server's memory before, after
a tenth of the time and at the end. Ends with code 1 where an answer was lost, refused or wrong.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import soundfile

import ssamba

RATE = 16000
CLIPS = 16
TOLERANCE = 1e-5


@dataclass
class Tally:
    """What the clients have seen; lists take appends from all threads."""

    seconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    error: list[float] = field(default_factory=list)


def make_clips(seconds: float) -> list[bytes]:
    """Recordings as FLAC, no two alike."""
    clips = []
    for seed in range(CLIPS):
        rng = np.random.default_rng(seed)
        time_ = np.arange(round(seconds * RATE)) / RATE
        wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * time_) + rng.normal(0, 0.05, len(time_))
        file = io.BytesIO()
        soundfile.write(file, wave.astype(np.float32), RATE, format="FLAC")
        clips.append(file.getvalue())
    return clips


def start_server(words: list[str]) -> tuple[subprocess.Popen[str], int]:
    """A server on a free port."""
    command = [sys.executable, "-m", "ssamba", "serve", "--port", "0", "--rate", "0", "--in-flight", "1024", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    assert process.stdout is not None
    found = re.search(r":(\d+)/", process.stdout.readline())
    if found is None:
        raise SystemExit("serve_load.py: the server did not start; run ssamba serve to see why")
    return process, int(found[1])


def client(port: int, number: int, clips: list[bytes], expected: np.ndarray, end: float, tally: Tally) -> None:
    """Ask until ``end``, without a pause."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    turn = number
    while time.monotonic() < end:
        which, begin = turn % len(clips), time.monotonic()
        turn += 1
        try:
            connection.request("POST", "/embed", clips[which], {"Content-Type": "audio/flac"})
            answer = connection.getresponse()
            body = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            tally.lost.append(repr(error))
            connection.close()
            continue
        if answer.status != 200:
            tally.lost.append(f"{answer.status} {body}")
            continue
        tally.seconds.append(time.monotonic() - begin)
        tally.error.append(float(np.abs(np.float32(body["embedding"]) - expected[which]).max()))
    connection.close()


def metric(port: int, name: str) -> float:
    """One of the server's metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(next(line for line in text.splitlines() if line.startswith(name + " ")).split()[-1])


def measure(
    port: int, clients: int, seconds: float, clips: list[bytes], expected: np.ndarray
) -> tuple[Tally, float, list[float]]:
    """All clients at once; their tally, the time that it took, and memory before, early and at the end."""
    memory = [metric(port, "process_resident_memory_bytes")]
    tally, begin = Tally(), time.monotonic()
    end = begin + seconds
    threads = [
        threading.Thread(target=client, args=(port, number, clips, expected, end, tally)) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 10)
    memory.append(metric(port, "process_resident_memory_bytes"))
    for thread in threads:
        thread.join()
    return tally, time.monotonic() - begin, [*memory, metric(port, "process_resident_memory_bytes")]


def in_process(model: ssamba.Encoder, clips: list[bytes], seconds: float) -> tuple[float, np.ndarray]:
    """Recordings a second of one process that calls ``embed`` on one after the other, and their embeddings."""
    expected = np.stack([model.embed(clip).clip[0].cpu().numpy() for clip in clips])
    count, begin = 0, time.monotonic()
    while time.monotonic() - begin < seconds:
        model.embed(clips[count % len(clips)])
        count += 1
    return count / (time.monotonic() - begin), expected


def main() -> int:
    """Measure, print, and say by the exit code whether every answer was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100, help="connections that ask without a pause")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they ask")
    parser.add_argument("--clip", type=float, default=2.0, help="length of a recording in seconds")
    parser.add_argument("--model", default="tiny", help="as of ssamba serve")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    given = parser.parse_args()
    clips = make_clips(given.clip)
    alone, expected = in_process(ssamba.load(given.model, given.device), clips, given.seconds / 6)
    server, port = start_server([given.model, "--device", given.device])
    try:
        tally, took, memory = measure(port, given.clients, given.seconds, clips, expected)
        groups = metric(port, "ssamba_group_recordings_sum") / metric(port, "ssamba_group_recordings_count")
    finally:
        server.terminate()
        code = server.wait(60)
    low, middle, high, worst = np.percentile(tally.seconds, [50, 90, 99, 100])
    wrong = sum(error > TOLERANCE for error in tally.error)
    print(f"{given.clients} clients, {given.seconds:g} s, clips of {given.clip:g} s, {given.device}\n")
    print("| | |\n|---|---|")
    print(f"| answered, lost or refused, wrong | {len(tally.seconds):,}, {len(tally.lost)}, {wrong} |")
    print(f"| latency: median, 90 %, 99 %, worst | {low:.2f}, {middle:.2f}, {high:.2f}, {worst:.2f} s |")
    print(f"| recordings a second | {len(tally.seconds) / took:.1f} |")
    print(f"| one process that calls embed | {alone:.1f} |")
    print(f"| recordings in a group, mean | {groups:.1f} |")
    mebibytes = ", ".join(f"{size / 2**20:,.0f}" for size in memory)
    print(f"| memory before, after a tenth of the time, at the end | {mebibytes} MiB |")
    print(f"| largest difference from embed | {max(tally.error):.1e} |")
    print(f"| exit code of the server at SIGTERM | {code} |")
    for line in tally.lost[:5]:
        print(line, file=sys.stderr)
    return int(bool(tally.lost) or wrong > 0 or code != 0)


if __name__ == "__main__":
    sys.exit(main())
