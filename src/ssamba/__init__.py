"""Linear-time audio representations: bidirectional Mamba on log-mel patches (SSAMBA, arXiv 2405.11831)."""

from ssamba.config import Config
from ssamba.errors import AudioError, CheckpointError, ConfigError, DataError, SsambaError
from ssamba.frontend import features
from ssamba.loading import load
from ssamba.models.embedding import Embeddings
from ssamba.models.ssamba import SSAMBA

__all__ = [
    "SSAMBA",
    "AudioError",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "Embeddings",
    "SsambaError",
    "features",
    "load",
]
__version__ = "0.1.0"
