"""Derivatives beyond one backward pass: the fast forms have none, so these go through the plain forms.

A fast operator is a forward and a backward, both opaque to torch. Three things make the rest right:

- ``beyond_backward`` tells ``dispatch`` that forward-mode derivatives or a transform of ``torch.func`` are being taken:
  the reference form runs then, which torch differentiates, batches and nests by itself.
- Every operator of a backward has derivatives of its own (``gradient_of_plain``): those of its plain form. That form is
  made of torch operators and runs only where a second derivative is taken (``create_graph=True``).
- Every operator of a backward can be batched (``one_by_one``), for ``autograd.grad(..., is_grads_batched=True)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

REASON = (
    "forward-mode derivatives and the transforms of torch.func need the reference form: "
    'SSAMBA_BACKEND=reference, or ssamba.ops.use_backend("reference")'
)


def beyond_backward() -> bool:
    """Whether forward-mode derivatives or a transform of ``torch.func`` (grad, vmap, ...) are being taken."""
    return torch._C._are_functorch_transforms_active() or in_forward_mode()


def in_forward_mode() -> bool:
    """Whether tensors may have tangents: an operator of a backward would lose them, so its plain form runs."""
    return forward_ad._current_level >= 0


def wants_gradient(*inputs: Any) -> bool:
    """Whether autograd records what is made of ``inputs``, some of which may be no tensors."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def gradient(
    plain: Callable[..., Any], inputs: Sequence[Any], cotangents: Sequence[Tensor | None], required_only: bool = False
) -> list[Any]:
    """The gradient of each of ``inputs``, None for what is no tensor of real numbers or has no influence.

    ``plain`` takes ``inputs`` and returns a tensor or several; ``cotangents`` are their gradients, None for zero. In
    grad mode the result can be differentiated in turn, with respect to inputs and cotangents. ``required_only`` leaves
    out inputs that require no gradient: torch has no forward mode for the backward of some of its functions.
    """
    further = torch.is_grad_enabled()
    real = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
    places = [i for i in real if inputs[i].requires_grad or not required_only]
    leaves = list(inputs)
    with torch.enable_grad():
        for i in places:
            leaves[i] = _leaf(inputs[i])
        made = plain(*leaves)
        pairs = [
            (out, given.to(out.dtype))
            for out, given in zip([made] if isinstance(made, Tensor) else made, cotangents, strict=True)
            if given is not None and isinstance(out, Tensor) and out.requires_grad
        ]
        found: list[Any] = [None] * len(inputs)
        if pairs:
            of, given = zip(*pairs, strict=True)
            wanted = [leaves[i] for i in places]
            values = torch.autograd.grad(of, wanted, given, create_graph=further, allow_unused=True)
            for i, value in zip(places, values, strict=True):
                found[i] = value
    return found


def _leaf(x: Tensor) -> Tensor:
    """x as a node of its own in the graph: what flows to one input must not flow on to another that it was made of."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def gradient_of_plain(plain: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``setup_context`` and ``backward`` for ``torch.library.register_autograd``, of an operator with a plain form.

    ``plain`` takes the operator's arguments and returns a tensor for each output, or None for one without gradients.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.save_for_backward(*(inputs[i] for i in ctx.places))

    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        inputs = list(ctx.others)
        for i, x in zip(ctx.places, ctx.saved_tensors, strict=True):
            inputs[i] = x
        with torch.autocast(inputs[ctx.places[0]].device.type, enabled=False):
            return tuple(gradient(plain, inputs, cotangents))

    return save, backward


def one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
    """A batching rule (``torch.library.register_vmap``): ``operator`` on each element of the batch in turn."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        def element(i: int) -> Any:
            pairs = zip(arguments, in_dims, strict=True)
            return operator(*(x if dim is None else x.select(dim, i) for x, dim in pairs))

        made = [element(i) for i in range(info.batch_size)]
        if isinstance(made[0], Tensor):
            return torch.stack(made), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*made, strict=True))
        return stacked, (0,) * len(stacked)

    return rule
