"""One name, one meaning: a public name is defined in one module, outside of a list that only gets shorter."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import ssamba

ROOT = Path(ssamba.__file__).parent
FOLDERS = (
    *("adapters", "audio", "cli", "data", "evaluation", "inference", "models", "reports", "serve", "training"),
    "utils",
)
"""The operators have one name in each of their backends."""

TABLES = {
    "COMMAND": "cli/commands",
    "add_options": "cli/commands",
    "run": "cli/commands",
    "read": "data/datasets",
}
"""Names that each module of a folder defines, since a table goes through all of them."""
STANDALONE = "inference/hf/plain"
"""Modules that are copied into folders and run where ssamba is not installed: they define again what they need."""
ALLOWED: dict[str, tuple[str, ...]] = {
    # A network, and the same network with the methods that take recordings.
    "Encoder": ("inference/model", "models/encoder"),
    "KINDS": ("inference/model", "models/registry"),
    "SSAMBA": ("inference/model", "models/ssamba"),
    "SSAST": ("inference/model", "models/ssast"),
    "make_encoder": ("inference/model", "models/registry"),
}
"""Names that still stand in several modules, and in which."""


def defined_names(path: Path) -> set[str]:
    """Public functions, classes and constants at the top level of a module, not those that it imports."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_each_public_name_is_defined_in_one_module() -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = path.relative_to(ROOT).with_suffix("").as_posix()
            if module.startswith(STANDALONE):
                continue
            for name in defined_names(path):
                if not module.startswith(TABLES.get(name, "nowhere")):
                    homes[name].add(module)
    shared = {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1}
    new = {name: modules for name, modules in shared.items() if set(modules) - set(ALLOWED.get(name, ()))}
    assert not new, f"defined in several modules: {new}; give one of them another name, or import it"
    gone = {name: modules for name, modules in ALLOWED.items() if sorted(modules) != shared.get(name)}
    assert not gone, f"no longer shared like that, shorten ALLOWED: {gone}"


def test_the_names_are_found() -> None:
    assert defined_names(ROOT / "utils" / "errors.py") >= {"SsambaError", "AudioError"}
    assert defined_names(ROOT / "models" / "config.py") >= {"Config", "WIDTHS", "ENCODERS"}
