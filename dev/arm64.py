"""Run tests as an arm64 machine would: Debian's Python and PyPI's wheels for aarch64, under QEMU.

    python dev/arm64.py                                       the tests of the CPU kernels
    python dev/arm64.py --cpu neoverse-v1 tests/ops/test_cpu.py -k gradients
    python dev/arm64.py --shell                               how to start that Python by hand

Needs Linux on x86-64, apt-get and dpkg-deb, Debian's signing keys (package debian-archive-keyring), the network, and
1.5 GB below ``--folder``; no root, no binfmt_misc, no container. Debian's packages are unpacked into the folder with
lists and caches that lie there, too, so the machine's packages stay as they are. Later calls use what is there. Wheels
have the versions of constraints-dev.txt, except torch: from 2.11 on PyPI's wheel for aarch64 needs CUDA's libraries.

Numbers are those of arm64, for the emulation is exact. Times say nothing. Emulated code runs tens of times slower: the
default takes about ten minutes, so keep sizes small. What LLVM reads of the processor is x86's, thus Numba compiles
for a plain ARMv8 with NEON; ``--cpu`` names another processor to compile for (``llc -mtriple=aarch64 -mcpu=help``).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = [f"tests/ops/{name}.py" for name in ("test_cpu_simd", "test_cpu", "test_decay_forms")]
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCE = f"deb [signed-by={KEYS}] http://deb.debian.org/debian bookworm main\n"
EMULATOR = "qemu-user-static"
GUEST = ["python3", "libstdc++6", "libgomp1"]
VERSION = "3.11"
"""Bookworm's Python."""
TORCH = "2.10.0"
"""The last whose wheel on PyPI for aarch64 is a CPU build (139 MB; later ones 400 MB and CUDA's libraries)."""
WHEELS = [
    *("numpy", "numba", "llvmlite", "soundfile", "soxr", "safetensors", "pyyaml", "tqdm", "tensorboardx", "protobuf"),
    *("packaging", "cffi", "pycparser", "filelock", "typing-extensions", "sympy", "mpmath", "networkx", "jinja2"),
    *("markupsafe", "fsspec", "pytest", "pytest-timeout", "iniconfig", "pluggy", "pygments"),
]
"""What ssamba and its tests need, with what that needs: pip would evaluate markers for the machine that it runs on."""
GLIBC = ("2_17", "2_24", "2_26", "2_27", "2_28", "2_31", "2_34")
"""Bookworm has 2.36."""


def fetch_debian(folder: Path, architecture: str, packages: list[str], to: Path) -> None:
    """Packages with all that they depend on, unpacked into ``to``: apt with its state below ``folder``."""
    state = folder / f"apt-{architecture}"
    shutil.rmtree(state, ignore_errors=True)
    for part in ("lists/partial", "archives/partial", "parts"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "sources.list").write_text(SOURCE)
    settings = {
        "APT::Architecture": architecture, "APT::Architectures": architecture, "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "", "Dir::State": state, "Dir::State::status": state / "status",
        "Dir::State::lists": state / "lists", "Dir::Cache": state, "Dir::Cache::archives": state / "archives",
        "Dir::Etc::sourcelist": state / "sources.list", "Dir::Etc::sourceparts": state / "parts",
        "Dir::Etc::preferences": state / "preferences", "Dir::Etc::preferencesparts": state / "parts",
        "Dir::Log": state,
    }  # fmt: skip
    configuration = state / "apt.conf"
    configuration.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    environment = {**os.environ, "APT_CONFIG": str(configuration), "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "--error-on=any"], ["install", "--download-only", "--yes", *packages]):
        subprocess.run(["apt-get", "-qq", *words], env=environment, check=True)
    to.mkdir(parents=True, exist_ok=True)
    for archive in sorted((state / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", archive, to], check=True)


def pins() -> list[str]:
    """``name==version`` of each wheel."""
    text = (ROOT / "constraints-dev.txt").read_text(encoding="utf-8")
    versions = dict(re.findall(r"^([\w-]+)==(\S+)", text, re.MULTILINE))
    return [f"torch=={TORCH}", *(f"{name}=={versions[name]}" for name in WHEELS)]


def fetch_wheels(to: Path) -> None:
    """The wheels for aarch64, unpacked into ``to``."""
    platforms = [f"--platform=manylinux_{glibc}_aarch64" for glibc in GLIBC] + ["--platform=manylinux2014_aarch64"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(to)]
    command += ["--only-binary=:all:", f"--python-version={VERSION}", *platforms, *pins()]
    subprocess.run(command, check=True)


def write_launcher(folder: Path) -> Path:
    """A program that starts the emulated Python, and that this Python takes for itself (``sys.executable``).

    So a test that starts another process does that under the emulator, too. It lies where Python looks for its library.
    """
    emulator, system = folder / "host" / "usr" / "bin" / "qemu-aarch64-static", folder / "root"
    python, launcher = system / "usr" / "bin" / f"python{VERSION}", system / "usr" / "bin" / "python-emulated"
    words = shlex.join(map(str, [emulator, "-L", system, "-0", launcher, python]))
    launcher.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    launcher.chmod(0o755)
    return launcher


def set_up(folder: Path) -> Path:
    """Everything below ``folder``, unless it is there already; the launcher."""
    done, content = folder / "ready", "\n".join([SOURCE, EMULATOR, *GUEST, *pins(), ""])
    if not (done.exists() and done.read_text() == content):
        for part in ("root", "host"):
            shutil.rmtree(folder / part, ignore_errors=True)
        native = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout
        fetch_debian(folder, native.strip(), [EMULATOR], folder / "host")
        fetch_debian(folder, "arm64", GUEST, folder / "root")
        fetch_wheels(folder / "root" / "usr" / "local" / "lib" / f"python{VERSION}" / "dist-packages")
        done.write_text(content)
    return write_launcher(folder)


def guest_environment(folder: Path, cpu: str | None) -> dict[str, str]:
    """One thread, this tree's package, caches of compiled code below ``folder``."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"),
        "NUMBA_CACHE_DIR": str(folder / "numba"), "PYTHONPYCACHEPREFIX": str(folder / "pycache"),
    }  # fmt: skip
    for name in ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "VIRTUAL_ENV"):
        environment.pop(name, None)
    if cpu is not None:
        environment |= {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}  # not those that LLVM reads of this machine
    return environment


def check_machine() -> None:
    """Ends the program where the setup cannot work."""
    missing = [name for name in ("apt-get", "dpkg", "dpkg-deb") if shutil.which(name) is None]
    if not sys.platform.startswith("linux") or missing:
        sys.exit(f"needs Linux with Debian's tools; missing: {', '.join(missing) or 'Linux'}")
    if not KEYS.exists():
        sys.exit(f"{KEYS} is missing: apt-get install debian-archive-keyring")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog="All other words go to pytest.", allow_abbrev=False
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "arm64", help="where everything lies")
    parser.add_argument("--cpu", metavar="NAME", help="processor to compile for (default: ARMv8 with NEON)")
    parser.add_argument("--shell", action="store_true", help="set up, and print how to start Python by hand")
    options, words = parser.parse_known_args()
    check_machine()
    folder = options.folder.resolve()
    launcher = set_up(folder)
    environment = guest_environment(folder, options.cpu)
    if options.shell:
        changed = [f"{name}={value}" for name, value in environment.items() if os.environ.get(name) != value]
        print(shlex.join(["env", *changed, str(launcher)]))
        return
    tests = words or TESTS
    command = ["nice", str(launcher), "-m", "pytest", "-p", "no:cacheprovider", "-q", *tests]
    sys.exit(subprocess.run(command, env=environment, cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
