"""Memory that does not grow with what a small file unpacks to, or claims."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from peak_memory import PEAK

from ssamba.audio.decode import read_audio
from ssamba.data.datasets.common import file_example
from ssamba.data.loaders import audio_cache
from ssamba.data.loaders import read_example as read_example_module
from ssamba.data.loaders.audio_cache import AudioCache, read_quantised
from ssamba.data.loaders.read_example import is_long, read_example, stream_example
from ssamba.data.manifest import Clip
from ssamba.evaluation.probe.features import Wanted, extract
from ssamba.inference.load import load
from ssamba.training.finetune.auto import FREE_FEATURE_BYTES
from ssamba.training.finetune.evaluate import may_keep
from ssamba.training.finetune.recipe import load_finetune_recipe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")

MEASURE = """import sys
from ssamba.audio.decode import audio_info, read_audio, stream_audio
from ssamba.data.loaders.audio_cache import AudioCache
from ssamba.data.manifest import Clip
{peak}
before = peak()
path = sys.argv[1]
{code}
print(peak() - before)"""


def grown(code: str, path: Path) -> float:
    """Megabytes by which a process grows that runs the code; address space is limited as a second guard."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(code=code, peak=PEAK), path],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)),
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.fixture(scope="module")
def near_silence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve hours in under 3 MB: 2.8 GB as float32 at 16 kHz."""
    path = tmp_path_factory.mktemp("long") / "long.flac"
    block = np.zeros(16000 * 600, np.int16)
    block[:: 16000 * 30] = 2
    with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16") as file:
        for _ in range(72):
            file.write(block)
    assert path.stat().st_size < 4_000_000
    return path


def test_header_crops_and_cache_of_hours_of_near_silence(near_silence: Path) -> None:
    code = """info = audio_info(path)
cache = AudioCache([Clip(path, frames=info.frames, rate=info.sample_rate)], 4_000_000_000)
assert path not in cache
for start in (0.0, 20000.5, 43000.0):
    assert len(cache.read(path, start, 10.0)) == 160000"""
    assert grown(code, near_silence) < 100


@pytest.mark.slow
def test_a_stream_of_hours_of_near_silence(near_silence: Path) -> None:
    assert grown("assert sum(map(len, stream_audio(path))) == 16000 * 43200", near_silence) < 100


def test_answers_of_many_windows_take_little_memory(tmp_path: Path) -> None:
    """Of an hour; the model is a stand-in, what reads, makes features and keeps the answers is not.

    Measured from a quarter of the windows on: buffers, and what the allocator keeps for each thread, are there by then.
    """
    path = tmp_path / "hour.flac"
    soundfile.write(path, np.zeros(16000 * 3600, np.int16), 16000)
    code = """from pathlib import Path
from types import SimpleNamespace
import torch
from ssamba.data.datasets.common import file_example
from ssamba.data.loaders.labelled import LabelledLoader
from ssamba.data.samplers.labelled import EvaluationPlan
from ssamba.models.config import Config
from ssamba.training.finetune.evaluate import Evaluation
plan = EvaluationPlan([file_example(Path(path), "long", (0,))], 2, 10.24, True)
evaluation = Evaluation(LabelledLoader(plan, 2, 2), Config(), torch.device("cpu"), "ce", False, plan.windows)
peaks = []
def classify(x):
    peaks.append(peak())
    return torch.zeros(len(x), 2)
found = evaluation.outputs(SimpleNamespace(classify=classify))
assert (plan.windows, len(peaks), found.logits.shape) == (352, 176, (1, 2))
before = peaks[43]"""
    assert grown(code, path) < 80  # some 10; 190 where small answers between large buffers pin these


def test_many_channels_are_read_in_smaller_blocks(tmp_path: Path) -> None:
    path = tmp_path / "sparse.wav"
    soundfile.write(path, np.zeros((10, 256), np.int16), 48000)
    data = bytearray(path.read_bytes())
    size = 512 * 1_000_000
    at = data.index(b"data") + 4
    data[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(bytes(data[: at + 4]))
    os.truncate(path, at + 4 + size)
    assert grown("assert sum(map(len, stream_audio(path, 1.0, 48000))) == 1_000_000", path) < 100


def test_a_claimed_length_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "liar.flac"
    soundfile.write(path, np.random.default_rng(0).standard_normal(16000) * 0.1, 16000)
    data = bytearray(path.read_bytes())
    data[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))
    code = """from ssamba.utils.errors import AudioError
try:
    read_audio(path)
except AudioError as error:
    assert "truncated" in str(error)"""
    assert grown(code, path) < 100


@pytest.mark.parametrize("rate", [16000, 22050])
def test_long_files_go_into_the_cache_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int
) -> None:
    path = str(tmp_path / "a.flac")
    soundfile.write(path, 0.2 * np.random.default_rng(0).standard_normal(rate * 70), rate)
    whole, whole_peak = read_quantised(path, 16000, 70.0)
    monkeypatch.setattr(audio_cache, "BLOCKWISE_SECONDS", 10.0)
    held, peak = read_quantised(path, 16000, 70.0)
    assert peak == pytest.approx(whole_peak, rel=1e-6)
    assert np.abs(held.astype(int) - whole).max() <= 1  # the resampler's rounding may differ in the last bit
    np.testing.assert_allclose(held * np.float32(peak / 32767), read_audio(path), atol=3e-5)


def test_the_cache_takes_what_files_on_disk_justify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = []
    for number in range(4):
        path = tmp_path / f"{number}.flac"
        soundfile.write(path, np.zeros(16000 * 20) if number < 3 else np.random.default_rng(0).random(320000), 16000)
        clips.append(Clip(str(path), frames=320000, rate=16000))
    assert all(clip.path in AudioCache(clips, 10_000_000) for clip in clips)
    monkeypatch.setattr(audio_cache, "FREE_BYTES", 100_000)
    cache = AudioCache(clips[:3], 10_000_000)
    assert not any(clip.path in cache for clip in clips)
    assert all(clip.path in AudioCache(clips, 10_000_000) for clip in clips)  # half of their size is on the disk
    assert AudioCache(clips, 700_000).bytes <= 700_000


def test_features_are_kept_as_files_on_disk_justify(tmp_path: Path, near_silence: Path) -> None:
    recipe = load_finetune_recipe("custom", {"cache_gb": 4.0})
    small = [file_example(near_silence, "long", (0,))]
    assert may_keep(FREE_FEATURE_BYTES, small, recipe)
    assert not may_keep(FREE_FEATURE_BYTES + 33 * near_silence.stat().st_size, small, recipe)
    real = tmp_path / "noise.wav"
    os.truncate(os.open(real, os.O_CREAT | os.O_WRONLY), 100_000_000)
    assert may_keep(3e9, [file_example(real, "noise", (0,))], recipe)
    assert not may_keep(5e9, [file_example(real, "noise", (0,))], recipe)


SMALL = ["--width", "32", "--depth", "2", "--frames", "64", "--epochs", "1", "--device", "cpu", "--from", "none"]


@pytest.fixture(scope="module")
def labelled(near_silence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of hours of near silence and of noise; a split, so that there is one fold."""
    root = tmp_path_factory.mktemp("labelled")
    rows = ["path,label,split"]
    for split in ("train", "val", "test"):
        for name in ("low", "high"):
            noise = np.random.default_rng(len(rows)).standard_normal(16000) * (0.3 if name == "high" else 0.01)
            soundfile.write(root / f"{split}-{name}.wav", noise, 16000)
            rows.append(f"{split}-{name}.wav,{name},{split}")
        os.symlink(near_silence, root / f"{split}.flac")
        rows.append(f"{split}.flac,low,{split}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.slow
def test_fine_tuning_on_hours_stops_within_its_validation(labelled: Path, tmp_path: Path) -> None:
    """12 hours of windows: memory stays, a signal is followed in seconds, and the run goes on at the validation."""
    out, log = tmp_path / "run", tmp_path / "log.txt"
    words = ["finetune", "custom", "--data", str(labelled), "--out", str(out), *SMALL, "--window", "0.66"]
    with open(log, "w") as file:
        process = subprocess.Popen([sys.executable, "-m", "ssamba", *words], stderr=file, stdout=file)
    deadline = time.monotonic() + 60
    while not (out / "fold-1" / "log.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(8)  # into the validation
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130, log.read_text()
    assert time.monotonic() - begin < 15
    assert "before its validation; the same command goes on from there" in log.read_text()
    assert peak < 1500
    state = json.loads((out / "fold-1" / "state.json").read_text())
    assert state["step"] == state["total_steps"]
    assert not state["finished"]


def test_long_examples_are_read_in_blocks_that_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For ``fit`` and ``probe``: a file, and a stretch of it; the features are those of the whole."""
    path = tmp_path / "a.flac"
    soundfile.write(path, 0.2 * np.random.default_rng(0).standard_normal(16000 * 65), 16000)
    whole = file_example(path, "a", (0,))
    stretch = replace(whole, parts=(replace(whole.parts[0], start=2.5, seconds=41.2),))
    model = load("tiny")
    plain = extract([whole], Wanted(model, (1,), True))
    for example in (whole, stretch):
        assert not is_long(example)
        np.testing.assert_array_equal(np.concatenate(list(stream_example(example))), read_example(example))
    monkeypatch.setattr(read_example_module, "LONG_SECONDS", 30.0)
    assert is_long(stretch)
    blocks = extract([whole], Wanted(model, (1,), True))
    torch.testing.assert_close(blocks["layer.1"], plain["layer.1"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(blocks["log_mel"], plain["log_mel"], rtol=0.01, atol=0.01)


@pytest.mark.slow
def test_log_mel_of_hours_of_near_silence(near_silence: Path) -> None:
    code = """from pathlib import Path
from ssamba.data.datasets.common import file_example
from ssamba.evaluation.probe.features import Wanted, extract
found = extract([file_example(Path(path), "long", (0,))], Wanted(None, (), True))
assert bool(found["log_mel"].isfinite().all())"""
    assert grown(code, near_silence) < 500
