"""A model of another sample rate and other mel bins, from the command line: pretraining to predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

import ssamba
from ssamba.audio.decode import read_audio
from ssamba.audio.front_end import PUBLISHED, FrontEnd
from ssamba.cli.main import main
from ssamba.data.loaders.gpu_resident import ResidentAudio
from ssamba.data.manifest import read_sources
from ssamba.data.samplers.pretraining import PretrainPlan
from ssamba.data.scan import SkipList, scan_sources
from ssamba.data.statistics import compute_statistics
from ssamba.models.registry import make_encoder
from ssamba.training.pretrain.data import PretrainData, decode_validation
from ssamba.training.pretrain.recipe import make_recipe
from ssamba.training.pretrain.task import PretrainTask
from ssamba.utils.errors import SsambaError

RATE, BINS = 32_000, 64
FRONT_END = FrontEnd(RATE, BINS)
SMALL = "--width 32 --depth 2 --frames 64 --batch 4 --workers 1 --precision fp32 --device cpu"
PRETRAIN = f"{SMALL} --mask 8 --steps 6 --validation 0.2 --warmup-steps 2 --warmup-every 1"
OTHER = f"--sample-rate {RATE} --mel-bins {BINS}"
FINETUNE = "--frames 64 --stride 16 --epochs 1 --batch 4 --freq-mask 8 --time-mask 8 --workers 1 --device cpu"


def write_set(folder: Path, clips: int = 12) -> None:
    """Two classes of tones that differ above 8 kHz alone, at 32 and 44.1 kHz, with a table of labels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["path,label,split"]
    for number in range(clips):
        rate, hertz = (32_000, 44_100)[number % 2], (9_500, 14_000)[number // 2 % 2]
        t = np.arange(round(0.8 * rate)) / rate
        audio = 0.3 * np.sin(2 * np.pi * hertz * t) + 0.02 * rng.standard_normal(len(t))
        soundfile.write(folder / f"{number:02d}.wav", audio, rate)
        rows.append(f"{number:02d}.wav,{hertz},{'test' if number >= clips - 4 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front-ends") / "sounds"
    write_set(folder)
    return folder


@pytest.fixture(scope="module")
def run(sounds: Path) -> Path:
    """A pretraining run of another front end."""
    out = sounds.parent / "run"
    assert main(["pretrain", str(sounds), *PRETRAIN.split(), *OTHER.split(), "--out", str(out)]) == 0
    return out


def refused(words: str, *paths: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends, exit code 2."""
    assert main([word.format(*paths) for word in words.split()]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_run_keeps_its_front_end_and_measures_its_statistics(run: Path, sounds: Path) -> None:
    values = json.loads((run / "config.json").read_text())
    assert values["format"] == 1
    assert (values["config"]["sample_rate"], values["config"]["mel_bins"]) == (RATE, BINS)
    model = ssamba.load(run, device="cpu", heads=True)
    assert model.config.front_end.same_bands(FRONT_END)
    assert model.config.grid == (4, 4)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())["recipe"]
    assert (recipe["sample_rate"], recipe["mel_bins"]) == (RATE, BINS)
    # Near those of the whole set, of which some files were held out; AudioSet's are far away.
    whole = compute_statistics(read_sources([str(sounds)]), FRONT_END)
    assert model.config.mean == pytest.approx(whole.mean, abs=0.2)
    assert model.config.std == pytest.approx(whole.std, abs=0.2)
    assert abs(model.config.mean - PUBLISHED.mean) > 1


def test_a_finished_run_goes_on_and_another_front_end_is_refused(
    run: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert main(["pretrain", str(sounds), *PRETRAIN.split(), *OTHER.split(), "--out", str(run)]) == 0
    assert (run / "model.safetensors").read_bytes() == before
    capsys.readouterr()
    line = refused(
        f"pretrain {{0}} {PRETRAIN} --sample-rate 44100 --mel-bins 64 --out {{1}}", sounds, run, capsys=capsys
    )
    assert "has sample_rate 32000, this command says 44100" in line


def test_arrays_files_and_log_mels_give_the_same_embedding(run: Path, sounds: Path, tmp_path: Path) -> None:
    model = ssamba.load(run, device="cpu")
    front_end = model.config.front_end
    names = ["00.wav", "01.wav"]  # 32 kHz, and 44.1 kHz resampled
    out = tmp_path / "e.npz"
    files = [str(sounds / name) for name in names]
    assert main(["embed", *files, "--model", str(run), "--out", str(out), "--level", "frame", "--device", "cpu"]) == 0
    with np.load(out) as arrays:
        found, times = torch.from_numpy(arrays["embedding"]), arrays["time"]
    columns = -(-front_end.frame_count(round(0.8 * RATE)) // 16)
    assert len(found) == 2 * columns
    assert times[1] - times[0] == pytest.approx(0.16)
    for number, name in enumerate(names):
        audio, rate = soundfile.read(sounds / name, dtype="float32")
        ours = model.embed(audio, rate).frames[0]
        torch.testing.assert_close(ours, found[number * columns : (number + 1) * columns], rtol=1e-3, atol=1e-4)
        waveform = torch.from_numpy(read_audio(sounds / name, RATE))
        assert len(waveform) == pytest.approx(0.8 * RATE, abs=1)
    # What lies above 8 kHz counts: at the published rate it would not be there.
    low = model.embed(read_audio(sounds / "00.wav", 16_000), 16_000).clip
    assert float((low - model.embed(read_audio(sounds / "00.wav", RATE), RATE).clip).norm()) > 1e-2


def test_fine_tuning_takes_the_front_end_of_its_source(
    run: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"finetune custom --data {{0}} --from {{1}} --out {{2}} {FINETUNE}"
    line = refused(f"{start} --statistics recipe", sounds, run, tmp_path / "no", capsys=capsys)
    assert "reads 32000 Hz and 64 mel bins, the recipe's mean and std are those of 16000 Hz and 128 mel bins" in line
    assert "--statistics source" in line
    line = refused(
        f"{start} --statistics source --freq-mask 65".replace("--freq-mask 8 ", ""),
        sounds,
        run,
        tmp_path / "no",
        capsys=capsys,
    )
    assert "64 mel bins; give --freq-mask 64 or less" in line
    assert not (tmp_path / "no").exists()
    for statistics in ("source", "measure"):
        out = tmp_path / statistics
        words = f"{start} --statistics {statistics} --speed 1.2 --reverb 0.5 --response-db 3"
        assert main([word.format(sounds, run, out) for word in words.split()]) == 0
        model = ssamba.load(out, device="cpu")
        assert model.config.front_end.same_bands(FRONT_END)
        assert (model.config.mean == ssamba.load(run).config.mean) == (statistics == "source")
    audio, rate = soundfile.read(sounds / "01.wav", dtype="float32")
    (answer,) = model.predict(audio, rate)
    assert answer.seconds == pytest.approx(0.8, abs=1e-3)
    table = tmp_path / "p.json"
    words = f"predict {{0}} --model {out} --out {table} --device cpu --top 2"
    assert main([word.format(sounds / "01.wav") for word in words.split()]) == 0
    scores = {c["class"]: c["score"] for c in json.loads(table.read_text())["files"][0]["scores"]}
    assert scores == pytest.approx(dict(zip(answer.classes, answer.scores[0].tolist(), strict=True)), abs=1e-3)


def test_pretraining_from_a_source_of_another_front_end_is_refused(
    run: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"pretrain {{0}} --from {{1}} --out {{2}} {PRETRAIN}".replace("--width 32 --depth 2 ", "")
    line = refused(words, sounds, run, tmp_path / "no", capsys=capsys)
    assert "reads 32000 Hz and 64 mel bins, the recipe says 16000 Hz and 128 mel bins" in line
    assert "give --sample-rate 32000 --mel-bins 64" in line
    out = tmp_path / "on"
    assert main([word.format(sounds, run, out) for word in f"{words} {OTHER}".split()]) == 0
    assert ssamba.load(out).config.front_end == ssamba.load(run).config.front_end  # statistics are the source's


def test_audio_kept_on_the_device_gives_the_same_features(sounds: Path) -> None:
    """What a GPU does where the whole set fits, here on the CPU."""
    changes = {"width": 16, "depth": 2, "frames": 64, "mask": 8, "batch": 4, "workers": 1, "precision": "fp32"}
    augmentation = {"reverb": 0.5, "speed": 1.3, "mix": 0.5, "response_db": 3.0}
    recipe = make_recipe(None, {**changes, **augmentation, "sample_rate": RATE, "mel_bins": BINS})
    front_end = recipe.config().front_end
    sources = scan_sources(read_sources([str(sounds)]))
    seconds = front_end.seconds_of_frames(recipe.frames)
    plan = PretrainPlan(sources, 4, 0, seconds, speed=recipe.speed, sample_rate=front_end.sample_rate)
    features = []
    for resident in (False, True):
        model = make_encoder(recipe.config(), heads=True, generator=torch.Generator().manual_seed(0))
        data = PretrainData(sources, sources[0].clips[:2], plan, SkipList())
        assert decode_validation(data, recipe, model.config).features.shape == (2, 64, BINS)
        audio = ResidentAudio(plan.clips, model.device, sample_rate=plan.sample_rate) if resident else None
        task = PretrainTask(recipe, model, plan, SkipList(), resident=audio)
        assert task.augment.noise_bank is not None
        assert task.augment.noise_bank.shape[1] == RATE
        batch = next(iter(task.batches(0)))
        features.append(task.inputs(0, batch).features)
    assert features[0].shape == (4, 64, BINS)
    # Loader and resident audio differ by the quantisation of decoded samples alone.
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=0.02)


def test_two_options_make_another_front_end(sounds: Path, tmp_path: Path) -> None:
    """The mask of the reference, 400 of 512 patches, would not fit: its share stays."""
    assert make_recipe(None, {"mel_bins": 64}).mask == 200
    assert make_recipe(None, {"mel_bins": 64, "mask": 100}).mask == 100
    assert make_recipe(None, {"mel_bins": 80}).mask == 250
    assert make_recipe(None, {"sample_rate": 48_000}).mask == 400
    (tmp_path / "mine.yaml").write_text("mel_bins: 64\nmask: 128\n")
    assert make_recipe(tmp_path / "mine.yaml").mask == 128
    assert make_recipe(tmp_path / "mine.yaml", {"mel_bins": 128}).mask == 256
    small = "--width 16 --depth 2 --steps 1 --batch 2 --workers 1 --device cpu"
    out = tmp_path / "run"
    assert main(["pretrain", str(sounds), *OTHER.split(), *small.split(), "--out", str(out)]) == 0
    assert ssamba.load(out).config.grid == (4, 64)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--sample-rate 999", "sample_rate is 999: give 1000 to 384000 Hz"),
        ("--sample-rate 400000", "sample_rate is 400000: give 1000 to 384000 Hz"),
        ("--mel-bins 8", "does not fit into 8 x 64"),
    ],
)
def test_front_ends_that_cannot_be_are_refused(
    options: str, reason: str, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(f"pretrain {{0}} {PRETRAIN} {options} --out {{1}}", sounds, tmp_path / "no", capsys=capsys)
    assert reason in line
    assert not (tmp_path / "no").exists()


def test_the_probe_reads_audio_at_the_models_rate_and_keeps_features_apart(
    run: Path, sounds: Path, tmp_path: Path
) -> None:
    from ssamba.evaluation.probe.probe import probe

    found = probe("custom", sounds, ssamba.load(run, device="cpu"), out=tmp_path / "cache")
    assert {row.layer: row.values for row in found.rows}[None] == 2 * BINS
    # The classes differ above 8 kHz alone: log-mels at 32 kHz tell them apart.
    assert found.rows[0].scores["linear"].mean == 1.0
    other = ssamba.SSAMBA(ssamba.Config(width=32, depth=2, frames=64)).eval()
    second = probe("custom", sounds, other, out=tmp_path / "cache")
    assert not second.from_cache
    assert {row.layer: row.values for row in second.rows}[None] == 2 * 128
    assert probe("custom", sounds, ssamba.load(run, device="cpu"), out=tmp_path / "cache").from_cache


@pytest.mark.parametrize(("rate", "bins"), [(8_000, 40), (22_050, 48), (44_100, 128), (48_000, 64)])
def test_embeddings_of_any_rate(rate: int, bins: int, tmp_path: Path) -> None:
    config = ssamba.Config(width=16, depth=2, frames=64, sample_rate=rate, mel_bins=bins)
    model = ssamba.SSAMBA(config, generator=torch.Generator().manual_seed(0)).eval()
    audio = 0.1 * np.random.default_rng(1).standard_normal(3 * rate).astype(np.float32)
    out = model.embed(audio, rate)  # longer than the grid: windows
    assert out.frames.shape[1] == -(-config.front_end.frame_count(3 * rate) // 16)
    assert out.times[-1] == pytest.approx(3, abs=0.2)
    with pytest.raises(SsambaError, match=f"one frame takes {config.front_end.frame_length}"):
        model.embed(audio[: config.front_end.frame_length - 1], rate)
