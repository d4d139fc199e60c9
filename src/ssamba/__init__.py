"""Linear-time audio representations: bidirectional Mamba on log-mel patches (SSAMBA, arXiv 2405.11831)."""

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
