"""What held-out clips say of a fitted classifier: its temperature, and the border of unlike sounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssamba.evaluation.calibration import Calibration, calibrate
from ssamba.evaluation.probe.protocol import Division
from ssamba.inference.rejection.score import MIN_HELD_OUT, Rejection, fit_rejection
from ssamba.training.fit.cross_validation import Bank, Validated
from ssamba.training.fit.heads import LinearHead


def fit_calibration(bank: Bank, head: LinearHead, parts: Sequence[Division], found: Validated) -> Calibration:
    """From the test clips of a cross-validation; of one division from what it holds out to choose its setting.

    The one division's test clips then measure it.
    """
    tested = [outputs.held_out() for outputs in found.outputs]
    if len(parts) > 1:
        return calibrate(tested, bank.loss, "cross-validation")
    inner = []
    for train, held in _pairs(parts):
        if len(held := bank.of_known_classes(train, held)):
            (model,) = bank.fit(head, train, [found.best])
            inner.append(bank.outputs(model, held).held_out())
    return calibrate(inner, bank.loss, "validation", tested)


def rejection_of(
    bank: Bank, values: Tensor, parts: Sequence[Division], numbers: Tensor, silence: Tensor
) -> Rejection | None:
    """Class means of the examples ``numbers``, the border from held-out ones; None where those are few.

    ``values`` (rows, d) are what the saved classifier's linear layer reads of the bank's rows, ``silence`` (n, d) of
    silent recordings.
    """

    found = []
    for train, held in _pairs(parts):
        held = bank.of_known_classes(train, held)
        if bank.rows(held).any():
            distances = _fitted(bank, values, train).distances(values[bank.rows(held)])
            found.append(bank.by_owner(distances, held))
    distances = torch.cat(found) if found else torch.empty(0, dtype=torch.float32, device="cpu")
    if len(distances) < MIN_HELD_OUT:
        return None
    fitted = _fitted(bank, values, numbers)
    return fitted.with_border(distances, fitted.distances(silence))


def _fitted(bank: Bank, values: Tensor, numbers: Tensor) -> Rejection:
    rows = bank.rows(numbers)
    return fit_rejection(values[rows], bank.targets[bank.owners[rows]])


def _pairs(parts: Sequence[Division]) -> list[tuple[Tensor, Tensor]]:
    """Numbers of the examples to fit on and to hold out."""
    if len(parts) > 1:
        return [(part.fit, part.test) for part in parts]
    return [pair for part in parts for pair in part.choose]
