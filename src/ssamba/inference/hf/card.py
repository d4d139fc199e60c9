"""The model card: what a model on the hub is, what it answers, and how it is used."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ssamba.models.config import WIDTHS
from ssamba.models.patches import covered_frames
from ssamba.models.pretrained.describe import forms_text
from ssamba.models.pretrained.model_dir import RESULTS_FILE, Description
from ssamba.models.pretrained.weights import LICENCE, SECTIONS_FILE, is_shipped
from ssamba.utils.errors import SsambaError
from ssamba.utils.files import read_text
from ssamba.utils.json_text import read_json

PAPERS = {"ssamba": ("SSAMBA", "2405.11831"), "ssast": ("SSAST", "2110.09784")}
MAX_CLASSES_NAMED = 50


def model_card(
    name: str,
    description: Description,
    tensors: dict[str, Tensor],
    source: Path,
    licence: str | None,
    remote_code: bool,
) -> str:
    """The text of ``README.md``, with the metadata that the hub reads in front.

    For a model of the package, whose folder is ``source``, it says its training data, limits and licence.
    """
    licence = licence or (LICENCE if is_shipped(source) else None)
    parts = [_metadata(description, licence), f"# {name}\n", _what(description, tensors), _classes(description)]
    return "\n".join(
        [*(p for p in parts if p), _results(source), _use(name, description, remote_code), _limits(source)]
    )


def _metadata(description: Description, licence: str | None) -> str:
    task = "feature-extraction" if description.classification is None else "audio-classification"
    lines = ["---", "library_name: transformers", f"pipeline_tag: {task}"]
    lines += [f"license: {licence}"] if licence else []
    tags = ["audio", description.config.encoder, "self-supervised"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in dict.fromkeys(["ssamba", *tags])), "---", ""])


def _what(description: Description, tensors: dict[str, Tensor]) -> str:
    c = description.config
    rate, frames = c.sample_rate / 1000, covered_frames(c.grid[1], c)
    paper, number = PAPERS[c.encoder]
    size = {width: f" ({size})" for size, width in WIDTHS.items()}.get(c.width, "")
    count = sum(v.numel() for k, v in tensors.items() if not k.startswith("extras."))
    kinds = sorted({str(v.dtype).removeprefix("torch.") for v in tensors.values()})
    holds = ["pretraining heads"] if description.heads else []
    holds += ["a classifier"] if description.classification else []
    return f"""{paper} ([arXiv {number}](https://arxiv.org/abs/{number})) on log-mel patches, as `ssamba` trains it.

| | |
|---|---|
| encoder | {paper}, width {c.width}{size}, {c.depth} blocks{forms_text(c.to_dict())} |
| parameters | {count:,}, stored as {", ".join(kinds)}{f", with {' and '.join(holds)}" if holds else ""} |
| input | {rate:g} kHz mono; {c.mel_bins} mel bins, a frame every 10 ms, mean {c.mean:.4f} and std {c.std:.4f} |
| patches | {c.patch_frequency} bins x {c.patch_time} frames, every {c.stride_frequency} x {c.stride_time} |
| window | {frames} frames ({c.window_seconds:.2f} s); longer recordings are read in windows that overlap by half |
"""


def _classes(description: Description) -> str:
    task = description.classification
    if task is None:
        return ""
    names = ", ".join(task.classes[:MAX_CLASSES_NAMED])
    more = f" and {len(task.classes) - MAX_CLASSES_NAMED} more" if len(task.classes) > MAX_CLASSES_NAMED else ""
    kind = "several may hold at once" if task.sigmoid else "one holds"
    return f"## Classes\n\n{len(task.classes)}, of which {kind}: {names}{more}.\n"


def _results(source: Path) -> str:
    """What the fine-tuned run reached, if its folder says so."""
    try:
        values = read_json(source / RESULTS_FILE)
    except SsambaError:
        return ""
    numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in numbers.items())
    return f"## Results\n\n| | |\n|---|---|\n{rows}\n" if rows else ""


def _use(name: str, description: Description, remote_code: bool) -> str:
    kind = "SsambaModel" if description.classification is None else "SsambaForAudioClassification"
    auto = "AutoModel" if description.classification is None else "AutoModelForAudioClassification"
    text = f"""## Use

```python
import ssamba  # pip install 'ssamba[transformers]'

model = ssamba.hf.{kind}.from_pretrained("{name}")
extractor = ssamba.hf.SsambaFeatureExtractor.from_pretrained("{name}")
outputs = model(**extractor(["one.wav", "two.flac"], return_tensors="pt"))
```

After `ssamba.hf.register()` `AutoModel` and `pipeline` know the model. A downloaded folder is a model directory of
ssamba, too: `ssamba.load(folder)`, `ssamba embed FILES --model FOLDER`.
"""
    if remote_code:
        text += f"""
Without the package, in plain torch and many times slower (a loop over the tokens takes the place of its kernels):

```python
from transformers import AutoFeatureExtractor, {auto}

model = {auto}.from_pretrained("{name}", trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained("{name}", trust_remote_code=True)
```
"""
    return text


def _limits(source: Path) -> str:
    if is_shipped(source):
        return read_text(source / SECTIONS_FILE)
    return """## Data and limits

To be filled in by the author: what the model was trained on, under which licences, what it is for and what not.
"""
