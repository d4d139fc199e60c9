"""Named tensors that belong together: what a task prepares for a step, and what its losses take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Group = TypeVar("Group", bound="TensorGroup")


class TensorGroup:
    """Base of dataclasses whose fields are tensors, None for what is not there, or such groups again."""

    def to(self: Group, device: torch.device) -> Group:
        """The same tensors on a device. From pinned memory the copies overlap with other work."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    def pin(self: Group) -> Group:
        """The same tensors in pinned memory."""
        return self.map(lambda x: x.pin_memory())

    def map(self: Group, change: Callable[[Tensor], Tensor]) -> Group:
        """A group of the same form with each tensor changed; None stays."""
        return self.with_tensors([x if x is None else change(x) for x in self.tensors()])

    def tensors(self) -> list[Tensor | None]:
        """All tensors in the order of the fields, those of groups within groups in their place."""
        flat: list[Tensor | None] = []
        for value in self._values():
            flat += value.tensors() if isinstance(value, TensorGroup) else [value]
        return flat

    def with_tensors(self: Group, tensors: Sequence[Tensor | None]) -> Group:
        """A group of the same form that holds other tensors, in the order of :meth:`tensors`."""
        rest = list(tensors)
        values: list[TensorGroup | Tensor | None] = []
        for value in self._values():
            if isinstance(value, TensorGroup):
                count = len(value.tensors())
                values.append(value.with_tensors(rest[:count]))
                del rest[:count]
            else:
                values.append(rest.pop(0))
        assert not rest
        return type(self)(*values)

    def _values(self) -> list[TensorGroup | Tensor | None]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]  # type: ignore[arg-type]
