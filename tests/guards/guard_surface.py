"""Snapshots of the Python surface and of state dicts."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from typing import Any

import torch
from guard_support import environment, sha256
from torch import nn

import ssamba

NOISE = {"TYPE_CHECKING", "Any", "annotations"}
"""What the module imports for itself."""
ALIASES = {
    "frontend": ("features", "log_mel"),
    "embed_files": ("embed_files", "Report"),
    "predict_files": ("predict_files", "load_classifier", "PredictReport"),
    "models": (),
}
"""Modules reached as attributes, and what users call in them. ``ops`` says so itself in ``__all__``."""


def fresh(code: str) -> Any:
    """What a statement prints as JSON in a new interpreter, where nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    return json.loads(done.stdout)


def parameters(function: Any) -> list[str]:
    """Name, kind and default of each parameter; annotations are left out, for private types have no fixed names."""
    marks: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = []
    for p in inspect.signature(function).parameters.values():
        default = "" if p.default is p.empty else f"={p.default!r}"
        kind = " (keyword)" if p.kind is p.KEYWORD_ONLY else " (position)" if p.kind is p.POSITIONAL_ONLY else ""
        found.append(marks.get(p.kind, "") + p.name + default + kind)
    return found


def members(cls: type) -> dict[str, Any]:
    """Public methods with their parameters, properties and attributes, without those of torch's Module or object."""
    base = next((b for b in (nn.Module, tuple, Exception, object) if issubclass(cls, b)), object)
    found: dict[str, Any] = {}
    for name in sorted(set(dir(cls)) - set(dir(base))):
        if name.startswith("_"):
            continue
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property):
            found[name] = "property"
        elif isinstance(value, (classmethod, staticmethod)) or inspect.isfunction(value):
            found[name] = parameters(getattr(cls, name))
        else:
            found[name] = "attribute"
    return found


def described(value: Any) -> Any:
    """A function's parameters, or a class's bases, parameters, fields and members."""
    if not inspect.isclass(value):
        return parameters(value) if callable(value) else repr(value)
    public = {*ssamba.__all__, "Module", "Exception", "BaseException"} - {value.__name__}
    bases = sorted({b.__name__ for b in value.__mro__} & public)
    facts: dict[str, Any] = {"bases": bases, "members": members(value)}
    if not issubclass(value, BaseException):
        facts["call"] = parameters(value)
    if dataclasses.is_dataclass(value):
        facts["fields"] = {f.name: str(f.type) for f in dataclasses.fields(value)}
    if hasattr(value, "_fields"):
        facts["fields"] = list(value._fields)
    return facts


def backends() -> dict[str, str]:
    """What each value of SSAMBA_BACKEND gives for a small convolution on the CPU: done, or the error."""
    code = (
        "import json, os, ssamba, torch\nfound = {}\n"
        "for name in ('auto', 'reference', 'cpu', 'triton', 'cuda', 'opencl'):\n"
        "    os.environ['SSAMBA_BACKEND'] = name\n"
        "    try:\n"
        "        ssamba.ops.conv_silu(torch.ones(1, 4, 2, 8), torch.ones(2, 2, 8, 4), torch.ones(2, 2, 8))\n"
        "        found[name] = 'done'\n"
        "    except ssamba.ConfigError as error:\n"
        "        found[name] = 'unknown' if 'unknown backend' in str(error) else 'known'\n"
        "    except Exception:\n"
        "        found[name] = 'known'\n"
        "    try:\n"
        "        with ssamba.ops.use_backend(name):\n            found[name] += ', taken'\n"
        "    except ssamba.ConfigError as error:\n        found[name] += ', refused'\n"
        "print(json.dumps(found))"
    )
    return fresh(code)


def surface() -> dict[str, Any]:
    """The names, parameters and defaults of everything public."""
    names = fresh("import json, ssamba; print(json.dumps([n for n in dir(ssamba) if n[0] != '_']))")
    aliases = {
        alias: {n: described(getattr(getattr(ssamba, alias), n)) for n in used} for alias, used in ALIASES.items()
    }
    ops = ssamba.ops
    return {
        "dir": sorted(set(names) - NOISE),
        "__all__": sorted(ssamba.__all__),
        "__version__": ssamba.__version__,
        "public": {name: described(getattr(ssamba, name)) for name in sorted(ssamba.__all__)},
        "aliases": aliases,
        "ops": {name: parameters(getattr(ops, name)) for name in sorted(ops.__all__)},
        "backends": backends(),
        "sizes": {s: getattr(ssamba.Config, s)().to_dict() for s in ("tiny", "small", "base")},
        "ssast": ssamba.Config.tiny(encoder="ssast").to_dict(),
    }


def tensors_of(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Shapes and types by key, numbered modules in one line, and a digest of the whole list in its order."""
    lines: list[str] = []
    grouped: dict[str, int] = {}
    for key, value in state.items():
        form = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        lines.append(f"{key} {form}")
        numbered = re.sub(r"\.\d+(?=\.|$)", ".#", key)
        group = grouped.setdefault(f"{numbered} {form}", 0)
        grouped[f"{numbered} {form}"] = group + 1
    return {"tensors": grouped, "in order": sha256("\n".join(lines).encode())}


def state_dicts() -> dict[str, Any]:
    """State dicts of the packaged model and of fresh models of each size, with what can be added to them."""
    found = {"packaged": tensors_of(ssamba.load(device="cpu").state_dict())}
    found["packaged with heads"] = tensors_of(ssamba.load(device="cpu", heads=True).state_dict())
    with torch.device("meta"):
        for size in ("tiny", "small", "base"):
            config = getattr(ssamba.Config, size)
            found[size] = tensors_of(ssamba.SSAMBA(config()).state_dict())
            found[f"{size} with heads"] = tensors_of(ssamba.SSAMBA(config(), heads=True).state_dict())
            found[f"{size} ssast"] = tensors_of(ssamba.SSAST(config(encoder="ssast"), heads=True).state_dict())
        decoding = ssamba.Config.tiny(decoder_depth=2)
        found["decoder"] = tensors_of(ssamba.SSAMBA(decoding, heads=True).state_dict())
        found["one direction"] = tensors_of(ssamba.SSAMBA(ssamba.Config.tiny(directions=1)).state_dict())
        decoding = ssamba.Config.tiny(encoder="ssast", decoder_depth=2)
        found["ssast decoder"] = tensors_of(ssamba.SSAST(decoding, heads=True).state_dict())
    return found
