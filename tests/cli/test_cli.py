"""The command line itself: help, mistyped words, options from dataclasses, pipes, and each command's good case."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ssamba
from ssamba.cli import commands, main
from ssamba.cli import parser as options
from ssamba.models.pretrained.model_dir import read_model, save_model
from ssamba.models.pretrained.pth_file import read_pth

pytestmark = pytest.mark.usefixtures("one_thread")


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.wav"
    t = np.arange(3 * 16000) / 16000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (200 * t + 300 * t * t)), 16000)
    return path


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"ssamba {ssamba.__version__}\n", "")
    for argv in ([], ["--help"]):
        code, out, err = run(capsys, *argv)
        assert (code, err) == (0, "")
        assert all(name in out for name in main.COMMANDS)
    for name in main.COMMANDS:
        code, out, err = run(capsys, name, "--help")
        assert (code, err) == (0, "")
        assert "usage: ssamba " + name in out


def test_help_needs_nothing_heavy() -> None:
    """Modules that need torch are imported where they are used, so that help and usage errors come at once."""
    for module in (main, options, *(sys.modules[command.run.__module__] for command in commands.COMMANDS.values())):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        names = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
        ours = {name for name in names if name.startswith("ssamba")}
        assert ours <= {
            "ssamba.cli.commands",
            "ssamba.cli.commands.common",
            "ssamba.cli.commands.models",
            "ssamba.cli.commands.recordings",
            "ssamba.cli.commands.training",
            "ssamba.cli.parser",
            "ssamba.cli.streams",
            "ssamba.data.unread",
            "ssamba.serve.options",
            "ssamba.utils.errors",
            "ssamba.utils.terminal",
            "ssamba.utils.threads",
        }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["embd"], "unknown command embd, did you mean embed?"),
        (["qqq"], "unknown command qqq, choose one of embed, pretrain, "),
        (["--verion"], "unknown option --verion, did you mean --version?"),
        (["embed", "x.wav", "--modle", "m"], "unknown option --modle, did you mean --model?"),
        (["embed", "x.wav", "--modle=m"], "unknown option --modle, did you mean --model?"),
        (["embed", "x.wav", "-q"], "unknown option -q"),
        (["pretrain", "x", "--obejctive", "joint"], "unknown option --obejctive, did you mean --objective?"),
        (["pretrain", "x", "--out", "r", "--objective", "jiont"], "--objective jiont: choose joint or"),
        (["pretrain", "x", "--out", "r", "--lr", "fast"], "argument --lr: fast: give a number"),
        (["pretrain", "x", "--out", "r", "--batch", "1.5"], "argument --batch: 1.5: give a whole number"),
        (["embed"], "the following arguments are required: FILE"),
        (["reconstruct", "x.wav"], "the following arguments are required: --out"),
        (["info", "a", "b"], "unrecognized arguments: b"),
        (["info", "/nowhere"], "/nowhere: no such file"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("ssamba: error: " + message)
    assert err.count("\n") == 1


@dataclass(frozen=True)
class Settings:
    rate_of_fire: float = field(default=0.5, metadata={"help": "shots a second, 50 % by default"})
    count: int | None = field(default=None, metadata={"help": "how many"})
    kind: str = field(default="round", metadata={"help": "the shape", "choices": ("round", "square")})
    loud: bool = field(default=True, metadata={"help": "with sound"})
    inner: int = 3


def test_a_dataclass_becomes_options(capsys: pytest.CaptureFixture[str]) -> None:
    parser = options.Parser(prog="x")
    options.add_dataclass(parser, Settings, exclude=["inner"])
    assert options.given(parser.read([]), Settings) == {}
    words = ["--rate-of-fire", "1e-2", "--count=7", "--kind", "square", "--no-loud"]
    values = options.given(parser.read(words), Settings)
    assert values == {"rate_of_fire": 0.01, "count": 7, "kind": "square", "loud": False}
    assert dataclasses.replace(Settings(), **values).inner == 3
    with pytest.raises(options.UsageError, match="--kind squre: choose round or square, did you mean 'square'"):
        parser.read(["--kind", "squre"])
    with pytest.raises(options.UsageError, match="unknown option --inner"):
        parser.read(["--inner", "4"])
    text = " ".join(parser.format_help().split())
    for part in ("shots a second, 50 % by default (default 0.5)", "{round,square}", "--loud, --no-loud", "default yes"):
        assert part in text


def test_pretrain_passes_only_what_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ssamba.training.pretrain import recipe
    from ssamba.training.pretrain import run as pretrain

    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(pretrain, "pretrain", lambda *arguments: calls.append(arguments))
    (tmp_path / "r.yaml").write_text("batch: 7\nlr: 0.002\n")
    argv = [
        "pretrain",
        "a",
        "b=2",
        "--out",
        "run",
        "--recipe",
        str(tmp_path / "r.yaml"),
        "--lr",
        "0.003",
        "--from",
        "m",
    ]
    assert main.main(argv) == 0
    values = recipe.make_recipe(tmp_path / "r.yaml", {"lr": 0.003})
    assert calls == [(["a", "b=2"], Path("run"), values, "m", "auto", [])]
    assert (values.batch, values.lr) == (7, 0.003)


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(main.COMMANDS, "info", dataclasses.replace(main.COMMANDS["info"], run=stop))
    assert run(capsys, "info", "x") == (130, "", "ssamba: error: interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes of this kind")
def test_a_closed_pipe_is_no_mistake(tmp_path: Path) -> None:
    """As in `ssamba info MODEL | true`."""
    save_model(tmp_path, ssamba.SSAMBA(ssamba.Config(width=16, depth=2, frames=128)))
    script = (
        "import os, sys; r, w = os.pipe(); os.dup2(w, 1); os.close(w); os.close(r); "
        f"from ssamba.cli.main import main; sys.exit(main(['info', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_convert_there_and_back(official_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, back = tmp_path / "deep" / "model", tmp_path / "back.pth"
    assert run(capsys, "convert", official_path, folder)[0] == 0
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    assert run(capsys, "convert", folder, back)[0] == 0
    old, new = read_pth(official_path), read_pth(back)
    assert old.keys() == new.keys()
    for key, tensor in old.items():
        assert tensor.dtype == new[key].dtype
        assert torch.equal(tensor, new[key]), key
    again = tmp_path / "again"
    assert run(capsys, "convert", back, again)[0] == 0
    first, second = read_model(folder), read_model(again)
    assert first[0] == second[0]
    assert all(torch.equal(first[1][key], second[1][key]) for key in first[1])
    for dest in (folder, back):
        code, _, err = run(capsys, "convert", folder if dest == back else back, dest)
        assert code == 2
        assert "exists already" in err


def test_convert_a_model_of_our_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ssamba.SSAMBA(ssamba.Config(width=16, depth=2, frames=128, mean=-5.0), heads=True)
    save_model(tmp_path / "m", model)
    code, out, _ = run(capsys, "convert", tmp_path / "m", tmp_path / "m.pth")
    assert code == 0
    assert "does not hold mean -5.0" in out
    state = read_pth(tmp_path / "m.pth")
    assert state["module.v.head.weight"].shape == (1000, 16)
    assert int(state["module.p_input_tdim"]) == 128
    other = ssamba.load(tmp_path / "m.pth", device="cpu", heads=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    save_model(tmp_path / "overlapping", model.with_grid(stride=10))
    code, _, err = run(capsys, "convert", tmp_path / "overlapping", tmp_path / "o.pth")
    assert code == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "o.pth").exists()


def test_convert_a_model_whose_stream_does_not_double(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The official form is the same model with powers of two in its output products."""
    config = ssamba.Config(width=16, depth=6, frames=128, residual_scale=1)
    model = ssamba.SSAMBA(config, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():  # beside a CLS token as small as a fresh one LayerNorm's epsilon would count
        model.cls_token.normal_(generator=torch.Generator().manual_seed(2))
    save_model(tmp_path / "m", model)
    assert run(capsys, "convert", tmp_path / "m", tmp_path / "m.pth")[0] == 0
    other = ssamba.load(tmp_path / "m.pth", device="cpu")
    assert other.config.residual_scale == 2
    features = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(other.encode(features), model.encode(features), rtol=1e-3, atol=1e-3)
    wrong = json.loads((tmp_path / "m" / "config.json").read_text())
    wrong["config"]["residual_scale"] = 3
    del wrong["digest"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(wrong))
    code, _, err = run(capsys, "info", tmp_path / "m")
    assert code == 2
    assert "residual_scale is 3: give 2" in err


def test_convert_a_model_with_a_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The official form has no place for the decoder; heads that read its tokens would be wrong without it."""
    model = ssamba.SSAMBA(ssamba.Config(width=16, depth=2, frames=128, decoder_depth=2), heads=True)
    save_model(tmp_path / "m", model)
    assert "behind a decoder of 2 blocks" in run(capsys, "info", tmp_path / "m")[1]
    code, out, err = run(capsys, "convert", tmp_path / "m", tmp_path / "m.pth")
    assert code == 0
    assert "does not hold the decoder, nor the heads" in out + err
    other = ssamba.load(tmp_path / "m.pth", device="cpu")
    features = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(other.encode(features), model.eval().encode(features))
    with pytest.raises(ssamba.SsambaError, match="no pretraining heads"):
        ssamba.load(tmp_path / "m.pth", heads=True)


def test_convert_of_the_wrong_kind(official_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m", ssamba.SSAMBA(ssamba.Config(width=16, depth=2, frames=128)))
    assert "ends in .pth" in run(capsys, "convert", tmp_path / "m", tmp_path / "n")[2]
    assert "without '.pth'" in run(capsys, "convert", official_path, tmp_path / "n.pth")[2]


def test_info(official_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path, ssamba.SSAMBA(ssamba.Config(width=32, depth=4), heads=True))
    state = {
        "step": 30,
        "epochs_done": 1.5,
        "total_steps": 60,
        "best": {"step": 20, "accuracy": 0.25},
        "finished": False,
    }
    (tmp_path / "state.json").write_text(json.dumps(state))
    code, out, _ = run(capsys, "info", tmp_path)
    assert code == 0
    for part in ("width 32, 4 blocks", "8 x 64", "step 30 of 60, 1.5 epochs, not finished", "accuracy 0.25"):
        assert part in out
    facts = json.loads(run(capsys, "info", tmp_path, "--json")[1])
    official = json.loads(run(capsys, "info", official_path, "--json")[1])
    assert facts["training"] == state
    assert facts["config"] == official["config"]
    assert facts["parameters"]["encoder"] == official["parameters"]["encoder"]
    assert facts["parameters"]["heads"] == official["parameters"]["heads"]
    assert official["parameters"]["unused extras"] == 1000 * 33 + 2


def test_info_counts_the_official_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):
        shapes = ssamba.SSAMBA(ssamba.Config.tiny(), heads=True).state_dict()
    model = ssamba.SSAMBA(ssamba.Config(width=16, depth=2, frames=128))
    assert sum(v.numel() for v in shapes.values()) == 7_095_296
    save_model(tmp_path, model)
    facts = json.loads(run(capsys, "info", tmp_path, "--json")[1])
    assert facts["parameters"]["encoder"] == sum(p.numel() for p in model.parameters())
    assert (facts["size"], facts["heads"]) == ("custom", False)


@pytest.mark.parametrize(("dtype", "name", "bound"), [("bf16", "bfloat16", 2e-2), ("fp16", "float16", 2e-3)])
def test_embeddings_in_half_precision(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, name: str, bound: float
) -> None:
    rows = {}
    for kind in ("fp32", dtype):
        out = tmp_path / f"{kind}.npz"
        assert run(capsys, "embed", sound, "--dtype", kind, "--device", "cpu", "--out", out)[0] == 0
        with np.load(out) as file:
            rows[kind], provenance = file["embedding"], json.loads(str(file["provenance"]))
    assert rows[dtype].dtype == np.float32
    assert 0 < np.linalg.norm(rows[dtype] - rows["fp32"]) / np.linalg.norm(rows["fp32"]) < bound
    assert provenance["dtype"] == name
    code, out, err = run(capsys, "embed", sound, "--dtype", "fp8", "--out", tmp_path / "none.npz")
    assert (code, out, err) == (2, "", "ssamba: error: dtype 'fp8': give auto, fp32, bf16, fp16\n")
    assert not (tmp_path / "none.npz").exists()


def test_stats(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(run(capsys, "stats", sound, "--json")[1])
    waveform, _ = soundfile.read(sound, dtype="float32")
    log_mel = ssamba.frontend.log_mel(torch.from_numpy(waveform))
    assert facts["mean"] == pytest.approx(log_mel.mean().item(), abs=1e-4)
    assert facts["std"] == pytest.approx(log_mel.std(unbiased=False).item(), abs=1e-4)
    code, out, err = run(capsys, "stats", sound)
    assert (code, err) == (0, "")
    assert out.startswith(f"mean {facts['mean']:.7g} std ")


def test_reconstruct(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    from ssamba.inference.reconstruct import reconstruct

    model = ssamba.SSAMBA(ssamba.Config(width=16, depth=2, frames=128), heads=True)
    save_model(tmp_path / "m", model)
    argv = [
        "reconstruct",
        sound,
        "--model",
        tmp_path / "m",
        "--out",
        tmp_path / "x.png",
        "--mask",
        20,
        "--start",
        "1.1",
    ]
    code, out, err = run(capsys, *argv)
    assert (code, err) == (0, "")
    assert "20 of 64 patches hidden" in out
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    drawn = reconstruct(model.eval(), sound, mask=20, start=1.1)
    assert drawn.original.shape == drawn.predicted.shape == drawn.masked.shape == (128, 128)
    assert drawn.masked.sum() == 20 * 256
    # What the model saw comes back as it was; what it did not see is its own drawing.
    np.testing.assert_allclose(drawn.predicted[~drawn.masked], drawn.original[~drawn.masked], atol=1e-4)
    assert (drawn.predicted[drawn.masked] != drawn.original[drawn.masked]).mean() > 0.99
    save_model(tmp_path / "headless", ssamba.SSAMBA(ssamba.Config(width=16, depth=2, frames=128)))
    code, _, err = run(capsys, *argv[:3], tmp_path / "headless", *argv[4:])
    assert code == 2
    assert "has no pretraining heads" in err


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ssamba.utils.errors import DataError
    from ssamba.utils.plots import embedding_map, loss_curves

    rows = [
        {"step": s, "loss": str(4 + 3 / s), "accuracy": s / 500, "lr": "1e-4", "val_loss": "1" if s % 50 == 0 else ""}
        for s in range(1, 200)
    ]
    loss_curves(rows, tmp_path / "curves.png")
    embedding_map(np.random.default_rng(0).standard_normal((30, 2)), ["a", "b 2", "$c_"] * 10, tmp_path / "map.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("curves.png", "map.png"))
    with pytest.raises(DataError, match="no rows"):
        loss_curves([], tmp_path / "none.png")
    with pytest.raises(DataError, match="give \\(N, 2\\)"):
        embedding_map(np.zeros((3, 2)), ["a"], tmp_path / "none.png")


@pytest.mark.parametrize(
    ("module", "out", "extra"), [("pyarrow", "x.parquet", "parquet"), ("matplotlib", "x.png", "plot")]
)
def test_missing_extras_are_named(
    module: str,
    out: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name, *rest))
    command = "embed" if module == "pyarrow" else "reconstruct"
    code, _, err = run(capsys, command, "a.wav", "--model", "m", "--out", tmp_path / out)
    assert code == 2
    assert f'pip install "ssamba[{extra}]"' in err


@pytest.mark.parametrize("given", [None, "7"])
def test_waiting_threads_soon_sleep(given: str | None) -> None:
    """OpenMP reads the variable when torch is imported; a value of the user's stands."""
    code = "import os, sys; from ssamba.cli.main import main; assert 'torch' not in sys.modules; main(['--version'])"
    code += "; print(os.environ['GOMP_SPINCOUNT'])"
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    if given is not None:
        environment["GOMP_SPINCOUNT"] = given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split()[-1] == (given or "2000")
