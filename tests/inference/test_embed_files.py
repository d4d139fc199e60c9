"""Embedding of files: equal to the arrays' embedding, in order, in bounded memory, and never half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from peak_memory import PEAK

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.audio.feature_stream import FeatureStream
from ssamba.inference.embed_files import embed_files
from ssamba.inference.file_stream import list_files
from ssamba.models.patches import column_times
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import ConfigError, DataError, SsambaError

LENGTHS = {
    "a.wav": (0.6, 16000),
    "b.wav": (3.0, 44100),
    "c.flac": (33.3, 16000),
    "d.wav": (61.7, 8000),
    "e.wav": (1.3, 16000),
}


def sound(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * (200 * t + 40 * t * t)) + 0.05 * noise).astype(np.float32)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio")
    for i, (name, (seconds, rate)) in enumerate(LENGTHS.items()):
        soundfile.write(path / name, sound(seconds, rate, i), rate)
    return path


@pytest.fixture(scope="module")
def model() -> ssamba.SSAMBA:
    config = ssamba.Config(width=16, depth=2, frames=128, patch_frequency=32, stride_frequency=32)
    return ssamba.SSAMBA(config).eval()


@pytest.mark.parametrize("level", ["clip", "frame", "patch"])
@pytest.mark.parametrize("whole", [False, True])
def test_rows_equal_the_embedding_of_the_whole_recording(
    folder: Path, model: ssamba.SSAMBA, tmp_path: Path, level: str, whole: bool
) -> None:
    files, _ = list_files([str(folder)])
    report = embed_files(files, model, tmp_path / "x.npz", level=level, whole=whole, batch=5)
    out = np.load(tmp_path / "x.npz", allow_pickle=False)
    assert list(out["paths"]) == files == sorted(files)
    assert out["embedding"].dtype == np.float32
    assert (report.written, report.rows, report.width) == (5, len(out["embedding"]), 16)
    assert set(out) == {"paths", "embedding", "provenance"} | ({"file", "time"} if level != "clip" else set()) | (
        {"row"} if level == "patch" else set()
    )
    for i, path in enumerate(files):
        expected = model.embed(read_audio(path), whole=whole)
        if level == "clip":
            np.testing.assert_allclose(out["embedding"][i], expected.clip[0].numpy(), atol=1e-5)
            continue
        mine = out["file"] == i
        n_frames = expected.frames.shape[1]
        if level == "frame":
            np.testing.assert_allclose(out["embedding"][mine], expected.frames[0].numpy(), atol=1e-5)
            np.testing.assert_allclose(out["time"][mine], expected.times.numpy(), atol=1e-9)
        else:
            rows = expected.patches[0].transpose(0, 1).flatten(0, 1).numpy()  # time after time, low to high frequency
            np.testing.assert_allclose(out["embedding"][mine], rows, atol=1e-5)
            np.testing.assert_array_equal(out["row"][mine], np.tile(np.arange(4), n_frames))
            np.testing.assert_allclose(out["time"][mine], np.repeat(expected.times.numpy(), 4), atol=1e-9)


def test_parquet_holds_what_npz_holds(folder: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    files, _ = list_files([str(folder)])
    for name in ("x.npz", "x.parquet"):
        embed_files(files, model, tmp_path / name, level="patch")
    npz, table = np.load(tmp_path / "x.npz"), parquet.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["path", "time", "row", "embedding"]
    assert table["embedding"].type.list_size == 16
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), npz["embedding"])
    assert list(table["path"].to_numpy()) == list(npz["paths"][npz["file"]])
    np.testing.assert_array_equal(table["time"].to_numpy(), npz["time"])
    np.testing.assert_array_equal(table["row"].to_numpy(), npz["row"])


def test_batches_and_threads_change_nothing(folder: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    files = [str(folder / name) for name in ("a.wav", "b.wav", "c.flac", "e.wav")]
    results = []
    for batch, threads in ((2, 1), (64, 4)):
        embed_files(files, model, tmp_path / "x.npz", level="frame", batch=batch, threads=threads)
        results.append(np.load(tmp_path / "x.npz")["embedding"])
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-5)


def test_unreadable_files_are_left_out_and_reported(folder: Path, model: ssamba.SSAMBA, tmp_path: Path) -> None:
    whole = (folder / "c.flac").read_bytes()
    cut = tmp_path / "cut.flac"  # longer than a block: its first windows are through before the damage shows
    soundfile.write(cut, sound(70, 16000), 16000)
    cut.write_bytes(cut.read_bytes()[: -len(whole) // 4])
    files = [str(folder / "a.wav"), str(cut), str(folder / "d.wav")]
    report = embed_files(files, model, tmp_path / "x.npz", level="frame")
    out = np.load(tmp_path / "x.npz")
    assert [path for path, _ in report.failures] == [str(cut)]
    assert list(out["paths"]) == [files[0], files[2]]
    assert sorted(set(out["file"])) == [0, 1]
    expected = model.embed(read_audio(files[2])).frames[0].numpy()
    np.testing.assert_allclose(out["embedding"][out["file"] == 1], expected, atol=1e-5)


def test_nothing_is_written_when_nothing_can_be_read(model: ssamba.SSAMBA, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    with pytest.raises(DataError, match=r"bad\.wav"):
        embed_files([str(bad)], model, tmp_path / "new" / "x.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.wav"]


def test_files_are_listed_once(folder: Path) -> None:
    files, again = list_files([str(folder), str(folder / "a.wav")])
    assert (len(files), again) == (5, 1)


def test_outputs_that_cannot_be(model: ssamba.SSAMBA, tmp_path: Path) -> None:
    for name, message in (("x.npy", r"did you mean '\.npz'"), ("x", "unknown ending"), (".", "is a folder")):
        with pytest.raises(ConfigError, match=message):
            embed_files(["a.wav"], model, tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(SsambaError, match="cannot be written"):
        embed_files(["a.wav"], model, tmp_path / "file" / "x.npz")
    with pytest.raises(ConfigError, match="level 'frames': choose"):
        embed_files(["a.wav"], model, tmp_path / "x.npz", level="frames")


@pytest.mark.parametrize("block", [1000, 16000, 480000])
def test_features_do_not_depend_on_blocks(block: int) -> None:
    config = ssamba.Config(width=16, depth=2)
    waveform = torch.from_numpy(sound(47.3, 16000))
    blockwise = streamed(waveform.split(block), config)
    torch.testing.assert_close(blockwise, streamed([waveform], config), atol=1e-6, rtol=0)
    # The recording's mean and those of its stretches round differently, which the quietest bins feel.
    torch.testing.assert_close(blockwise, ssamba.features(waveform)[0], atol=1e-3, rtol=0)


def streamed(blocks: Sequence[torch.Tensor], config: ssamba.Config) -> torch.Tensor:
    stream = FeatureStream(config.front_end, torch.device("cpu"))
    return torch.cat([*(stream.feed(block) for block in blocks), stream.finish()])


def test_times_are_those_of_the_model(model: ssamba.SSAMBA) -> None:
    assert column_times(torch.arange(2), model.config).tolist() == pytest.approx([0.0875, 0.2475])


MEASURE = f"""
import sys
from pathlib import Path
import numpy as np, soundfile
import ssamba
from ssamba.inference.embed_files import EmbedOptions, write_embeddings
{PEAK}
folder, level, rate, hop = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
config = ssamba.Config(width=16, depth=2, frames=256, patch_frequency=128, stride_frequency=128)
model = ssamba.SSAMBA(config).eval()
noise = np.random.default_rng(0).standard_normal(60 * rate).astype(np.float32) / 20
options = EmbedOptions(level, hop_ms=hop)
for minutes in sys.argv[5:]:
    with soundfile.SoundFile(folder / "long.wav", "w", rate, 1) as file:
        for _ in range(int(minutes)):
            file.write(noise)
    write_embeddings([str(folder / "long.wav")], model, folder / "x.npz", options, threads=2, batch=16)
    print(round(peak()))
"""


def peaks(folder: Path, level: str, rate: int, *minutes: int, hop: int = 160) -> list[int]:
    """Peak memory in MiB after embedding a recording of each length, one after the other in a process of their own."""
    words = [sys.executable, "-c", MEASURE, str(folder), level, str(rate), str(hop), *map(str, minutes)]
    # Freed blocks go back to the system at once: the peak is then what was in use, not how it lay in the heap.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=env)
    return [int(x) for x in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    five, twenty = peaks(tmp_path, "frame", 16000, 5, 20)
    assert twenty - five < 24  # the audio alone would be 55 MiB more, its log-mel 44 MiB


@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
def test_memory_of_closer_frames_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    two, eight = peaks(tmp_path, "patch", 16000, 2, 8, hop=40)
    assert eight - two < 10  # the audio alone would be 22 MiB more, its log-mel 18 MiB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
@pytest.mark.parametrize("rate", [8000, 16000])
def test_two_hours_in_bounded_memory(tmp_path: Path, rate: int) -> None:
    short, long = peaks(tmp_path, "patch", rate, 5, 120)
    assert long - short < 32
    assert long < 1024


def test_one_short_file_needs_no_compiled_kernels(model: ssamba.SSAMBA, tmp_path: Path) -> None:
    """A new process embeds it before it would have imported Numba, and to rounding as any other."""
    save_model(tmp_path / "m", model)
    for name, seconds in (("short", 1.0), ("long", 40.0)):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, sound(seconds, 16000), 16000)
        code = f"""if True:
            from ssamba.cli.main import main
            from ssamba.ops.mamba.cpu import kernels
            assert main(["embed", {str(path)!r}, "--model", "m", "--out", "{name}.npz", "--device", "cpu"]) == 0
            print(kernels.loaded())
        """
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.stdout.split()[-1:] == [str(name == "long")], done.stderr
        found = np.load(tmp_path / f"{name}.npz")["embedding"]
        np.testing.assert_allclose(found, model.embed(read_audio(path)).clip, rtol=1e-4, atol=1e-5)
