"""What held-out clips say of a fitted classifier: its temperature, and trials for the border."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ssamba.evaluation.calibration import Calibration, calibrate
from ssamba.evaluation.probe.protocol import Division
from ssamba.evaluation.rejection_fit import Trial
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


def trials_of(bank: Bank, values: Tensor, parts: Sequence[Division]) -> list[Trial]:
    """What is held out of each division, as rows of ``values`` (rows, d): what the saved classifier's linear layer
    reads of the bank's rows."""
    found = []
    for train, held in _pairs(parts):
        held = bank.of_known_classes(train, held)
        rows, held_rows = bank.rows(train), bank.rows(held)
        if held_rows.any():
            known, owners = bank.owners[held_rows].unique(return_inverse=True)
            targets = bank.targets[bank.owners[rows]]
            found.append(Trial(values[rows], targets, values[held_rows], owners, bank.targets[known]))
    return found


def _pairs(parts: Sequence[Division]) -> list[tuple[Tensor, Tensor]]:
    """Numbers of the examples to fit on and to hold out."""
    if len(parts) > 1:
        return [(part.fit, part.test) for part in parts]
    return [pair for part in parts for pair in part.choose]
