"""``ssamba.hf``: SSAMBA and SSAST as models of Hugging Face transformers (extra ``[transformers]``).

One folder serves both packages: what ``ssamba pretrain``, ``finetune`` and ``convert`` write is loaded by
``AutoModel.from_pretrained`` after ``register()``, and what ``save_pretrained`` writes by ``ssamba.load``
(docs/huggingface.md). transformers is imported when a name of this module is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssamba.inference.hf.auto import register
    from ssamba.inference.hf.configuration import SsambaConfig
    from ssamba.inference.hf.feature_extraction import SsambaFeatureExtractor
    from ssamba.inference.hf.folder import export
    from ssamba.inference.hf.modeling import SsambaForAudioClassification, SsambaModel
    from ssamba.inference.hf.pipeline import SsambaAudioClassificationPipeline
    from ssamba.inference.hf.pretraining import SsambaForPreTraining
    from ssamba.inference.hf.upload import push

__all__ = [
    "SsambaAudioClassificationPipeline",
    "SsambaConfig",
    "SsambaFeatureExtractor",
    "SsambaForAudioClassification",
    "SsambaForPreTraining",
    "SsambaModel",
    "export",
    "push",
    "register",
]

_HOMES = {
    "SsambaAudioClassificationPipeline": "pipeline",
    "SsambaConfig": "configuration",
    "SsambaFeatureExtractor": "feature_extraction",
    "SsambaForAudioClassification": "modeling",
    "SsambaForPreTraining": "pretraining",
    "SsambaModel": "modeling",
    "export": "folder",
    "push": "upload",
    "register": "auto",
}
_WITHOUT_TRANSFORMERS = ("export", "push")


def __getattr__(name: str) -> Any:
    from importlib import import_module
    from importlib.util import find_spec

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _WITHOUT_TRANSFORMERS and find_spec("transformers") is None:
        raise ImportError(
            f"ssamba.hf.{name}: needs transformers: pip install 'ssamba[transformers]'", name="transformers"
        )
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
