"""Whole models in the transforms of torch.func, forward mode, second backwards, checkpoints and torch.jit.trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ssamba import ops
from ssamba.models.config import Config
from ssamba.models.encoder import Encoder
from ssamba.models.registry import make_encoder
from ssamba.models.ssast import SSAST
from ssamba.utils.errors import ConfigError

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
    ),
]
KINDS: dict[str, dict[str, Any]] = {
    "ssamba": {"state_size": 4},
    "one direction": {"state_size": 4, "directions": 1, "residual_scale": 1},
    "tied, alternating": {"state_size": 4, "decay": "tied", "scan": "alternating"},
    "ssast": {"encoder": "ssast", "attention_heads": 2},
}
BOUND = 1e-4

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:ssamba.ops:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSAMBA_BACKEND", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # a convolution would keep 10 bits


def make(kind: str, device: str = "cpu") -> Encoder:
    """Two pairs, with heads, on 8 x 3 patches."""
    config = Config(width=8, depth=4, frames=48, **KINDS[kind])
    model = make_encoder(config, heads=True, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.05)
    return model.to(device)


def features(device: str = "cpu", batch: int = 2) -> Tensor:
    return torch.randn(batch, 48, 128, generator=torch.Generator().manual_seed(3)).to(device)


def exact(model: Encoder) -> Encoder:
    """The same model in float64, where the reference form runs."""
    config = model.config
    twin = make_encoder(config, heads=True)
    twin.load_state_dict(model.state_dict())
    return twin.double().to(model.device)


def loss(model: Encoder, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
    tokens = functional_call(model, parameters or {}, (x,))
    weight = torch.linspace(-1, 1, tokens.numel(), device=x.device, dtype=x.dtype).view(tokens.shape)
    return (weight * tokens + tokens**2 / 8).sum()


def names(model: Encoder) -> list[str]:
    """Parameters that take part in ``encode``."""
    return [n for n, _ in model.named_parameters() if not n.startswith(("heads", "mask_embedding"))]


def weights_of(model: Encoder) -> dict[str, Tensor]:
    everything = dict(model.named_parameters())
    return {name: everything[name].detach() for name in names(model)}


def grad_of_input(model: Encoder, x: Tensor) -> list[Tensor]:
    return [torch.func.grad(lambda x: loss(model, x))(x)]


def grad_of_parameters(model: Encoder, x: Tensor) -> list[Tensor]:
    return list(torch.func.grad(lambda w: loss(model, x, w))(weights_of(model)).values())


def per_sample(model: Encoder, x: Tensor) -> list[Tensor]:
    gradient = torch.func.grad(lambda w, clip: loss(model, clip[None], w))
    return list(torch.func.vmap(gradient, (None, 0))(weights_of(model), x).values())


def jvp(model: Encoder, x: Tensor) -> list[Tensor]:
    return list(torch.func.jvp(lambda x: loss(model, x), (x,), (x.flip(0),)))


def jvp_in_inference(model: Encoder, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return jvp(model.eval(), x)


def ensemble(model: Encoder, x: Tensor) -> list[Tensor]:
    """Several sets of weights on the same clips, without gradients."""
    stacked = {name: torch.stack([w, 0.9 * w]) for name, w in weights_of(model).items()}
    with torch.no_grad():
        return [torch.func.vmap(lambda w: loss(model, x, w))(stacked)]


def hessian_product(model: Encoder, x: Tensor) -> list[Tensor]:
    return [torch.func.jvp(torch.func.grad(lambda x: loss(model, x)), (x,), (x.flip(0),))[1]]


def second_backward(model: Encoder, x: Tensor) -> list[Tensor]:
    """As a gradient penalty."""
    if isinstance(model, SSAST):
        model.write_out_attention()
    x = x.detach().requires_grad_()
    gradient = torch.autograd.grad(loss(model, x), x, create_graph=True)[0]
    of = [dict(model.named_parameters())[name] for name in names(model)]
    return [gradient.detach(), *torch.autograd.grad(gradient.square().sum(), [x, *of])]


def jacobian(model: Encoder, x: Tensor) -> list[Tensor]:
    return [torch.func.jacrev(lambda x: model.encode(x)[:, 0, :3])(x[:1, :16])]


def forward_jacobian(model: Encoder, x: Tensor) -> list[Tensor]:
    return [
        torch.func.jacfwd(lambda scale: model.encode(x * scale)[:, 0])(torch.ones((), dtype=x.dtype, device=x.device))
    ]


WAYS: dict[str, Callable[[Encoder, Tensor], list[Tensor]]] = {
    "grad of the input": grad_of_input,
    "grad of the parameters": grad_of_parameters,
    "gradients of each clip": per_sample,
    "jvp": jvp,
    "jvp in inference": jvp_in_inference,
    "an ensemble": ensemble,
    "a product with the Hessian": hessian_product,
    "a second backward": second_backward,
    "jacrev": jacobian,
    "jacfwd": forward_jacobian,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_gives_the_plain_forms_numbers(kind: str, way: str, device: str) -> None:
    model, x = make(kind, device), features(device)
    found, expected = WAYS[way](model, x), WAYS[way](exact(model), x.double())
    assert len(found) == len(expected) > 0
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert f.shape == e.shape
        assert torch.isfinite(f).all()
        error = float((f.double() - e).norm() / e.norm().clamp_min(1e-12))
        bound = 5 * BOUND if device == "cuda" else BOUND  # a tangent is one number, in which terms cancel
        assert error < bound, f"{way} of {kind}, result {i}: off by {error:.1e}"


def test_gradients_of_each_clip_are_those_of_a_backward() -> None:
    model, x = make("ssamba"), features()
    rows = per_sample(model, x)
    for i, clip in enumerate(x):
        model.zero_grad()
        loss(model, clip[None]).backward()
        for name, row in zip(names(model), rows, strict=True):
            gradient = dict(model.named_parameters())[name].grad
            torch.testing.assert_close(row[i], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("objective", ["joint", "discriminative", "generative"])
def test_the_losses_of_pretraining_in_torch_func(objective: str, device: str) -> None:
    model, x = make("ssamba", device), features(device)
    mask = torch.tensor([[0, 3, 5, 9], [1, 2, 8, 20]], device=device)
    weights = {n: p.detach() for n, p in model.named_parameters()}

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model.losses(x, mask, objective=objective)["loss"]

    given = {f"model.{n}": w for n, w in weights.items()}
    found = torch.func.grad(lambda w: functional_call(Loss(), w, (x,)))(given)
    model.zero_grad()
    model.losses(x, mask, objective=objective)["loss"].backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[f"model.{name}"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints(kind: str, reentrant: bool, device: str) -> None:
    model, x = make(kind, device), features(device).requires_grad_()
    loss(model, x).backward()
    gradients = [p.grad for p in (x, *model.parameters())]
    x.grad = None
    model.zero_grad()
    checkpoint(lambda x: loss(model, x), x, use_reentrant=reentrant).backward()
    for found, expected in zip((x, *model.parameters()), gradients, strict=True):
        assert (found.grad is None) == (expected is None)
        if expected is not None and device == "cpu":
            assert torch.equal(found.grad, expected)
        elif expected is not None:  # sums of attention and convolutions have no fixed order there
            torch.testing.assert_close(found.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_model_has_gradients(kind: str) -> None:
    model, x = make(kind), features().requires_grad_()
    built = torch.compile(model.encode, backend="aot_eager", fullgraph=True)
    found, expected = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (built, model.encode))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["grad of the input", "gradients of each clip", "jvp"])
def test_a_forced_fast_form_is_refused(way: str) -> None:
    with ops.use_backend("cpu"), pytest.raises(ConfigError, match="SSAMBA_BACKEND=reference"):
        WAYS[way](make("ssamba"), features())


def test_fused_attention_refuses_a_second_backward() -> None:
    model, x = make("ssast"), features().requires_grad_()
    gradient = torch.autograd.grad(loss(model, x), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="not implemented"):
        gradient.square().sum().backward()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_traced_model_is_exact_and_passes_the_check_without_gradients(kind: str) -> None:
    """The check of ``torch.jit.trace`` runs without gradients, where SSAMBA takes the operator of inference.

    So a trace with gradients is exact, but another graph than the check's: it needs ``check_trace=False``.
    """
    model, x = make(kind).eval(), features()
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        assert torch.equal(traced(2 * x), model(2 * x))
    with_gradients = torch.jit.trace(model, x, check_trace=False)
    assert torch.equal(with_gradients(2 * x), model(2 * x))
    given = (2 * x).requires_grad_()
    found, expected = (torch.autograd.grad(f(given).square().sum(), given)[0] for f in (with_gradients, model))
    assert torch.equal(found, expected)
