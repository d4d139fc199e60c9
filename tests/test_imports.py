"""Imports point one way, need the core dependencies only, and are light; library code neither prints nor seeds."""

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

FOLDERS = (
    *("utils", "audio", "ops", "data", "models", "inference", "adapters", "serve", "evaluation", "training"),
    *("reports", "cli"),
)
"""The folders of the package, lowest first. A module imports from its own folder and from lower ones alone, for type
checkers too; docs/architecture.md says why."""
MAX_FILES = 14
"""Modules of a folder, without ``__init__``."""

NEEDS = {
    "triton": ("ssamba.ops.mamba.triton", "ssamba.ops.layer_norm.triton", "ssamba.ops.linear_layer.triton"),
    "onnx": ("ssamba.inference.onnx",),
    "transformers": ("ssamba.inference.hf.",),
    "mteb": ("ssamba.adapters.mteb",),
    "sklearn": ("ssamba.adapters.sklearn",),
    "starlette": ("ssamba.serve.app", "ssamba.serve.http.guard"),
    "uvicorn": ("ssamba.serve.http.protocol",),
    "h11": ("ssamba.serve.http.protocol",),
}  # fmt: skip
"""Optional packages, and the modules that cannot be imported without them."""
OPTIONAL = (
    *("matplotlib", "sklearn", "pyarrow", "triton", "onnx", "transformers", "huggingface_hub", "mteb"),
    *("starlette", "uvicorn", "h11"),
)
HEAVY = (
    *("numba", "llvmlite", "matplotlib", "tensorboardX", "sklearn", "pyarrow", "tqdm", "yaml", "onnx"),
    *("transformers", "mteb", "starlette", "uvicorn"),
)
MODULES_BEYOND_TORCH = 150
"""Modules that importing every public name loads beyond torch's: each costs milliseconds of every command."""


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
    """The folder's place in ``FOLDERS``; the package itself and ``__main__`` are above all."""
    parts = module.split(".")
    return FOLDERS.index(parts[1]) if len(parts) > 1 and parts[1] in FOLDERS else len(FOLDERS)


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


def imported(module: str, nested: bool = True, types: bool = False) -> set[str]:
    """Modules of the package that a module imports; ``types``: those for type checkers alone, too."""
    package = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    nodes = ast.walk(tree(module)) if types else statements(tree(module), nested)
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            submodules = {f"{source}.{alias.name}" for alias in node.names}
            names |= {name if name in modules() else source for name in submodules}
    return {name for name in names if name.split(".")[0] == "ssamba"}


def test_the_whole_package_is_looked_at() -> None:
    assert {"ssamba", "ssamba.ops.mamba.naive", "ssamba.models.ssamba", "ssamba.cli.main"} <= set(modules())
    assert imported("ssamba.models.bimamba") >= {"ssamba.ops", "ssamba.models.config"}
    assert "ssamba.inference.load" in imported("ssamba", types=True)
    assert "ssamba.inference.load" not in imported("ssamba")


def test_the_root_holds_the_folders_alone() -> None:
    found = {path.name for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert found == {*FOLDERS, "__init__.py", "__main__.py", "py.typed"}


@pytest.mark.parametrize("folder", sorted({path.parent for path in modules().values()}), ids=lambda p: p.name)
def test_no_folder_is_crowded(folder: Path) -> None:
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert len(names) <= MAX_FILES, f"{folder} holds {len(names)} modules"


@pytest.mark.parametrize("module", [m for m in modules() if m != "ssamba"])
def test_imports_point_one_way(module: str) -> None:
    unknown = imported(module, types=True) - set(modules())
    assert not unknown, f"{module} imports {unknown}, which do not exist"
    # The package itself gives the version and the lazy public names, which no lower layer needs.
    back = {name for name in imported(module, types=True) - {"ssamba"} if layer(name) > layer(module)}
    assert not back, f"{module} imports {back} from a higher folder"


def test_no_circle_of_imports() -> None:
    """Counts imports inside functions and those for type checkers, too; the package itself is lazy."""
    edges = {m: imported(m, types=True) - {"ssamba"} for m in modules()}
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
                if not name.startswith({NEEDS!r}.get(error.name, ())) or name == "ssamba.inference.onnx.export":
                    raise
        print("all")
    """
    assert run_python(code) == "all\n"


def test_importing_the_package_is_light() -> None:
    code = f"""
        import sys, torch
        before = set(sys.modules)
        import ssamba
        [getattr(ssamba, name) for name in ssamba.__all__]
        print(len(set(sys.modules) - before))
        print(*[name for name in {HEAVY!r} if name in sys.modules and name not in before])
    """
    count, heavy = run_python(code).split("\n")[:2]
    assert heavy == ""
    assert 40 < int(count) < MODULES_BEYOND_TORCH


@pytest.mark.parametrize("module", [m for m in modules() if not m.startswith("ssamba.adapters")])
def test_nothing_imports_the_adapters(module: str) -> None:
    assert not [name for name in imported(module, types=True) if name.startswith("ssamba.adapters")]


def test_the_package_itself_does_without_torch() -> None:
    code = """
        import sys, ssamba
        print(ssamba.__version__ != "", "torch" in sys.modules, set(ssamba.__all__) <= set(dir(ssamba)))
        print(ssamba.frontend.features is ssamba.features, ssamba.embed_files.__name__, hasattr(ssamba, "nothing"))
    """
    assert run_python(code) == "True False True\nTrue ssamba.inference.embed_files False\n"


@pytest.mark.parametrize("module", modules())
def test_library_code_neither_prints_nor_touches_global_random_state(module: str) -> None:
    calls = {ast.unparse(n.func) for n in statements(tree(module), nested=True) if isinstance(n, ast.Call)}
    assert not calls & {"torch.manual_seed", "np.random.seed", "random.seed", "torch.seed"}
    if layer(module) < FOLDERS.index("cli"):
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
