"""Requests that come together share passes, and each gets what it gets alone; one that fails fails alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import KINDS, RATE, Server, encoded

import ssamba
from ssamba.inference.predict import check_options
from ssamba.serve.engine import EmbedWork, Engine, PredictWork, SearchWork

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-5
"""Of embeddings, whose largest value is about 7, and of scores: a matrix product of another size rounds otherwise."""


@pytest.fixture(scope="module")
def model(run: Path) -> ssamba.Encoder:
    return ssamba.load(run, "cpu")


def recordings() -> list[np.ndarray]:
    """Of 0.1 to 5 s: some of one length, some shorter and some longer than the model's window."""
    lengths = [0.1, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0, 2.08, 2.5, 3.3, 5.0, 1.0]
    return [make(seconds, 200 + i) for i, seconds in enumerate(lengths) for make in [list(KINDS.values())[i % 3]]]


def test_requests_that_come_together_get_what_they_get_alone(server: Server, model: ssamba.Encoder) -> None:
    sounds = recordings()
    files = [encoded(sound, "FLAC") for sound in sounds]
    groups, clips = server.metric("ssamba_group_recordings_count"), server.metric("ssamba_group_recordings_sum")
    start = threading.Barrier(2 * len(files))

    def ask(path: str, content: bytes) -> Any:
        start.wait()
        return server.post(path, content).json

    with ThreadPoolExecutor(2 * len(files)) as pool:
        work = [pool.submit(ask, path, file) for file in files for path in ("/embed?frames=1", "/predict?every=0.5")]
        answers = [future.result() for future in work]
    for file, embedded, predicted in zip(files, answers[::2], answers[1::2], strict=True):
        there = model.embed(file)
        assert np.abs(np.float32(embedded["embedding"]) - there.clip[0].numpy()).max() <= TOLERANCE
        assert np.abs(np.float32(embedded["frames"]) - there.frames[0].numpy()).max() <= TOLERANCE
        (prediction,) = model.predict(file, every=0.5)
        scores = [{s["class"]: s["score"] for s in row["scores"]} for row in predicted["rows"]]
        found = np.array([[row[name] for name in prediction.classes] for row in scores])
        assert np.abs(found - prediction.scores.numpy()).max() <= TOLERANCE
    made = server.metric("ssamba_group_recordings_count") - groups
    assert server.metric("ssamba_group_recordings_sum") - clips == 2 * len(files)
    assert made <= len(files), "requests did not share groups"


@pytest.fixture
def engine(model: ssamba.Encoder) -> Iterator[Engine]:
    with Engine(model, batch=8, wait=0.3) as engine:
        yield engine


def test_groups_are_as_large_as_is_allowed(model: ssamba.Encoder) -> None:
    sizes: list[int] = []
    with Engine(model, batch=3, wait=0.5, seen=lambda size, seconds: sizes.append(size)) as engine:
        work = [engine.submit(EmbedWork(), torch.zeros(RATE // 10), RATE) for _ in range(7)]
        for future in work:
            future.result(60)
    assert sizes == [3, 3, 1]


def test_long_recordings_end_a_group(model: ssamba.Encoder) -> None:
    sizes: list[int] = []
    with Engine(model, batch=8, wait=0.5, seen=lambda size, seconds: sizes.append(size)) as engine:
        jobs: list[Future[Any]] = [engine.submit(EmbedWork(), torch.zeros(35 * RATE), RATE) for _ in range(2)]
        jobs[1].cancel()
        jobs[0].result(60)
    assert sizes == [1, 1]


def test_one_that_fails_fails_alone(engine: Engine, model: ssamba.Encoder) -> None:
    sounds = [torch.from_numpy(sound) for sound in recordings()[2:5]]
    bad = torch.zeros(10)  # shorter than a frame
    jobs = [engine.submit(EmbedWork(), sound, RATE) for sound in (sounds[0], bad, sounds[1])]
    with pytest.raises(ssamba.AudioError, match="give 25 ms or more"):
        jobs[1].result(60)
    for future, sound in ((jobs[0], sounds[0]), (jobs[2], sounds[1])):
        assert torch.allclose(future.result(60).clip, model.embed(sound, RATE).clip[0], rtol=0, atol=TOLERANCE)
    with pytest.raises(ssamba.SsambaError, match="there is no index"):
        engine.submit(SearchWork(), sounds[0], RATE).result(60)


def test_what_nobody_waits_for_is_left_out(engine: Engine, model: ssamba.Encoder) -> None:
    work = PredictWork(check_options(model))
    sound = torch.from_numpy(recordings()[3])
    first, second = (engine.submit(work, sound, RATE) for _ in range(2))
    assert first.cancel()
    assert torch.allclose(second.result(60).scores, model.predict(sound, RATE)[0].scores, rtol=0, atol=TOLERANCE)
    assert first.cancelled()
