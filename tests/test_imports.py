"""Imports point one way, need the core dependencies only, and are quick; library code neither prints nor seeds."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ssamba

ROOT = Path(ssamba.__file__).parent

LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "errors config files progress weights",
        "frontend patches masking ops",
        "objectives regression",
        "models",
        "interop data",
        "loading",
        "__init__",
        "file_stream pictures describe training convert reconstruct neighbours",
        "embed_files embed_output predict_files predict_output probing",
        "demo bench",
        "options commands cli __main__",
    )
)
"""Lowest first. A module may import what lies in lower layers and in its own; docs/architecture.md says why."""

NEEDS_TRITON = ("ssamba.ops.mamba.gpu",)
OPTIONAL = ("matplotlib", "sklearn", "pyarrow", "triton")
HEAVY = ("numba", "llvmlite", "matplotlib", "tensorboardX", "sklearn", "pyarrow", "tqdm", "yaml")
SECONDS_BEYOND_TORCH = 1.5


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of the whole package."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["ssamba", *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def layer(module: str) -> int:
    part = module.split(".")[1] if "." in module else "__init__"
    places = [i for i, names in enumerate(LAYERS) if part in names]
    assert places, f"{module} is in no layer: give it a place in LAYERS"
    return places[0]


def type_checking_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node: ast.AST, nested: bool) -> Iterator[ast.AST]:
    """What runs; with ``nested`` also what runs later, inside functions."""
    for child in ast.iter_child_nodes(node):
        if type_checking_only(child):
            yield from (x for rest in child.orelse for x in (rest, *statements(rest, nested)))  # type: ignore[attr-defined]
        elif nested or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from statements(child, nested)


def imported(module: str, nested: bool = True) -> set[str]:
    """Modules of the package that a module imports."""
    package = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in statements(tree(module), nested):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            submodules = {f"{source}.{alias.name}" for alias in node.names}
            names |= {name if name in modules() else source for name in submodules}
    return {name for name in names if name.split(".")[0] == "ssamba"}


def test_the_whole_package_is_looked_at() -> None:
    assert {"ssamba", "ssamba.ops.mamba.naive", "ssamba.models.ssamba", "ssamba.cli"} <= set(modules())
    assert imported("ssamba.models.bimamba") >= {"ssamba.ops", "ssamba.models.config"}
    assert "ssamba.models.ssamba" not in imported("ssamba.inference.embed")  # for type checkers only


@pytest.mark.parametrize("module", [m for m in modules() if m != "ssamba"])
def test_imports_point_one_way(module: str) -> None:
    unknown = imported(module) - set(modules())
    assert not unknown, f"{module} imports {unknown}, which do not exist"
    back = {name for name in imported(module) if layer(name) > layer(module)}
    assert not back, f"{module} imports {back} from a higher layer"


def test_no_module_needs_itself_to_be_imported() -> None:
    edges = {m: imported(m, nested=False) for m in modules()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join([*path, module])}"
        if module not in done:
            for name in edges[module]:
                # A package's own __init__ is loaded before its modules, which is no circle.
                if not module.startswith(name + "."):
                    visit(name, (*path, module))
            done.add(module)

    for module in modules():
        visit(module, ())


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_module_imports_with_the_core_dependencies_alone() -> None:
    code = f"""
        import importlib, sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {OPTIONAL!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Missing())
        for name in {sorted(set(modules()) - {"ssamba.__main__"})!r}:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != "triton" or not name.startswith({NEEDS_TRITON!r}):
                    raise
        print("all")
    """
    assert run_python(code) == "all\n"


def test_importing_the_package_is_light() -> None:
    code = f"""
        import sys, time, torch
        before = set(sys.modules)
        start = time.perf_counter()
        import ssamba
        [getattr(ssamba, name) for name in ssamba.__all__]
        print(time.perf_counter() - start)
        print(*[name for name in {HEAVY!r} if name in sys.modules and name not in before])
    """
    # The best of three: other programs may want the machine at the same moment.
    for _ in range(3):
        seconds, heavy = run_python(code).split("\n")[:2]
        assert heavy == ""
        if float(seconds) < SECONDS_BEYOND_TORCH:
            break
    assert float(seconds) < SECONDS_BEYOND_TORCH


def test_the_package_itself_does_without_torch() -> None:
    code = """
        import sys, ssamba
        print(ssamba.__version__ != "", "torch" in sys.modules, set(ssamba.__all__) <= set(dir(ssamba)))
        print(ssamba.frontend.features is ssamba.features, ssamba.embed_files.__name__, hasattr(ssamba, "nothing"))
    """
    assert run_python(code) == "True False True\nTrue ssamba.embed_files False\n"


@pytest.mark.parametrize("module", modules())
def test_library_code_neither_prints_nor_touches_global_random_state(module: str) -> None:
    calls = {ast.unparse(n.func) for n in statements(tree(module), nested=True) if isinstance(n, ast.Call)}
    assert not calls & {"torch.manual_seed", "np.random.seed", "random.seed", "torch.seed"}
    if layer(module) < layer("ssamba.cli"):
        assert "print" not in calls


@pytest.mark.parametrize("module", modules())
def test_every_public_name_is_explained(module: str) -> None:
    assert ast.get_docstring(tree(module)) or not tree(module).body, f"{module} has no docstring"
    silent = [
        node.name
        for node in tree(module).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent, f"{module} does not explain {silent}"
