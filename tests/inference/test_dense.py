"""A vector each 40 ms: interleaved passes, the plain one among them bit for bit, in memory and from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from ssamba.cli.main import main
from ssamba.inference.dense.shifts import hop_frames, shifts_of
from ssamba.inference.embed_files import EmbedOptions, write_embeddings
from ssamba.inference.model import Encoder, make_encoder
from ssamba.inference.outputs.provenance import read_provenance
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import save_model
from ssamba.utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES = (1, 4, 5, 12, 13, 16, 17, 63, 64, 65, 80, 81, 333)
"""Log-mel frames of the recordings; the grid has 64."""


def samples(frames: int) -> int:
    return 400 + 160 * (frames - 1)


@pytest.fixture(scope="module", params=["ssamba", "ssast"])
def model(request: pytest.FixtureRequest) -> Encoder:
    """Of a position embedding that tells columns apart."""
    heads = {"attention_heads": 2} if request.param == "ssast" else {"state_size": 4}
    model = make_encoder(Config(encoder=request.param, width=16, depth=2, frames=64, **heads))
    with torch.no_grad():
        model.positions.add_(torch.randn(model.positions.shape, generator=torch.Generator().manual_seed(1)), alpha=0.5)
    return model.eval()


def recordings(counts: tuple[int, ...] = FRAMES) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(samples(n), generator=rng) for n in counts]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("hop", [10, 20, 40, 80, 160])
def test_the_plain_vectors_are_among_them_bit_for_bit(model: Encoder, hop: int, whole: bool) -> None:
    """In a batch of many lengths, and each alone."""
    plain = model.embed(recordings(), 16000, whole)
    dense = model.embed(recordings(), 16000, whole, hop_ms=hop)
    passes = 160 // hop
    assert dense.lengths.tolist() == [-(-n // (16 // passes)) for n in FRAMES]
    for i, (few, many) in enumerate(zip(plain.lengths.tolist(), dense.lengths.tolist(), strict=True)):
        assert torch.equal(dense.patches[i, :, :many:passes], plain.patches[i, :, :few])
        assert torch.equal(dense.frames[i, :many:passes], plain.frames[i, :few])
        assert not dense.frames[i, many:].any()
        alone = model.embed(recordings()[i], 16000, whole, hop_ms=hop)
        torch.testing.assert_close(alone.frames[0], dense.frames[i, :many], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", FRAMES)
def test_each_pass_is_that_of_the_recording_from_there_on(model: Encoder, frames: int) -> None:
    (audio,) = recordings((frames,))
    dense = model.embed(audio, 16000, hop_ms=40).frames[0]
    for k, shift in enumerate((0, 4, 8, 12)):
        rest = audio[160 * shift :]
        found = dense[k::4]
        if frames <= shift:
            assert len(found) == 0
        else:
            torch.testing.assert_close(found, model.embed(rest, 16000).frames[0], rtol=1e-4, atol=1e-4)


def test_times_are_those_of_the_centres() -> None:
    model = make_encoder(Config(width=16, depth=2, frames=64, state_size=4))
    out = model.embed(recordings((100,)), 16000, hop_ms=40)
    expected = 0.0875 + 0.04 * torch.arange(25)
    torch.testing.assert_close(out.times, expected.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(out.clip, out.patches.mean(dim=(1, 2)), rtol=1e-5, atol=1e-5)
    other = make_encoder(Config(width=16, depth=2, frames=64, state_size=4, sample_rate=22050))
    times = other.embed(recordings((100,)), 22050, hop_ms=40).times
    assert float(times[1] - times[0]) == pytest.approx(4 * 220 / 22050)  # a hop of 220 samples, not 220.5
    torch.testing.assert_close(times[::4], other.embed(recordings((100,)), 22050).times, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frames", [1, 6, 16, 17, 26, 99, 200])
@pytest.mark.parametrize("hop", [10, 20, 50, 100])
def test_patches_that_overlap_already(frames: int, hop: int) -> None:
    model = make_encoder(Config(width=16, depth=2, frames=64, state_size=4, stride_time=10))
    plain, dense = model.embed(recordings((frames,)), 16000), model.embed(recordings((frames,)), 16000, hop_ms=hop)
    assert torch.equal(dense.frames[:, :: 100 // hop], plain.frames)
    torch.testing.assert_close(dense.times[:: 100 // hop], plain.times, rtol=0, atol=1e-12)


@pytest.mark.parametrize("hop", [0, -40, 30, 320, 40.5, float("nan"), True, "40", [40]])
def test_other_hops_are_refused(hop: object) -> None:
    with pytest.raises(ConfigError, match=r"hop is .*give one of 10, 20, 40, 80, 160"):
        shifts_of(hop, Config())  # type: ignore[arg-type]


def test_the_model_s_own_step_is_one_pass() -> None:
    assert shifts_of(None, Config()) == shifts_of(160, Config()) == (0,)
    assert shifts_of(40.0, Config()) == (0, 4, 8, 12)
    assert hop_frames((0, 4, 8, 12), Config()) == 4


@pytest.fixture
def sounds(tmp_path: Path) -> list[str]:
    """Files of different lengths, one of them damaged at its end."""
    files = []
    for i, audio in enumerate(recordings((333, 5, 80, 7000, 17))):
        files.append(str(tmp_path / f"{i}.flac"))
        soundfile.write(files[-1], audio.numpy(), 16000)
    content = Path(files[3]).read_bytes()
    Path(files[3]).write_bytes(content[: len(content) // 2])
    return files


@pytest.mark.parametrize("level", ["frame", "patch", "clip"])
def test_files_give_the_rows_of_arrays(sounds: list[str], tmp_path: Path, level: str) -> None:
    model = make_encoder(Config(width=16, depth=2, frames=64, state_size=4)).eval()
    few, many = tmp_path / "few.npz", tmp_path / "many.npz"
    write_embeddings(sounds, model, few, EmbedOptions(level=level))
    report = write_embeddings(sounds, model, many, EmbedOptions(level=level, hop_ms=40))
    assert [path for path, _ in report.failures] == [sounds[3]]
    assert read_provenance(many)["options"]["hop_ms"] == 40
    assert "hop_ms" not in read_provenance(few)["options"]
    plain, dense = np.load(few), np.load(many)
    for i, path in enumerate(sounds[:3] + sounds[4:]):
        out = model.embed(path, hop_ms=40)
        if level == "clip":
            np.testing.assert_allclose(dense["embedding"][i], out.clip[0], atol=1e-5)
            continue
        rows, times = dense["embedding"][dense["file"] == i], dense["time"][dense["file"] == i]
        expected = out.frames[0] if level == "frame" else out.patches[0].transpose(0, 1).flatten(0, 1)
        np.testing.assert_allclose(rows, expected, atol=1e-5)
        steps = 1 if level == "frame" else 8
        np.testing.assert_array_equal(times, np.repeat(out.times.numpy(), steps))
        every = rows.reshape(-1, steps, 16)[::4].reshape(-1, 16)
        np.testing.assert_array_equal(every, plain["embedding"][plain["file"] == i])


def test_the_command(sounds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    model = make_encoder(Config(width=16, depth=2, frames=64, state_size=4)).eval()
    save_model(tmp_path / "model", model)
    words = ["embed", sounds[0], "--model", str(tmp_path / "model"), "--device", "cpu", "--level", "frame"]
    assert main([*words, "--hop", "40", "--out", str(tmp_path / "x.parquet")]) == 0
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["time"].to_pylist()[:3] == pytest.approx([0.0875, 0.1275, 0.1675])
    assert table.num_rows == 84  # of 333 frames
    assert main([*words, "--hop", "30", "--out", str(tmp_path / "y.npz")]) == 2
    assert (
        capsys.readouterr().err.strip().splitlines()[-1].endswith("10, 20, 40, 80, 160, which divide the model's step")
    )
    assert not (tmp_path / "y.npz").exists()
