"""Linear-time audio representations: bidirectional Mamba on log-mel patches (SSAMBA, arXiv 2405.11831)."""

from __future__ import annotations

from sys import meta_path as _meta_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssamba.audio.log_mel import features
    from ssamba.inference.embed import Embeddings
    from ssamba.inference.load import load
    from ssamba.inference.model import SSAMBA, SSAST, Encoder
    from ssamba.inference.onnx.export import export_onnx
    from ssamba.inference.search.make import index
    from ssamba.inference.search.query import Index
    from ssamba.inference.several.predict import predict_each
    from ssamba.models.config import Config
    from ssamba.reports.make import report
    from ssamba.utils.errors import AudioError, CheckpointError, ConfigError, DataError, SsambaError

__all__ = [
    "SSAMBA",
    "SSAST",
    "AudioError",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "Embeddings",
    "Encoder",
    "Index",
    "SsambaError",
    "export_onnx",
    "features",
    "index",
    "load",
    "predict_each",
    "report",
]
__version__ = "0.2.0"

_HOMES = {
    "SSAMBA": "inference.model",
    "SSAST": "inference.model",
    "AudioError": "utils.errors",
    "CheckpointError": "utils.errors",
    "Config": "models.config",
    "ConfigError": "utils.errors",
    "DataError": "utils.errors",
    "Embeddings": "inference.embed",
    "Encoder": "inference.model",
    "Index": "inference.search.query",
    "SsambaError": "utils.errors",
    "export_onnx": "inference.onnx.export",
    "features": "audio.log_mel",
    "index": "inference.search.make",
    "load": "inference.load",
    "predict_each": "inference.several.predict",
    "report": "reports.make",
}
"""Where each public name lives. It is imported when first asked for: torch takes a second, which help need not wait."""
_MODULES = {
    "embed_files": "inference.embed_files",
    "frontend": "audio.log_mel",
    "hf": "inference.hf",
    "models": "models",
    "ops": "ops",
    "predict_files": "inference.predict_files",
}
"""Modules that are reached as attributes without an import of their own. ``import ssamba.frontend`` and the like, the
names of version 0.1, go on working too."""


class _ModuleAliases:
    """Finds the modules of version 0.1 by their old names, when they are first imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """A spec that gives the module itself, or None for any other name."""
        from importlib.util import spec_from_loader

        package, _, alias = name.rpartition(".")
        moved = package == __name__ and _MODULES.get(alias, alias) != alias
        return spec_from_loader(name, self) if moved else None  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> Any:
        """The module under its new name."""
        from importlib import import_module

        module = import_module(f"{__name__}.{_MODULES[spec.name.rpartition('.')[2]]}")
        self._spec = module.__spec__
        return module

    def exec_module(self, module: Any) -> None:
        """The module has run already, and keeps the name that it has now."""
        module.__spec__ = self._spec


_meta_path.append(_ModuleAliases())


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{_MODULES[name]}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
