"""Write constraints-dev.txt: the version of every package that ``ssamba[dev]`` brings, as installed here.

    .venv/bin/python dev/write_constraints.py

Run it in an environment in which all tests pass. Versions stand without hashes: torch's wheels differ between indexes,
and pip refuses hashes for a package that is installed from its source tree (docs/dependencies.md).
"""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = Path(__file__).parent.parent / "constraints-dev.txt"
HEAD = """\
# Every package of ssamba[dev] with what it needs, as in the environment in which all tests passed (Python {python}).
# Written by dev/write_constraints.py; `make` installs with it. Python 3.10 gets what it can have: many of these
# versions need 3.11.
"""


def closure(start: str, extra: str) -> set[str]:
    """Names of the installed packages that ``start[extra]`` needs, directly or not."""
    found: set[str] = set()
    pending = [(start, extra)]
    seen = set(pending)
    while pending:
        name, wanted = pending.pop()
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # not needed on this machine
        found.add(canonicalize_name(name))
        for text in needs:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": wanted}):
                continue
            part = str(canonicalize_name(need.name))
            for option in ("", *sorted(need.extras)):
                if (part, option) not in seen:
                    seen.add((part, option))
                    pending.append((part, option))
    return found - {canonicalize_name(start)}


def lines() -> list[str]:
    """One constraint for each package."""
    out = []
    for name in sorted(closure("ssamba", "dev")):
        version = distribution(name).version.partition("+")[0]
        out.append(f'{name}=={version} ; python_version >= "3.11"')
    return out


def main() -> None:
    """Write the file."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    FILE.write_text(HEAD.format(python=platform.python_version()) + "\n".join(lines()) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(lines())} packages")


if __name__ == "__main__":
    main()
