"""What a model directory holds for Hugging Face transformers, besides what ssamba itself reads.

Three more keys in ``config.json``, which ``read_config`` passes over, and ``preprocessor_config.json`` with the front
end. None of it needs transformers to be written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssamba.models.classifier import Classification
from ssamba.models.config import Config
from ssamba.utils.atomic_write import write_text

MODEL_TYPE = "ssamba"
PREPROCESSOR_FILE = "preprocessor_config.json"
MODEL_MAP = {
    "AutoConfig": "configuration_ssamba.SsambaConfig",
    "AutoModel": "modeling_ssamba.SsambaModel",
    "AutoModelForAudioClassification": "modeling_ssamba.SsambaForAudioClassification",
}
EXTRACTOR_MAP = {"AutoFeatureExtractor": "feature_extraction_ssamba.SsambaFeatureExtractor"}
"""Where ``trust_remote_code`` finds the classes: in modules that lie in the folder."""


def config_keys(heads: bool, task: Classification | None) -> dict[str, Any]:
    """The keys of ``config.json`` by which transformers knows the model's classes and the precision to compute in."""
    name = "SsambaForPreTraining" if heads else "SsambaModel"
    if task is not None and not task.per_second:
        name = "SsambaForAudioClassification"
    return {"model_type": MODEL_TYPE, "architectures": [name], "dtype": "float32"}


def write_preprocessor(folder: Path, config: Config, remote_code: bool = False) -> None:
    """Write ``preprocessor_config.json``: the front end of a model with these dimensions."""
    values = {
        "feature_extractor_type": "SsambaFeatureExtractor",
        "feature_size": config.mel_bins,
        "sampling_rate": config.sample_rate,
        "mean": config.mean,
        "std": config.std,
        "patch_time": config.patch_time,
        "stride_time": config.stride_time,
        **({"auto_map": EXTRACTOR_MAP} if remote_code else {}),
    }
    write_text(folder / PREPROCESSOR_FILE, json.dumps(values, indent=2) + "\n")
