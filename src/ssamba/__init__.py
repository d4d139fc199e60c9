"""Linear-time audio representations: bidirectional Mamba on log-mel patches (SSAMBA, arXiv 2405.11831)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssamba.audio.log_mel import features
    from ssamba.inference.embed import Embeddings
    from ssamba.models.config import Config
    from ssamba.models.encoder import Encoder
    from ssamba.models.pretrained.load import load
    from ssamba.models.ssamba import SSAMBA
    from ssamba.models.ssast import SSAST
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
