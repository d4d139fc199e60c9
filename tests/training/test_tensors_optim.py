"""Groups of named tensors keep their form, and every optimiser's state can be stored by parameter name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ssamba.training.cuda_graphs import Gradients
from ssamba.training.optim import OPTIMIZERS, make_optimizer, optimizer_tensors, restore_optimizer
from ssamba.training.pretrain.recipe import PretrainRecipe
from ssamba.training.tensors import TensorGroup

CPU = torch.device("cpu")


@dataclass
class Inner(TensorGroup):
    a: Tensor | None
    b: Tensor


@dataclass
class Outer(TensorGroup):
    first: Tensor
    inner: Inner
    last: Tensor | None = None


def test_a_group_is_flat_in_the_order_of_its_fields_and_back() -> None:
    one, two = torch.tensor(1), torch.tensor(2)
    group = Outer(one, Inner(None, two))
    assert group.tensors() == [one, None, two, None]
    again = group.with_tensors([two, one, one, two])
    assert again == Outer(two, Inner(one, one), two)
    doubled = group.map(lambda x: 2 * x)
    assert (doubled.first, doubled.inner.a, doubled.inner.b, doubled.last) == (2, None, 4, None)
    assert group.to(CPU).inner.b is two
    with pytest.raises(AssertionError):
        group.with_tensors([one] * 5)


def test_gradients_of_a_group_without_graphs() -> None:
    weight = nn.Parameter(torch.tensor(3.0))
    gradients = Gradients(
        lambda x: {"loss": weight * x.first + x.inner.b}, [weight], torch.autocast("cpu", enabled=False)
    )
    group = Outer(torch.tensor(2.0), Inner(None, torch.tensor(1.0)))
    assert not gradients.uses_graphs
    assert gradients(group)["loss"] == 7
    assert weight.grad == 2
    gradients(group, first=False, scale=0.5)
    assert weight.grad == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_goes_on_from_its_state(name: str) -> None:
    recipe = PretrainRecipe(lr=0.1, weight_decay=0.01)

    def step(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        for i, p in enumerate(parameters):
            p.grad = torch.full_like(p, float(i + 1))
        optimizer.step()

    whole = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    optimizer = make_optimizer(name, whole, recipe, CPU)
    step(whole, optimizer)
    state = {k: v.clone() for k, v in optimizer_tensors(optimizer, zip("ab", whole, strict=True)).items()}
    assert set(state) >= {"optimizer.exp_avg.a", "optimizer.exp_avg_sq.b", "optimizer.step.a"}
    broken = [nn.Parameter(p.detach().clone()) for p in whole]
    other = make_optimizer(name, broken, recipe, CPU)
    restore_optimizer(other, list(zip("ab", broken, strict=True)), state)
    for parameters, taking in ((whole, optimizer), (broken, other)):
        step(parameters, taking)
    assert all(torch.equal(a, b) for a, b in zip(whole, broken, strict=True))


def test_recipes_name_optimisers_of_the_table() -> None:
    from ssamba.training.finetune.recipe import FinetuneRecipe

    assert {PretrainRecipe.optimizer, FinetuneRecipe.optimizer} <= set(OPTIMIZERS)
