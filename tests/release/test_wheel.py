"""The wheel and the source archive: built, looked into, and used in an environment of their own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("build", reason="build is not installed")
pytest.importorskip("twine", reason="twine is not installed")
ROOT = Path(__file__).parent.parent.parent


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_release", ROOT / "dev" / "check_release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_release = script()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and archive, with the installed setuptools: no network."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 or newer is not installed")
    return check_release.build(ROOT, tmp_path_factory.mktemp("dist"), isolated=False)


def test_both_hold_what_they_should(built: tuple[Path, Path]) -> None:
    wheel, archive = built
    check_release.check_wheel(wheel, ROOT)
    check_release.check_metadata(wheel)
    check_release.check_archive(archive, ROOT)
    check_release.twine([wheel, archive])
    names = set(zipfile.ZipFile(wheel).namelist())
    weights = "models/pretrained/weights/tiny"
    for name in (
        "py.typed",
        "training/recipes/esc50.yaml",
        "ops/mamba/cuda/kernels/scan_forward.cu",
        f"{weights}/model.safetensors",
        f"{weights}/CARD.md",
        "inference/search/tiny_space.safetensors",
    ):
        assert f"ssamba/{name}" in names


@pytest.mark.parametrize("change", ["lost", "test", "edited", "licence"])
def test_a_wheel_that_is_not_whole_is_found(built: tuple[Path, Path], tmp_path: Path, change: str) -> None:
    wheel = tmp_path / built[0].name
    with zipfile.ZipFile(built[0]) as old, zipfile.ZipFile(wheel, "w") as new:
        for name in old.namelist():
            if (change == "lost" and name.endswith("esc50.yaml")) or (change == "licence" and "WEIGHTS.md" in name):
                continue
            content = old.read(name)
            new.writestr(name, content + b"#" if change == "edited" and name == "ssamba/__init__.py" else content)
        if change == "test":
            new.writestr("tests/test_embed.py", "")
    with pytest.raises(check_release.CheckError):
        check_release.check_wheel(wheel, ROOT)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_wheel_is_used_and_removed(built: tuple[Path, Path], tmp_path: Path) -> None:
    """With the dependencies of this environment; ``check_release.py --python`` installs them anew."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    site = next(environment.rglob("site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    check_release.try_wheel(built[0], environment, True, ["--no-deps", "--force-reinstall", "--no-index"])
    left = [p for p in site.rglob("*") if "ssamba" in str(p) and p.is_file()]
    assert all(p.suffix in (".nbi", ".nbc") for p in left), left
