"""The bench: its independent check sees wrong mixers, failures are results, and the report says what was measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from ssamba.cli.main import main
from ssamba.evaluation.speed import measure
from ssamba.evaluation.speed.check import expected_tokens, relative_error
from ssamba.evaluation.speed.measure import (
    OUT_OF_MEMORY,
    TOLERANCE,
    TOO_SLOW,
    WRONG,
    Case,
    Result,
    Settings,
    measure_all,
)
from ssamba.evaluation.speed.report import speed_table, write_report
from ssamba.inference.model import SSAMBA
from ssamba.models.config import Config
from ssamba.utils.errors import ConfigError

CPU = torch.device("cpu")
QUICK = Settings(CPU, torch.float32, repeats=1)
FP32 = TOLERANCE[torch.float32]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("model", measure.MODELS)
def test_right_models_pass_the_check(model: str) -> None:
    encoder, features = measure.make_model(Case("tiny", model, 328, 2), QUICK)
    with torch.no_grad():
        assert relative_error(encoder.encode(features), expected_tokens(encoder, features)) < FP32 / 10


@pytest.mark.parametrize(("decay", "scan"), [("tied", "both"), ("free", "forward"), ("tied", "alternating")])
@torch.no_grad()
def test_other_decays_and_scans_pass_the_check(decay: str, scan: str) -> None:
    encoder = SSAMBA(Config(width=16, depth=4, frames=64, state_size=4, decay=decay, scan=scan)).eval()
    features = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    assert relative_error(encoder.encode(features), expected_tokens(encoder, features)) < FP32 / 10


@pytest.mark.parametrize("name", ["D_RKE", "A_log_RKEN", "conv_bias_RKE", "x_proj_RKPE", "norm_bias_Kd"])
def test_a_wrong_mixer_does_not_pass(name: str) -> None:
    encoder, features = measure.make_model(Case("tiny", "ssamba", 64, 1), QUICK)
    assert isinstance(encoder, SSAMBA)
    with torch.no_grad():
        expected = expected_tokens(encoder, features)
        for pair in encoder.pairs:
            getattr(pair, name).add_(0.3)
        assert relative_error(encoder.encode(features), expected) > TOLERANCE[torch.bfloat16]
        assert relative_error(torch.full_like(expected, float("nan")), expected) == float("inf")


@pytest.mark.slow
def test_cases_run_in_their_own_process_and_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(CPU, torch.float32, models=("ssast", "ssamba"), tokens=(16, 64), repeats=2)
    results = list(measure_all(settings))
    assert [(r.case.model, r.case.tokens) for r in results] == [
        ("ssast", 16), ("ssast", 64), ("ssamba", 16), ("ssamba", 64)
    ]  # fmt: skip
    for r in results:
        assert not r.status
        assert r.milliseconds is not None
        assert r.milliseconds > 0
        assert r.mebibytes is not None
        assert r.error is not None
        assert r.error < FP32


def test_failures_are_results(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("tiny", "ssamba", 16, 1)
    monkeypatch.setitem(TOLERANCE, torch.float32, -1.0)
    assert measure.measure(case, QUICK).status == WRONG
    monkeypatch.undo()
    assert measure.measure(case, Settings(CPU, torch.float32, limit_seconds=0.0)).status == TOO_SLOW

    def full(*_: object) -> Result:
        return torch.empty(1 << 50)  # type: ignore[return-value]

    monkeypatch.setattr(measure, "measure", full)
    monkeypatch.setattr(measure, "_in_a_process", measure._guarded)
    settings = Settings(CPU, torch.float32, models=("ssamba",), tokens=(16, 32), repeats=1)
    assert [r.status for r in measure_all(settings)] == [OUT_OF_MEMORY] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"tokens": (100,)}, "multiples of 8"), ({"sizes": ("huge",)}, "'huge'"), ({"models": ("vit",)}, "'vit'")],
)
def test_settings_that_cannot_be(change: dict[str, tuple[int | str, ...]], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Settings(CPU, torch.float32, **change).filled()  # type: ignore[arg-type]


def result(model: str, tokens: int, ms: float | None, mib: float | None, status: str = "") -> Result:
    return Result(Case("tiny", model, tokens, 4), status, ms, mib, 1e-3 if ms else None)


def test_report(tmp_path: Path) -> None:
    settings = Settings(CPU, torch.float32, sizes=("tiny",), tokens=(512, 2048, 22016), batch=4)
    results = [
        result("ssamba", 512, 20, 10), result("ssamba", 2048, 50, 30), result("ssamba", 22016, 300, 200),
        result("ssast", 512, 10, 10), result("ssast", 2048, 100, 30), result("ssast", 22016, 600, 400),
        result("ssast-written-out", 512, 40, 40), result("ssast-written-out", 2048, None, None, OUT_OF_MEMORY),
        result("ssast-written-out", 22016, None, None, OUT_OF_MEMORY),
    ]  # fmt: skip
    text = speed_table(results, settings)
    assert "50.0 % less time, 50.0 % less memory. Faster from about 1,000 tokens." in text
    assert "out of memory there. Faster at every length from 512 tokens." in text
    assert "| 2,048 | 50, 30 | 100, 30 | out of memory | 1.0e-03 |" in text
    paths = write_report(tmp_path / "out", results, settings)
    assert [p.name for p in paths] == ["bench.csv", "bench.md", "time.png", "memory.png"]
    with (tmp_path / "out" / "bench.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["status"] for r in rows].count(OUT_OF_MEMORY) == 2
    assert rows[2] | {"device": "", "torch": ""} == {
        "device": "", "torch": "", "dtype": "float32", "size": "tiny", "model": "ssamba", "batch": "4",
        "tokens": "22016", "milliseconds": "300", "mebibytes": "200", "error": "0.001", "status": "",
    }  # fmt: skip


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    words = ["bench", "--out", str(out), "--tokens", "16", "--models", "ssamba", "--repeats", "1", "--device", "cpu"]
    assert main(words) == 0
    assert "| 16 |" in capsys.readouterr().out
    assert (out / "time.png").stat().st_size > 1000
    assert main(["bench", "--out", str(out), "--tokens", "100"]) == 2
    assert "multiples of 8" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["ssamba", "ssast"])
def test_a_training_pass_leaves_the_gradients_of_a_plain_one(model: str) -> None:
    settings = Settings(CPU, torch.float32, training=True)
    encoder, features = measure.make_model(Case("tiny", model, 64, 1), settings)
    tokens = measure.run_pass(encoder, encoder.encode, features, settings)
    found = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    expected = encoder.encode(features)
    expected.square().mean().backward()
    assert torch.equal(tokens, expected)
    assert found
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is None or torch.equal(found[name], parameter.grad)


@pytest.mark.slow
def test_the_compiled_transformer_gives_the_same_tokens() -> None:
    """The peer is left out where no compiler is, and then refused by name before anything is measured."""
    settings = Settings(CPU, torch.float32, models=("ssast-compiled",), tokens=(64,), repeats=1)
    try:
        torch.compile(torch.sin, dynamic=False)(torch.zeros(8))
    except Exception:
        with pytest.raises(ConfigError, match=r"ssast-compiled needs torch\.compile"):
            list(measure_all(settings))
        return
    (result,) = measure_all(settings)
    assert result.status == ""
    assert result.error is not None
    assert result.error < FP32


def test_the_compiled_form_is_no_default_on_a_cpu() -> None:
    assert "ssast-compiled" not in Settings(CPU, torch.float32).filled().models
    assert "ssast-compiled" in Settings(torch.device("cuda"), torch.bfloat16).filled().models
