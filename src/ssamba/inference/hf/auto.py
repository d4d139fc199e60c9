"""Making the classes known to transformers."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
)
from transformers.pipelines import PIPELINE_REGISTRY

from ssamba.inference.hf.configuration import SsambaConfig
from ssamba.inference.hf.feature_extraction import SsambaFeatureExtractor
from ssamba.inference.hf.modeling import SsambaForAudioClassification, SsambaModel
from ssamba.inference.hf.pipeline import SsambaAudioClassificationPipeline
from ssamba.inference.hf.pretraining import SsambaForPreTraining

TASK = "audio-classification"


def register() -> None:
    """Let ``AutoModel``, ``AutoFeatureExtractor`` and ``pipeline`` know the models of ssamba; again does no harm.

    The class of ``pipeline("audio-classification")`` becomes one that for other models does what it did.
    """
    AutoConfig.register(SsambaConfig.model_type, SsambaConfig, exist_ok=True)
    AutoFeatureExtractor.register(SsambaConfig, SsambaFeatureExtractor, exist_ok=True)
    AutoModel.register(SsambaConfig, SsambaModel, exist_ok=True)
    AutoModelForPreTraining.register(SsambaConfig, SsambaForPreTraining, exist_ok=True)
    AutoModelForAudioClassification.register(SsambaConfig, SsambaForAudioClassification, exist_ok=True)
    known = PIPELINE_REGISTRY.supported_tasks[TASK]
    PIPELINE_REGISTRY.supported_tasks[TASK] = {**known, "impl": SsambaAudioClassificationPipeline}
