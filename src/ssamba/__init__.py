"""Linear-time audio representations: bidirectional Mamba on log-mel patches (SSAMBA, arXiv 2405.11831)."""

from importlib import import_module
from importlib.util import find_spec
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

# Names are imported when they are first used: a decoding process must not wait for torch (ssamba.data.worker).
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


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is not None:
        value = globals()[name] = getattr(import_module(f"ssamba.{home}"), name)
        return value
    if not name.startswith("_") and find_spec(f"ssamba.{name}"):
        return import_module(f"ssamba.{name}")
    raise AttributeError(f"module 'ssamba' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
