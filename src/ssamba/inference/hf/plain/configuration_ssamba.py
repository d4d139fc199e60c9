"""The configuration of SSAMBA and SSAST models for transformers.

One ``config.json`` serves both packages: ssamba reads ``format``, ``encoder``, ``heads``, ``config`` and
``classification``, transformers the rest.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedConfig

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
DEPTHS = {"ssamba": 24, "ssast": 12}
DROP_PATHS = {"ssamba": 0.1, "ssast": 0.0}
HEAD_WIDTH = 64
DIMENSIONS = (
    "width", "depth", "frames", "patch_frequency", "patch_time", "stride_frequency", "stride_time", "state_size",
    "expand", "conv_width", "dt_rank", "directions", "residual_scale", "attention_heads", "decoder_depth", "drop_path",
    "mel_bins", "sample_rate", "mean", "std", "decay", "scan",
)  # fmt: skip
"""What lies in the object ``config`` of ``config.json``."""
SINGLE, MULTI = "single_label_classification", "multi_label_classification"


class SsambaConfig(PreTrainedConfig):
    """The dimensions of a model, with the names and defaults of ``ssamba.Config``, and what transformers adds.

    Units: ``frames`` and time sides are log-mel frames of 10 ms, frequency sides are mel bins. A ``depth``, ``dt_rank``
    or ``attention_heads`` of 0 and a ``drop_path`` of -1 stand for the published value. ``whole``: recordings longer
    than the grid go through in one pass with interpolated positions instead of in windows. ``pooling`` is that of a
    new classifier (mean, cls or rows). ``masked``: the share of the patches that pretraining hides.
    """

    if TYPE_CHECKING:  # of the base class
        dtype: Any
        id2label: Any
        label2id: Any
        problem_type: Any

    model_type = "ssamba"
    attribute_map = {"hidden_size": "width", "num_mel_bins": "mel_bins"}  # noqa: RUF012 - as in the base class

    format: int = 1
    encoder: str = "ssamba"
    heads: bool = False
    width: int = 192
    depth: int = 0
    frames: int = 1024
    patch_frequency: int = 16
    patch_time: int = 16
    stride_frequency: int = 16
    stride_time: int = 16
    state_size: int = 16
    expand: int = 2
    conv_width: int = 4
    dt_rank: int = 0
    directions: int = 2
    residual_scale: int = 2
    attention_heads: int = 0
    decoder_depth: int = 0
    drop_path: float = -1.0
    mel_bins: int = 128
    sample_rate: int = 16000
    mean: float = AUDIOSET_MEAN
    std: float = AUDIOSET_STD
    decay: str = "free"
    scan: str = "both"
    classification: dict | None = None
    pooling: str = "mean"
    whole: bool = False
    masked: float = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("digest", None)  # that of the file that was read; values may change before another is written
        for name, value in (kwargs.pop("config", None) or {}).items():
            if name not in DIMENSIONS:
                raise ValueError(f"config.json: 'config' holds the unknown value '{name}'")
            setattr(self, name, value)
        self.complete()
        if self.dtype is None and kwargs.get("torch_dtype") is None:
            self.dtype = "float32"  # weights in half precision are a form to store, not to compute in
        if self.classification:
            self._take_labels(kwargs)
        super().__post_init__(**kwargs)

    def _take_labels(self, kwargs: dict[str, Any]) -> None:
        """The labels of the classifier, where nobody named others."""
        assert self.classification is not None
        classes = list(self.classification["classes"])
        if self.id2label is None and kwargs.get("num_labels") in (None, len(classes)):
            kwargs.pop("num_labels", None)
            self.id2label = dict(enumerate(classes))
            self.label2id = {label: i for i, label in self.id2label.items()}
        if self.problem_type is None and (len(classes) > 1 or is_sigmoid(self.classification)):
            self.problem_type = MULTI if is_sigmoid(self.classification) else SINGLE

    def complete(self) -> None:
        """Put the published values where the fields leave them open. Raises ValueError for an unknown encoder."""
        if self.encoder not in DEPTHS:
            raise ValueError(f"encoder is {self.encoder!r}: give {' or '.join(DEPTHS)}")
        if self.decay not in ("free", "tied") or self.scan not in ("both", "alternating", "forward"):
            raise ValueError(f"decay {self.decay!r} or scan {self.scan!r} is unknown: see ssamba.Config")
        if self.scan != "both":
            self.directions = 1
        elif self.directions == 1:
            self.scan = "forward"
        self.depth = self.depth or DEPTHS[self.encoder]
        self.dt_rank = self.dt_rank or math.ceil(self.width / 16)
        if self.encoder == "ssast":
            self.attention_heads = self.attention_heads or max(1, self.width // HEAD_WIDTH)
        if self.drop_path == -1:
            self.drop_path = DROP_PATHS[self.encoder]

    def dimensions(self) -> dict[str, Any]:
        """The values of the object ``config``."""
        return known_to_all({name: getattr(self, name) for name in DIMENSIONS})

    def task(self) -> dict[str, Any]:
        """The classification that a classifier with these labels and this problem type has, as plain values."""
        labels = [str(self.id2label[i]) for i in sorted(self.id2label)]
        multi, known = self.problem_type == MULTI, self.classification or {}
        if known.get("classes") == labels and is_sigmoid(known) == multi:
            return known
        pooling = known.get("pooling", self.pooling)
        return {"classes": labels, "multi_label": multi, "pooling": pooling, "per_second": False, "recipe": "",
                "loss": "auto"}  # fmt: skip

    @property
    def num_hidden_layers(self) -> int:
        """Steps of the chain: pairs of blocks in SSAMBA, blocks in SSAST."""
        return self.depth // 2 if self.encoder == "ssamba" else self.depth

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (frequency, time)."""
        return (
            (self.mel_bins - self.patch_frequency) // self.stride_frequency + 1,
            (self.frames - self.patch_time) // self.stride_time + 1,
        )

    @property
    def silence(self) -> float:
        """What a log-mel value of 0.0, the padding of the front end, is after normalisation."""
        return float(np.float32(-self.mean) / np.float32(2 * self.std))

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the layout of ``config.json``."""
        values: dict[str, Any] = super().to_dict()
        values["config"] = known_to_all({name: values.pop(name) for name in DIMENSIONS})
        return values


def known_to_all(dimensions: dict[str, Any]) -> dict[str, Any]:
    """Without what readers of older versions do not know, where it says nothing new."""
    new = {"decay": ("free",), "scan": ("both", "forward")}
    return {name: value for name, value in dimensions.items() if value not in new.get(name, ())}


def is_sigmoid(task: dict[str, Any]) -> bool:
    """Whether each class of a classification has a score by itself, instead of a share of 1."""
    loss = task.get("loss", "auto")
    return bool(task.get("multi_label", False)) if loss == "auto" else loss == "bce"
