"""The classifier's first weights: a logistic regression on the encoder's features of the training clips, or for sigmoid
one a class.

Linear probing, then fine-tuning (arXiv 2202.10054): with random weights the first steps distort good features to suit
an untrained classifier.
"""

from __future__ import annotations

import torch

from ssamba.data.examples import Fold, LabelledData, inner_fold_index
from ssamba.data.loaders.workers import AudioCache
from ssamba.data.scan import SkipList
from ssamba.evaluation.logistic_regression import SINGLE_THREAD_MAX, fit_cross_validated
from ssamba.evaluation.probe.protocol import target_matrix
from ssamba.models.encoder import Encoder
from ssamba.training.finetune.evaluate import make_evaluation
from ssamba.training.finetune.recipe import FinetuneRecipe

PROBE_WINDOWS = 64
"""Of a clip that the regression reads: 11 minutes of hours, spread evenly. All of them together take memory."""


def init_by_probe(
    model: Encoder, fold: Fold, data: LabelledData, recipe: FinetuneRecipe, cache: AudioCache | None, skip: SkipList
) -> None:
    """Give a new classifier the weights of the regression on a fold's training clips.

    Its features are what the classifier reads: clips without augmentation (windows, where the recipe has some), pooled
    and normed in evaluation mode. With softmax labels are smoothed as in training: one fitted to unsmoothed labels is
    certain of every training clip, and the first steps would distort the encoder to lower that certainty. With sigmoid
    (loss ``bce``) there is a regression for each class, as in ``ssamba fit``. Nothing is random: the same model and
    clips give the same weights. The caller chooses precision.
    """
    assert model.classifier is not None
    training = model.training
    classes = len(model.classifier.task.classes)
    windows = make_evaluation(fold.train, recipe, model, cache, skip, again=False, most_windows=PROBE_WINDOWS)
    values, examples = windows.values(model.eval())
    model.train(training)
    labels = _labels(fold, recipe.loss, classes)[examples]
    # Thousands of clips are a minute's work for one core; a small problem gains nothing on a GPU.
    large = model.device.type == "cuda" and values.numel() * classes >= SINGLE_THREAD_MAX
    here = [x.to(model.device) if large else x for x in (values, labels, _held_out_groups(fold, data)[examples])]
    fitted = fit_cross_validated(here[0], here[1], here[2], classes, recipe.label_smoothing)
    standardise = fitted.standardise
    model.classifier.load_linear(standardise.mean, standardise.scale, fitted.weight, fitted.bias)


def _labels(fold: Fold, loss: str, classes: int) -> torch.Tensor:
    """Of the training clips, as ``fit_cross_validated`` takes them: class numbers for ``ce``, else a row of classes."""
    if loss == "bce":
        return target_matrix(fold.train, classes)
    return torch.tensor([example.labels[0] for example in fold.train], device="cpu")


def _held_out_groups(fold: Fold, data: LabelledData) -> torch.Tensor:
    """Which training clips are held out together when the regression's strength is chosen; -1 never.

    The folds of a cross-validation, so that what the publishers kept together stays together; else, and where there is
    only one other fold, so that nothing would be left to fit on, fifths by file.
    """
    others = [other for other in data.folds if other is not fold]
    folds = {example.key: number for number, other in enumerate(others) for example in other.test}
    if len(others) > 1 and all(example.key in folds for example in fold.train):
        return torch.tensor([folds[example.key] for example in fold.train], device="cpu")
    return torch.tensor(inner_fold_index(fold.train), device="cpu")
