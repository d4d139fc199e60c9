"""The scripts beside the package (benchmarks, experiments, tools, dev) run: at their smallest, on sounds made here."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import layout_trees as trees
import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch

from ssamba.cli.main import main
from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.models.pretrained.model_dir import read_config, save_model

ROOT = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "experiments", "tools", "dev")
SCRIPTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
NO_PROGRAM = {"debian_sources.py", "site_hooks.py"}
"""A table that another script reads, and functions that mkdocs calls."""
ELSEWHERE = {"pipes.py", "forward_tilings.py", "check_release.py", "serve_load.py"}
"""Tested with the kernels and the server that they time, and with the release."""


def run(script: str, *words: object, code: int = 0) -> str:
    """Standard output of a script, which must end with ``code``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, cwd=ROOT)
    assert done.returncode == code, done.stderr[-3000:]
    assert code or "Traceback" not in done.stderr
    return done.stdout


def noise(path: Path, seconds: float, seed: int, rate: int = 16000) -> Path:
    """Noise under a chord that changes every 50 ms: no two seeds are alike, and neither are two seconds of one."""
    rng = np.random.default_rng(seed)
    time, values = np.arange(rate // 20) / rate, []
    for _ in range(round(seconds * 20)):
        chord = np.sin(2 * np.pi * rng.uniform(300, 3600, 4)[:, None] * time).sum(axis=0)
        values.append(0.1 * chord + rng.normal(0, 0.01, len(time)))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate(values), rate)
    return path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: width 16, two blocks, 32 frames."""
    config = Config(width=16, depth=2, frames=32, state_size=4)
    folder = tmp_path_factory.mktemp("model") / "small"
    save_model(folder, SSAMBA(config, heads=True, generator=torch.Generator().manual_seed(0)))
    return folder


def test_no_script_is_forgotten() -> None:
    """Each is named in this file, or its test is elsewhere."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert len(SCRIPTS) > 10
    assert not [path.name for path in SCRIPTS if path.name not in text]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_help(script: Path) -> None:
    if script.name in NO_PROGRAM | ELSEWHERE:
        pytest.skip("has no help of its own")
    assert "usage" in run(str(script.relative_to(ROOT)), "--help")


def test_write_constraints() -> None:
    """Every requirement of the package is pinned; the file is not written here."""
    assert "usage" in run("dev/write_constraints.py", "--help")
    text = (ROOT / "constraints-dev.txt").read_text()
    pins = dict(re.findall(r"^([\w-]+)==(\S+) ; python_version", text, re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[0]
    names = re.findall(r'^  "([A-Za-z][\w.-]*)(?:[>=;]|")', project, re.MULTILINE)
    assert len(names) > 15
    assert not {name.lower().replace("_", "-") for name in names} - set(pins)
    shared = re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert all(pins[name] == version for name, version in shared)


def test_arm64() -> None:
    """dev/arm64.py names all that ssamba and pytest need: it fetches wheels without what they depend on."""
    assert "usage" in run("dev/arm64.py", "--help")
    pins, closure = (
        runpy.run_path(str(ROOT / "dev" / script))[name]
        for script, name in (("arm64.py", "pins"), ("write_constraints.py", "closure"))
    )
    names = {re.sub(r"==[\d.]+$", "", pin) for pin in pins()}
    needed = {name for start in ("ssamba", "pytest", "pytest-timeout") for name in closure(start, "")}
    # torch's: those of its builds with CUDA, and one that the build for arm64 does not ask for.
    not_on_arm64 = {name for name in needed if name.startswith(("nvidia-", "cuda-"))} | {"triton", "setuptools"}
    assert len(needed) > 20
    assert not needed - not_on_arm64 - names
    assert not [name for name in names if "=" in name]


@pytest.mark.slow
def test_onnx_cpu(model_folder: Path) -> None:
    printed = run("benchmarks/onnx_cpu.py", model_folder, "--rounds", 1, "--frames", 208)
    rows = [line.split(" | ") for line in printed.splitlines() if line[:3] in ("| 1", "| 4")]
    assert [row[0] for row in rows] == ["| 1 x 9", "| 1 x 105", "| 4 x 105"]
    assert all(float(row[-1].rstrip(" |")) < 1e-4 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("chromium") is None or not (ROOT / "tools/onnx_browser/node_modules").is_dir(),
    reason="needs Chromium and onnxruntime-web, as tools/onnx_browser/README.md says",
)
def test_onnx_browser(model_folder: Path) -> None:
    printed = run("tools/onnx_browser/check.py", model_folder)
    assert sum(line.startswith(("| tokens-", "| clip-")) for line in printed.splitlines()) == 12


def test_augmented_views(tmp_path: Path) -> None:
    clips = [noise(tmp_path / f"{i}.wav", 1.5, i) for i in range(2)]
    run("experiments/augmented_views.py", *clips, tmp_path / "out.png", "--frames", 64)
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"


def test_dev_probe(tmp_path: Path, model_folder: Path) -> None:
    roots = trees.esc10(tmp_path / "esc10"), trees.arabic(tmp_path / "arabic")
    lines = run("experiments/dev_probe.py", *roots, model_folder, "--device", "cpu").splitlines()
    assert len(lines) == 2 + 4  # log-mel; mean, mean and deviation, rows of the last layer
    assert all(0 <= float(cell) <= 100 for line in lines[2:] for cell in line.split("|")[3:5])


def test_cliffs() -> None:
    """Each variant's time beside the first's, and the lengths around an even one."""
    lines = run("benchmarks/cliffs.py", "--dry-run").splitlines()
    rows = [line for line in lines if line.startswith("| tiny ")]
    assert [row.split(" | ")[0] for row in rows] == ["| tiny infer 1x16", "| tiny train 1x16"]
    assert all(len(re.findall(r"\d+\.\d+ \(\d+\.\d+\)", row)) == 4 for row in rows)
    assert lines[-1].startswith("| batch 1 | 16: ")


def test_first_pass(model_folder: Path) -> None:
    words = "--device", "cpu", "--model", model_folder, "--seconds", 1, "--rounds", 1
    (row,) = run("benchmarks/first_pass.py", *words).splitlines()[2:]
    assert all(0 <= float(cell) < 60 for cell in row.strip("| ").split(" | "))


def test_decay_forms(tmp_path: Path) -> None:
    """All four forms pretrained for a step and probed; without being told to, it says what it would do."""
    lists, out = tmp_path / "lists", tmp_path / "out"
    lists.mkdir()
    for i, name in enumerate(("words", "speech", "effects", "music")):
        clips = [noise(tmp_path / name / f"{j}.wav", 2.2, 10 * i + j) for j in range(8)]
        (lists / f"{name}.csv").write_text("path\n" + "".join(f"{clip}\n" for clip in clips))
    roots = trees.esc10(tmp_path / "esc10"), trees.arabic(tmp_path / "arabic")
    small = "--device cpu --size tiny --width 16 --depth 2 --batch 4 --validation 0.2 --workers 1 --warmup-steps 1"
    options = ["--steps", 1, "--gpus", 1, "--probe-device", "cpu", "--options", small]
    planned = run("experiments/decay_forms.py", out, lists, *roots, *options, "--dry-run").splitlines()
    assert len(planned) == 5
    assert not out.exists()
    done = run("experiments/decay_forms.py", out, lists, *roots, *options).splitlines()
    assert [line.partition(" ")[2] for line in done[:4]] == planned[:4]
    assert done[4] == planned[4]
    forms = [line.split(" | ")[:2] for line in done[-4:]]
    assert forms == [[f"| {decay}-{scan}", "1"] for decay in ("free", "tied") for scan in ("both", "alternating")]
    for decay, scan in (("free", "both"), ("tied", "alternating")):
        config = read_config(out / f"{decay}-{scan}").config
        assert (config.decay, config.scan) == (decay, scan)
    one = ["--runs", "tied-alternating:1", "--peer", "--no-probe", *options]
    one[-1] += " --no-compile"  # there may be no compiler here
    rows = run("experiments/decay_forms.py", out, lists, *roots, *one).splitlines()[-2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| tied-alternating-seed1", "| ssast-compiled-like-tied-alternating-seed1"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["esc10", "words", "speech"])
def test_dense_frames(kind: str, tmp_path: Path, model_folder: Path) -> None:
    root = trees.esc10(tmp_path / "set") if kind == "esc10" else trees.arabic(tmp_path / "set", seconds=0.3)
    words = "--model", model_folder, "--hops", 160, 80, "--sequences", 1, "--pieces", 3
    lines = run("experiments/dense_frames.py", kind, root, *words).splitlines()
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| 160 ms", "| interpolated to 80 ms", "| 80 ms"]
    assert all(float(cell.split()[0]) >= 0 for line in lines[3:] for cell in line.split(" | ")[1:5])


@pytest.mark.slow
def test_similarity(tmp_path: Path) -> None:
    text = run(
        "experiments/similarity.py", "measure", trees.esc10(tmp_path / "esc10"), "--folds", 1, "--work", tmp_path,
        "--scores", tmp_path / "scores.csv",
    )  # fmt: skip
    assert {"| gain |", "| cut |"} <= {line[: line.index("|", 2) + 1] for line in text.splitlines() if line[:2] == "| "}
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["from"], rows[-1]["to"], len(rows)) == ("-0.1", "1.0", 110)
    run("experiments/pictures.py", "similarity", "--scores", tmp_path / "scores.csv", "--out", tmp_path)
    assert (tmp_path / "similarity.png").stat().st_size > 10_000
    assert sum(int(row["copies"]) for row in rows) == 7 * len(list(tmp_path.glob("copies/*.gain.wav")))


@pytest.mark.slow
def test_index_precision(tmp_path: Path) -> None:
    words = noise(tmp_path / "set/0.wav", 3.5, 0).parent, "--work", tmp_path / "work", "--queries", 2
    noise(tmp_path / "set/1.wav", 3.5, 1)
    first, second, columns, pieces, found, last = run("experiments/index_precision.py", *words).splitlines()
    assert first.startswith("fp32: 2 recordings, ")
    assert second.startswith("bf16: 2 recordings, ")
    assert all(0.999 < float(line.split()[-3]) < 1 for line in (columns, pieces))
    assert found == "2 queries: the recording is first for {'fp32': 2, 'bf16': 2}, the same is first for 2"
    assert last.startswith("0.200 of the first 10 are the same; ")


def test_space_refuses_few_files(tmp_path: Path) -> None:
    for i in range(2):
        noise(tmp_path / f"{i}.wav", 3.5, i)
        audio, rate = soundfile.read(tmp_path / f"{i}.wav")
        soundfile.write(tmp_path / f"{i}.opus", audio, rate, format="OGG", subtype="OPUS")
    run("experiments/similarity.py", "space", tmp_path, tmp_path / "space.safetensors", code=1)
    assert not (tmp_path / "space.safetensors").exists()


def test_search_approximate(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    for i in range(4):
        noise(tmp_path / "sounds" / f"{i}.wav", 12, i)
    run("src/ssamba/__main__.py", "index", tmp_path / "sounds", "--out", tmp_path / "index", "--device", "cpu")
    for kind in ((), ("--random",)):
        work = tmp_path / f"work{len(kind)}"
        text = run(
            "benchmarks/search_approximate.py", tmp_path / "index", work, "--pieces", 3000, "--probes", 9999, *kind
        )
        assert "219 lists" in text
        recall = re.findall(r"recall of 100 ([\d.]+) %", text)
        assert [float(value) > 99 for value in recall] == [True]  # all lists: what the exact search finds


def test_pictures(tmp_path: Path) -> None:
    run("experiments/pictures.py", "bench", "forms", "minutes", "views", "--out", tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {"bench-time.png", "bench-memory.png", "forms.png", "minutes.png", "augmented-views.png"}
    for name in drawn:  # on a background of their own, so that pages in dark mode show them
        image = matplotlib.image.imread(tmp_path / name)
        assert (image[0, 0] == 1).all()
        assert image.shape == matplotlib.image.imread(ROOT / "docs" / "images" / name).shape


def test_search_exact() -> None:
    text = run("benchmarks/search_exact.py", "--rows", 3000, "--values", 16, "--queries", 1, 4)
    assert [line.split(" | ")[2] for line in text.splitlines()[2:]] == ["1", "4"]


SMALL = "--width 16 --depth 2 --frames 32 --stride 16 --epochs 1 --freq-mask 8 --time-mask 4 --head-init random"


@pytest.mark.slow
def test_downstream(tmp_path: Path, model_folder: Path) -> None:
    root, out = trees.esc10(tmp_path / "esc10"), tmp_path / "out"
    options = ["--esc10", root, "--jobs", 1, "--workers", 1, "--options", "--epochs 1 --frames 32 --device cpu"]
    text = run("experiments/downstream.py", out, f"model={model_folder}@1.5", *options)
    assert {row["task"] for row in json.loads((out / "summary.json").read_text())} == {"probe", "fine-tuned"}
    assert "| model |" in text
    assert (out / "minutes.png").exists()
    again = run("experiments/downstream.py", out, f"model={model_folder}@1.5", *options)
    assert not [line for line in again.splitlines() if line.startswith("ssamba ")]  # nothing is done twice


@pytest.mark.slow
def test_finetune_dev(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("plain:  # as it is\nlow: --lr 1e-5\n")
    options = ["--esc10", trees.esc10(tmp_path / "esc10"), "--from", "none", "--jobs", 1]
    more = f"--encoder ssamba --device cpu {SMALL}"
    text = run("experiments/finetune_dev.py", tmp_path / "out", tmp_path / "list.txt", *options, "--options", more)
    assert "2 of 2 jobs" in text
    assert "| low | esc10 | 1 |" in (tmp_path / "out/summary.md").read_text()


def test_linear_probe(tmp_path: Path, model_folder: Path) -> None:
    rows = []
    for i in range(12):
        trees.write_clip(tmp_path / f"{i}.wav", i % 2, i, seconds=0.3)
        rows.append((f"{i}.wav", 1 + i % 3, "ab"[i % 2]))
    table = trees.write_table(tmp_path / "meta.csv", "filename,fold,category", rows)
    lines = run("experiments/linear_probe.py", table, model_folder).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["256", "32", "32"]


@pytest.mark.slow
def test_few_shot(tmp_path: Path, model_folder: Path) -> None:
    words = [trees.esc10(tmp_path / "esc10"), tmp_path / "out", "--model", model_folder, "--counts", 1, 3]
    lines = run("experiments/few_shot.py", *words, "--draws", 2).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["1", "3"]
    assert all(0 <= float(line.split("|")[i].split()[0]) <= 100 for line in lines[2:] for i in (2, 4))
    (tmp_path / "esc10").rename(tmp_path / "moved")  # the features are kept, and named by the files' times alone
    words[0] = tmp_path / "moved"
    assert run("experiments/few_shot.py", *words, "--draws", 2).splitlines() == lines


@pytest.mark.slow
def test_calibration(tmp_path: Path, model_folder: Path) -> None:
    words = [trees.esc10(tmp_path / "esc10"), tmp_path / "out", "--model", model_folder, "--draws", 2]
    lines = run("experiments/calibration.py", *words).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["as they are", "smoothed 0.2"]
    scores = lines[6:]
    assert len(scores) == 5
    assert all(0 <= float(cell.split(",")[0]) <= 1 for line in scores for cell in line.split("|")[3:-1])


@pytest.mark.slow
def test_background(tmp_path: Path, model_folder: Path) -> None:
    for source in ("a", "b", "c", "d"):
        noise(tmp_path / "other" / source / "0.wav", 5.2, ord(source))
    words = [trees.esc10(tmp_path / "esc10"), tmp_path / "out", "--model", model_folder, "--draws", 1]
    words += ["--noisy", "sound_3"]
    lines = run("experiments/background.py", *words, "--other", tmp_path / "other").splitlines()
    assert sum("the other three classes" in line for line in lines) >= 1
    cells = [cell.strip() for line in lines if line.startswith("|") for cell in line.split("|")[2:-1]]
    shares = [float(cell.removesuffix(" %")) for cell in cells if cell.endswith(" %")]
    assert shares
    assert all(0 <= share <= 100 for share in shares)


@pytest.mark.slow
def test_fit_layers(tmp_path: Path, model_folder: Path) -> None:
    lines = run("experiments/fit_layers.py", trees.esc10(tmp_path / "esc10"), "--model", model_folder).splitlines()
    assert len(lines) == 2 + 3  # one layer; that and itself; all of them
    assert all(line.split("|")[3].strip().endswith(" of 80") for line in lines[2:])


@pytest.mark.slow
def test_mixed_sounds(tmp_path: Path) -> None:
    printed = run("experiments/mixed_sounds.py", trees.esc10(tmp_path / "esc10"), tmp_path / "out", "--clips", 40)
    with open(tmp_path / "out/labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = [row for row in rows if ";" in row["labels"]]
    assert printed.split(": ")[1] == f"40 clips, {len(pairs)} of them of two sounds\n"
    assert 10 < len(pairs) < 30
    assert all(len(set(row["labels"].split(";"))) == 2 for row in pairs)
    wave, rate = soundfile.read(tmp_path / "out" / pairs[0]["path"])
    assert (rate, round(float(np.abs(wave).max()), 2)) == (16000, 0.9)


def test_minutes(tmp_path: Path) -> None:
    run("experiments/minutes.py", "dev/RESULTS-LOG.md", tmp_path / "minutes.png")
    assert (tmp_path / "minutes.png").stat().st_size > 10_000
    run("experiments/minutes.py", "LICENSE", tmp_path / "none.png", code=1)


def test_tiny_data(tmp_path: Path) -> None:
    noise(tmp_path / "unlabelled/ufoai_music/a.wav", 0.3, 0)
    noise(tmp_path / "unlabelled/kerstin/a.wav", 0.3, 1)
    words = tmp_path / "arabic"
    trees.write_table(noise(words / "w.wav", 0.3, 2).parent / "meta.csv", "filename,split", [("w.wav", "train")])
    found = run("tools/corpus/tiny_data.py", tmp_path / "unlabelled", words, tmp_path / "lists")
    assert found.split("\n") == ["speech: 1 files", "music: 1 files", "effects: 0 files", "words: 1 files", ""]
    with open(tmp_path / "lists/music.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (tmp_path / "lists" / row["path"]).samefile(tmp_path / "unlabelled/ufoai_music/a.wav")
    run("tools/corpus/tiny_data.py", tmp_path / "nowhere", words, tmp_path / "lists", code=2)


def test_overlap(tmp_path: Path) -> None:
    clips = [noise(tmp_path / f"clips/{i}.wav", 2.0, i) for i in range(2)]
    noise(tmp_path / "audio/other.wav", 4.0, 10)
    words = (tmp_path / "clips", tmp_path / "audio", "--planted", 2, "--out", tmp_path / "overlap.csv")
    assert "0 clips at 0.5 or more" in run("tools/corpus/overlap.py", *words)
    copied, rate = soundfile.read(clips[1])
    soundfile.write(tmp_path / "audio/copy.flac", copied * 0.3, rate)
    assert "1 clips at 0.5 or more" in run("tools/corpus/overlap.py", *words, code=1)
    with open(tmp_path / "overlap.csv", newline="") as file:
        assert next(csv.DictReader(file))["file"] == "copy.flac"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's tools")
def test_debian_audio(tmp_path: Path) -> None:
    """A package made here goes through unpacking, the search for copies, and the tables."""
    tree, sounds = tmp_path / "tree", "usr/share/games/7kaa/SOUND"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: 7kaa-data\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    (tree / "DEBIAN/control").write_text(control)
    for i in range(3):
        noise(tree / sounds / f"{i}.wav", 2.0, i)
    shutil.copy(tree / sounds / "0.wav", tree / sounds / "again.wav")
    noise(tmp_path / "tests/known.wav", 2.0, 1)
    (tmp_path / "debs").mkdir()
    deb = tmp_path / "debs/7kaa-data_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, deb], check=True, capture_output=True)
    words = (tmp_path / "out", "--debs", tmp_path / "debs", "--only", "7kaa", "--against", tmp_path / "tests")
    assert "1 repeats, silent or short, 0 not decoded, 1 like a test" in run("tools/corpus/debian_audio.py", *words)
    (joined,) = (tmp_path / "out/7kaa").glob("*.ogg")
    assert soundfile.info(joined).duration == pytest.approx(4.0, abs=0.1)
    assert "7kaa-data" in run("tools/corpus/debian_audio.py", tmp_path / "none", "--list")
    run("tools/corpus/debian_audio.py", tmp_path / "out", "--only", "nothing", code=2)


def test_decode(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.ogg", rng.normal(0, 0.1, 16000), 16000, format="OGG", subtype="OPUS")
    words = ("--workers", 1, "--seconds", 0.01, "--files", 1, "--cache")
    lines = run("benchmarks/decode.py", tmp_path, *words).splitlines()
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["as they are", "FLAC"]


@pytest.mark.slow
def test_scan_cpu() -> None:
    text = run("benchmarks/scan_cpu.py", "--repeats", 1, "--skip-long")
    assert "| 512 |" in text


def test_kernels_gpu() -> None:
    words = ("tiny-infer-4x22016", "tiny-train-64x512")
    assert run("benchmarks/kernels_gpu.py", "--dry-run", "--cases", *words).count(": runs") == 2


def test_manifest(tmp_path: Path) -> None:
    assert "100" in run("benchmarks/manifest.py", "rows", tmp_path, "--rows", 100, "--folders", 3)


def test_compiled_peer() -> None:
    assert run("benchmarks/compiled_peer.py", "--dry-run").count("| tiny ") == 2


def test_fast_forms() -> None:
    assert run("benchmarks/fast_forms.py", "--dry-run", "--forms", "fast", "tied").count("| tiny ") == 2


def test_pretrain_speed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(60):
        soundfile.write(tmp_path / f"{i}.ogg", rng.normal(0, 0.1, 16000), 16000, format="OGG", subtype="OPUS")
    words = ("--dry-run", "--sizes", "tiny", "--workers", 1, "--steps", 1, "--ways", "threads")
    assert run("benchmarks/pretrain_speed.py", tmp_path, *words).count("| ssamba tiny |") == 2


def test_linear_cpu() -> None:
    rows = run("benchmarks/linear_cpu.py", "--repeats", 1).strip().split("\n")
    assert len(rows) == 5
    assert all(0 < float(cell) < 1000 for row in rows[2:] for cell in row.split("|")[2:9])


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_fp32_products() -> None:
    rows = run("benchmarks/fp32_products.py", "--dry-run", "--shapes", "tiny", "--forms", "split,rows=32").splitlines()
    assert len(rows) == 7
    assert all(re.fullmatch(r" [\d.]+ \([0-9]e-0[78]\) ", cell) for row in rows[2:] for cell in row.split("|")[2:5])


def test_cpu_deploy(model_folder: Path) -> None:
    row = run("benchmarks/cpu_deploy.py", "--seconds", 1, "--model", model_folder).split("|")
    assert row[1].strip() == "1 s"
    assert float(row[5].split()[0]) > 100  # MB


@pytest.mark.slow
@pytest.mark.parametrize("journey", ["embed", "python", "pretrain", "finetune"])
def test_journeys(tmp_path: Path, journey: str) -> None:
    """The counts of dev/journeys.py are not those of nothing, and go into a document."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- journeys -->\nold\n<!-- end of journeys -->\nafter\n")
    row = run("dev/journeys.py", "--only", journey, "--write", page).splitlines()[2]
    assert int(row.split("|")[2]) >= 15
    assert row in page.read_text()
    assert "\nold\n" not in page.read_text()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_report_picture(tmp_path: Path, model_folder: Path) -> None:
    pytest.importorskip("playwright")
    data, out = trees.custom_folders(tmp_path / "sounds"), tmp_path / "run"
    words = ("fit", "--data", data, "--from", model_folder, "--out", out, "--device", "cpu")
    assert main([str(word) for word in words]) == 0
    assert main(["report", str(out), "--clips", "12", "--device", "cpu"]) == 0
    run("experiments/report_picture.py", out / "report.html", tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"
