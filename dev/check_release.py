"""Build the wheel and the source archive, look at what they hold, and use the wheel in a fresh environment.

    python dev/check_release.py --out dist                          build, check, try with this Python
    python dev/check_release.py --out dist --python python3.10 --python python3.14
    python dev/check_release.py --wheel X.whl --environment venv    an environment that has the dependencies already

A trial installs the wheel, runs the commands of a first hour outside of the source tree and uninstalls it again; it
prints one line for each step, and ends with 1 at the first that fails. Nothing is published. Needs ``ssamba[release]``.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_WHEEL = 20 << 20
"""Bytes. The package index takes 100 MB; the weights are 12 MB."""
LICENCES = ("LICENSE", "THIRD_PARTY.md", "WEIGHTS.md", "docs/models/tiny-debian-sources.csv")
IN_ARCHIVE = ("CHANGELOG.md", "CITATION.cff", "SECURITY.md", "README.md", "constraints.txt", "constraints-dev.txt")
UNWANTED = re.compile(r"(^|/)(tests?|experiments|benchmarks|__pycache__)/|\.(py[cod]|nb[ic]|wav|flac|ogg|png|pth|so)$")
"""What belongs in no wheel: tests, compiled files, recordings, pictures, other formats of weights."""


class CheckError(Exception):
    """A build or a trial that is not as it should be; one line."""


def tracked(tree: Path) -> list[str]:
    """Files that git knows or would take, relative to ``tree``."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (tree / name).is_file()]


def build(tree: Path, out: Path, isolated: bool) -> tuple[Path, Path]:
    """Wheel and source archive, built from a copy of the tracked files; the wheel comes from the unpacked archive.

    ``isolated``: in an environment of its own, as a release; else with the installed setuptools, without a network.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ssamba-build-") as temporary:
        copy = Path(temporary) / "tree"
        for name in tracked(tree):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree / name, copy / name)
        made = Path(temporary) / "made"
        words = ["build", "--outdir", str(made), *([] if isolated else ["--no-isolation"]), str(copy)]
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
        if done.returncode:
            raise CheckError(f"build: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        (wheel,), (archive,) = made.glob("*.whl"), made.glob("*.tar.gz")
        return Path(shutil.copy(wheel, out)), Path(shutil.copy(archive, out))


def metadata(wheel: Path) -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(file.read(name).decode("utf-8"))


def check_wheel(wheel: Path, tree: Path) -> str:
    """Every tracked file of the package is in the wheel with its bytes, licences are there, nothing else is."""
    if wheel.stat().st_size > MAX_WHEEL:
        raise CheckError(f"{wheel.name}: {wheel.stat().st_size:,} bytes, more than {MAX_WHEEL:,}")
    with zipfile.ZipFile(wheel) as file:
        names = {n for n in file.namelist() if not n.endswith("/")}
        expected = {n.removeprefix("src/") for n in tracked(tree) if n.startswith("src/ssamba/")}
        info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
        package = {n for n in names if not n.startswith(f"{info}/")}
        if package != expected:
            raise CheckError(f"{wheel.name}: lacks {sorted(expected - package)}, has {sorted(package - expected)}")
        different = [n for n in sorted(expected) if file.read(n) != (tree / "src" / n).read_bytes()]
        missing = [n for n in LICENCES if f"{info}/licenses/{n}" not in names]
        unwanted = sorted(n for n in names if UNWANTED.search(n.removeprefix(f"{info}/licenses/")))
    if different or missing or unwanted:
        raise CheckError(f"{wheel.name}: differ {different}, licences missing {missing}, unwanted {unwanted}")
    return f"{len(names)} files, {wheel.stat().st_size:,} bytes"


def check_archive(archive: Path, tree: Path) -> str:
    """The source archive holds the package and the documents of a release, and neither tests nor pictures."""
    with tarfile.open(archive) as file:
        names = {n.partition("/")[2] for n in file.getnames()}
    package = {n for n in tracked(tree) if n.startswith("src/ssamba/")}
    missing = sorted({*package, *LICENCES, *IN_ARCHIVE} - names)
    unwanted = sorted(n for n in names if UNWANTED.search(n))
    if missing or unwanted:
        raise CheckError(f"{archive.name}: lacks {missing}, has {unwanted}")
    return f"{len(names)} entries, {archive.stat().st_size:,} bytes"


def check_metadata(wheel: Path) -> str:
    """Licence, versions of Python and a description whose links lead somewhere outside of the repository."""
    values = metadata(wheel)
    text = str(values.get_payload())
    relative = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|#|mailto:", t)]
    if relative or values["License-Expression"] != "Apache-2.0":
        raise CheckError(f"{wheel.name}: relative links {relative}, licence {values['License-Expression']}")
    return f"ssamba {values['Version']}, Python {values['Requires-Python']}"


def twine(files: list[Path]) -> str:
    """``twine check --strict``: the description renders on the package index."""
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    if done.returncode:
        raise CheckError(f"twine: {done.stdout}{done.stderr}")
    return "strict"


SOUNDS = """
import math, pathlib, struct, wave
def tone(path, pitch):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(22050)
        values = (int(9000 * math.sin(t * pitch * math.tau / 22050)) for t in range(33075))
        file.writeframes(b"".join(struct.pack("<h", value) for value in values))
for name, pitch in (("low", 220), ("high", 1760)):
    for clip in range(4):
        tone(pathlib.Path("sounds", name, f"{clip}.wav"), pitch * (1 + clip / 50))
tone(pathlib.Path("unknown.wav"), 1800)
"""
IMPORT = """
import sys, ssamba, torch, numpy, numba
assert ssamba.__file__.startswith(sys.prefix), ssamba.__file__
print("Python", sys.version.split()[0], *(f"{m.__name__} {m.__version__}" for m in (torch, numpy, numba)))
"""
EVERY_MODULE = """
import importlib, pkgutil, ssamba
extras = "transformers accelerate onnx huggingface_hub matplotlib sklearn pyarrow triton setuptools".split()
count = left = 0
for module in pkgutil.walk_packages(ssamba.__path__, "ssamba."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
        count += 1
    except ImportError as error:
        if not any(f"{extra!r}" in str(error) or f"[{extra}]" in str(error) for extra in extras):
            raise
        left += 1
print(count, "modules imported,", left, "need an extra")
"""
STEPS: tuple[tuple[str, ...], ...] = (
    ("python", "-c", IMPORT),
    ("python", "-c", EVERY_MODULE),
    ("ssamba", "--version"),
    ("python", "-c", SOUNDS),
    ("ssamba", "info", "tiny"),
    ("ssamba", "embed", "sounds", "--out", "embeddings.npz"),
    ("ssamba", "fit", "--data", "sounds", "--out", "runs/mine"),
    ("ssamba", "predict", "unknown.wav", "--model", "runs/mine", "--out", "classes.csv"),
    ("ssamba", "index", "sounds", "--out", "archive"),
    ("ssamba", "search", "sounds/low/1.wav", "--index", "archive"),
    ("ssamba", "pretrain", "sounds", "--out", "runs/new", "--steps", "3", "--batch", "2", "--frames", "64",
     "--mask", "8", "--depth", "2", "--validate-every", "3"),
    ("ssamba", "demo", "--out", "demo"),
)  # fmt: skip

NAMES = {IMPORT: "import, outside of the tree", EVERY_MODULE: "every module", SOUNDS: "sounds"}


def steps(quick: bool) -> list[tuple[str, ...]]:
    """The commands of a trial; ``quick`` leaves out the demo, which trains for minutes."""
    return [step for step in STEPS if not (quick and step[:2] == ("ssamba", "demo"))]


def try_wheel(wheel: Path, environment: Path, quick: bool, install: list[str]) -> None:
    """Install the wheel into a virtual environment, use it in an empty folder, remove it. Raises ``CheckError``."""
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SSAMBA_"))}
    with tempfile.TemporaryDirectory(prefix="ssamba-trial-") as folder:
        clean |= {"XDG_CACHE_HOME": str(Path(folder) / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        say([*pip, "install", *install, str(wheel)], "pip install", folder, clean)
        say([*pip, "check"], "pip check", folder, clean)
        for step in steps(quick):
            program = [str(python), *step[1:]] if step[0] == "python" else [str(python), "-m", *step]
            name = NAMES.get(step[-1]) or " ".join(step[:3])
            say(program, name, folder, clean)
        with (Path(folder) / "classes.csv").open(encoding="utf-8", newline="") as file:
            first = next(csv.DictReader(file))
        if (first["rank"], first["class"]) != ("1", "high"):
            raise CheckError(f"predict: a high tone was classified as {first['class']}")
        say([*pip, "uninstall", "--yes", "ssamba"], "pip uninstall", folder, clean)


def say(command: list[str], name: str, folder: str, environment: dict[str, str]) -> None:
    """Run a command and print its name and seconds, and the first line of what it prints. Raises ``CheckError``."""
    start = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise CheckError(f"{name}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    first = next((line for line in done.stdout.splitlines() if line.strip()), "")
    print(f"  {name:<32} {time.monotonic() - start:6.1f} s  {first[:100]}", flush=True)


def main() -> int:
    """Build, check and try, as asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for wheel and archive (default: dist)")
    parser.add_argument("--no-isolation", action="store_true", help="build with the installed setuptools")
    parser.add_argument("--wheel", type=Path, help="a wheel to try, instead of building one")
    parser.add_argument("--python", action="append", default=[], help="interpreter of a fresh environment (repeatable)")
    parser.add_argument("--environment", action="append", default=[], type=Path, help="one that has the dependencies")
    parser.add_argument("--constraint", action="append", default=[], help="constraints for the fresh environments")
    parser.add_argument("--demo", action="store_true", help="run `ssamba demo`, too: minutes")
    parser.add_argument("--no-trial", action="store_true", help="build and check alone")
    a = parser.parse_args()
    try:
        wheel = a.wheel.resolve() if a.wheel else release(a.out, not a.no_isolation)
        for environment in [] if a.no_trial else a.environment:
            print(environment)
            try_wheel(wheel, environment.resolve(), not a.demo, ["--no-deps", "--force-reinstall"])
        fresh = [] if a.no_trial else a.python or ([] if a.environment else [sys.executable])
        constraints = [word for name in a.constraint for word in ("--constraint", str(Path(name).resolve()))]
        for python in fresh:
            print(python)
            with tempfile.TemporaryDirectory(prefix="ssamba-fresh-") as folder:
                subprocess.run([python, "-m", "venv", folder], check=True)
                try_wheel(wheel, Path(folder), not a.demo, constraints)
    except CheckError as error:
        print(f"check_release: {error}", file=sys.stderr)
        return 1
    return 0


def release(out: Path, isolated: bool) -> Path:
    """Build and check both files; the wheel. Raises ``CheckError``."""
    wheel, archive = build(ROOT, out, isolated)
    print(f"{wheel.name}: {check_wheel(wheel, ROOT)}; {check_metadata(wheel)}; twine {twine([wheel, archive])}")
    print(f"{archive.name}: {check_archive(archive, ROOT)}")
    return wheel


if __name__ == "__main__":
    sys.exit(main())
