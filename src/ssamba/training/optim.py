"""Optimisers by name, the groups of parameters that they step, and their state by parameter name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ssamba.models.encoder import Encoder
from ssamba.training.recipes.groups import Optimisation
from ssamba.utils.torch_defaults import HOST_FLOAT32

Parameters = Iterable[nn.Parameter] | list[dict[str, Any]]
"""What an optimiser steps: parameters, or groups of them with values of their own."""
NamedParameters = Iterable[tuple[str, nn.Parameter]]
MakeOptimizer = Callable[[Parameters, Optimisation, bool], torch.optim.Optimizer]
STATE_PREFIX = "optimizer."


def _adam(kind: type[torch.optim.Adam]) -> MakeOptimizer:
    """Adam or a kind of it, from a recipe's values; ``fused`` on a GPU."""

    def make(parameters: Parameters, values: Optimisation, fused: bool) -> torch.optim.Optimizer:
        betas = (values.beta1, values.beta2)
        return kind(parameters, lr=values.lr, betas=betas, weight_decay=values.weight_decay, fused=fused)

    return make


OPTIMIZERS: dict[str, MakeOptimizer] = {"adam": _adam(torch.optim.Adam), "adamw": _adam(torch.optim.AdamW)}
"""Each optimiser that a recipe may name."""


def make_optimizer(
    name: str, parameters: Parameters, values: Optimisation, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser of that name with a recipe's values. The loop sets its rate at each step."""
    return OPTIMIZERS[name](parameters, values, device.type == "cuda")


def parameter_groups(model: Encoder, head_lr: float, layer_decay: float) -> list[dict[str, Any]]:
    """The classifier, then the encoder's trained parameters, with a ``rate_factor`` each.

    The classifier's is ``head_lr``. A parameter of layer i (``Encoder.layer_of``) of n has ``layer_decay**(n - i)``, as
    in fine-tuning BEiT (arXiv 2106.08254) and MAE; 1 makes one group of them all.
    """
    assert model.classifier is not None
    groups: list[dict[str, Any]] = [{"params": list(model.classifier.parameters()), "rate_factor": head_lr}]
    layers: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.startswith("classifier."):
            factor = layer_decay ** (model.n_layers - model.layer_of(name))
            layers.setdefault(factor, []).append(parameter)
    return groups + [{"params": layers[factor], "rate_factor": factor} for factor in sorted(layers)]


def optimizer_tensors(optimizer: torch.optim.Optimizer, named: NamedParameters) -> dict[str, Tensor]:
    """The optimiser's moments by parameter name: ``optimizer.<moment>.<parameter>``."""
    out: dict[str, Tensor] = {}
    for name, parameter in named:
        for moment, value in optimizer.state.get(parameter, {}).items():
            # torch counts steps in float64 where that is the process's default.
            kept = value if isinstance(value, Tensor) else torch.tensor(value, **HOST_FLOAT32)
            out[f"{STATE_PREFIX}{moment}.{name}"] = kept.float() if moment == "step" else kept
    return out


def restore_optimizer(optimizer: torch.optim.Optimizer, named: NamedParameters, tensors: dict[str, Tensor]) -> None:
    """The reverse of ``optimizer_tensors``, on the parameters' own devices.

    Raises ``ValueError`` for a moment whose shape is not its parameter's.
    """
    for name, parameter in named:
        moments = {}
        for key, value in tensors.items():
            if key.startswith(STATE_PREFIX) and key.endswith(f".{name}") and key.split(".", 2)[2] == name:
                moment = key.split(".", 2)[1]
                if moment != "step" and value.shape != parameter.shape:
                    shapes = f"{tuple(value.shape)}, the parameter {tuple(parameter.shape)}"
                    raise ValueError(f"{key} has shape {shapes}")
                # The step counter of a non-fused optimiser stays on the CPU.
                fused = bool(optimizer.defaults.get("fused"))
                moments[moment] = value if moment == "step" and not fused else value.to(parameter.device)
        if moments:
            optimizer.state[parameter] = moments
