"""Features of a set, computed once; of a long set what is done is kept on disk, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ssamba.data.examples import Example
from ssamba.data.samplers.labelled import spread
from ssamba.data.scan import SkipList
from ssamba.evaluation.probe.cache import data_key
from ssamba.evaluation.probe.windows import classifier_windows
from ssamba.inference.file_stream import Progress
from ssamba.inference.model import Encoder
from ssamba.models.pretrained.digest import model_key
from ssamba.models.pretrained.model_dir import load_tensors
from ssamba.utils.tensor_file import write_tensors

SAVE_SECONDS = 60.0
"""Between two parts on disk; a set that takes less leaves none."""
MAX_WINDOWS = 256
"""Of an example that a regression reads: 22 minutes of hours, spread evenly. All of them would take gigabytes there."""


def parts_folder(out: Path, layout: str, examples: Sequence[Example], model: Encoder) -> Path:
    """Where a run keeps parts of its features: named by all that they depend on. Raises ``AudioError``."""
    assert model.classifier is not None
    key = f"{data_key(layout, examples)} {model_key(model)} {model.classifier.task.pooling} {MAX_WINDOWS}"
    return out / f"features-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"


@dataclass
class FeatureParts:
    """Features of examples 0 to ``done``, in parts on disk and rows that are not yet there.

    Attributes:
        folder: of the parts; made with the first.
        before: called before a part is written.
    """

    folder: Path
    before: Callable[[], None]
    done: int = 0
    _values: list[Tensor] = field(default_factory=list)
    _owners: list[Tensor] = field(default_factory=list)
    _unsaved: int = 0

    def read(self) -> None:
        """Take the parts that lie on disk."""
        while (path := self._path(self.done)).is_file():
            part = load_tensors(path)
            self._values.append(part["values"])
            self._owners.append(part["owners"])
            self.done = int(part["done"])
        self._unsaved = len(self._values)

    def add(self, number: int, values: Tensor) -> None:
        """Take the windows (n, d) of the next example that could be read."""
        self._values.append(values)
        self._owners.append(torch.full((len(values),), number, dtype=torch.int64, device="cpu"))

    def save(self, done: int) -> None:
        """Write what is not on disk: the examples from ``self.done`` to ``done``."""
        self.before()
        values, owners = torch.cat(self._values[self._unsaved :]), torch.cat(self._owners[self._unsaved :])
        part = {"values": values, "owners": owners, "done": torch.tensor(done, dtype=torch.int64, device="cpu")}
        write_tensors(self._path(self.done), part)
        self._values[self._unsaved :], self._owners[self._unsaved :] = [values], [owners]
        self._unsaved, self.done = len(self._values), done

    def result(self) -> tuple[Tensor, Tensor]:
        """All values (rows, d) and their owners (rows,)."""
        return torch.cat(self._values), torch.cat(self._owners)

    def _path(self, first: int) -> Path:
        return self.folder / f"from-{first:07d}.safetensors"


def collect_features(
    examples: Sequence[Example], model: Encoder, parts: FeatureParts, skip: SkipList, progress: Progress
) -> tuple[Tensor, Tensor]:
    """What the classifier reads of all examples, (rows, d) float32 on the CPU, and the rows' examples (rows,).

    At most ``MAX_WINDOWS`` rows of an example. Goes on from the parts on disk. Raises ``DataError`` as
    ``classifier_windows``.
    """
    parts.read()
    begin, first = time.monotonic(), parts.done
    saved = begin
    for i, values in classifier_windows(examples[first:], model, skip):
        number = first + i
        parts.add(number, values[spread(len(values), MAX_WINDOWS)])
        rate = (i + 1) / max(time.monotonic() - begin, 1e-3)
        progress(number + 1, len(examples), f"{number + 1}/{len(examples)} clips, {rate:,.0f} a second")
        if time.monotonic() - saved >= SAVE_SECONDS:
            parts.save(number + 1)
            saved = time.monotonic()
    return parts.result()
