"""Linear-time audio representations: bidirectional Mamba on log-mel patches (SSAMBA, arXiv 2405.11831)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssamba.config import Config
    from ssamba.errors import AudioError, CheckpointError, ConfigError, DataError, SsambaError
    from ssamba.frontend import features
    from ssamba.loading import load
    from ssamba.models.embedding import Embeddings
    from ssamba.models.encoder import Encoder
    from ssamba.models.ssamba import SSAMBA
    from ssamba.models.ssast import SSAST

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
    "SsambaError",
    "features",
    "load",
]
__version__ = "0.1.0"

_HOMES = {
    "SSAMBA": "models.ssamba",
    "SSAST": "models.ssast",
    "AudioError": "errors",
    "CheckpointError": "errors",
    "Config": "config",
    "ConfigError": "errors",
    "DataError": "errors",
    "Embeddings": "models.embedding",
    "Encoder": "models.encoder",
    "SsambaError": "errors",
    "features": "frontend",
    "load": "loading",
}
"""Where each public name lives. It is imported when first asked for: torch takes a second, which help need not wait."""
_MODULES = ("embed_files", "frontend", "models", "ops", "predict_files")
"""Modules that are reached as attributes without an import of their own."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
