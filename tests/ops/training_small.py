"""What a training pass on a GPU does beside the scans, in Triton's interpreter; test_training_kernels.py runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
import triton_arrays  # noqa: F401  (makes the interpreter take NumPy's arrays)
from compare import assert_close
from decay_inputs import Form
from torch import Tensor

from ssamba import ops
from ssamba.models.bimamba import MambaPair
from ssamba.models.block_pair import ResidualState
from ssamba.models.config import Config
from ssamba.ops import dispatch
from ssamba.ops.linear_layer import gpu_limits
from ssamba.ops.linear_layer import naive as naive_linear
from ssamba.ops.mamba import gpu_input, naive
from ssamba.ops.mamba.triton import gradients, partial_sums, weights

torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory is full of NaN

Small = Callable[..., Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def run_twice(run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What ``run`` returns; a second time it must return the same bits."""
    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return first


def check_parts() -> None:
    """Sums with few and with many parts, cropped, transposed, of 16 bits, and of none; more than a program's share."""
    cases = [
        (draw(70, 3, 5, 7), draw(3, 5, 7)), (draw(16, 1, 1, 300).half(), draw(1, 1, 300)),
        (draw(17, 2, 6, 9)[:, :, :5], draw(2, 9, 5).transpose(1, 2)),
        (draw(2, 17, 3, 8).transpose(0, 1), draw(2, 3, 8)), (draw(4, 2, 3, 16)[..., :5], draw(2, 3, 5).half()),
        (draw(1, 2, 3, 4), draw(2, 3, 4)),
        (draw(5, 2, 0, 4), draw(2, 0, 4)), (draw(0, 2, 1, 4), draw(2, 1, 4)),
    ]  # fmt: skip

    def run(form: Small) -> list[Tensor]:
        totals = [torch.full_like(total, float("nan")) for _, total in cases]
        form([(parts, total) for (parts, _), total in zip(cases, totals, strict=True)])
        return totals

    found = run_twice(lambda: run(partial_sums.add_parts))
    for (parts, _), total, plain in zip(cases, found, run(naive.add_parts), strict=True):
        expected = parts.double().sum(0)
        bound = 1e-3 if total.dtype == torch.float16 else 1e-6
        for form in (total, plain):
            assert float((form.double() - expected).norm()) <= bound * float(expected.norm()) + 1e-9
    partial_sums.add_parts([])


def check_columns() -> None:
    """More rows than one program adds up, more columns than one has, one row, and no rows or columns."""
    for rows, columns in ((1, 1), (7, 5), (300, 130), (65, 128), (0, 3), (3, 0)):
        for apart in (False, True):
            x = draw(rows, columns + apart)[:, :columns].requires_grad_()
            found, again = (gpu_input.column_sums(x).detach() for _ in range(2))
            assert torch.equal(found, again)
            expected = x.detach().double().sum(0)
            assert float((found - expected).norm()) <= 1e-6 * float(expected.norm()), (rows, columns)
            total = gpu_input.column_sums(x)
            torch.library.opcheck(gpu_input.column_sums, (x.detach(),), test_utils=("test_schema", "test_faketensor"))
            assert torch.equal(naive_linear.column_sums(x), x.sum(0))
            if rows:
                weight = draw(columns)
                (dx,) = torch.autograd.grad((total * weight).sum(), x)
                assert torch.equal(dx, weight.expand(rows, columns))


def check_padding() -> None:
    for m, n in ((1, 1), (5, 3), (8, 300)):
        for dtype in (torch.float32, torch.float16):
            pairs = [(draw(2, m, n), torch.empty(2, m + 3, n + 5, dtype=dtype)), (draw(2, n, m), torch.empty(2, n, m))]
            plain = [(source, torch.empty_like(target)) for source, target in pairs]
            weights.copy_padded(pairs)
            naive.copy_padded(plain)
            assert all(torch.equal(a, b) for (_, a), (_, b) in zip(pairs, plain, strict=True))


def fold_inputs(E: int, d: int, dtype: torch.dtype, apart: bool) -> list[Tensor]:
    tensors = [draw(2, 2, E, d).to(dtype), draw(2, d).to(dtype), draw(2, d, seed=1).to(dtype)]
    return [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors] if apart else tensors


def check_fold() -> None:
    """Values, gradients and second derivatives; a product's gradient comes as a transposed matrix."""
    for E, d, source, dtype, bound in (
        (1, 1, torch.float32, torch.float32, 1e-5), (150, 20, torch.float32, torch.float16, 2e-3),
        (7, 33, torch.float16, torch.float16, 2e-3),
    ):  # fmt: skip
        for apart in (False, True):
            mine = [t.requires_grad_() for t in fold_inputs(E, d, source, apart)]
            exact = [t.detach().double().requires_grad_() for t in mine]
            of_weight = draw(d, 4 * E).t().unflatten(0, (2, 2, E)) if apart else draw(2, 2, E, d)
            of_bias = draw(2, 2, E)

            def run(mine: list[Tensor] = mine, dtype: torch.dtype = dtype,
                    given: tuple[Tensor, Tensor] = (of_weight, of_bias)) -> list[Tensor]:  # fmt: skip
                made = gpu_input._fold(*mine, dtype)
                grads = torch.autograd.grad(made, mine, [g.to(dtype) for g in given])
                return [*(t.detach() for t in made), *grads]

            truth = naive.fold_norm(*exact)
            grads = torch.autograd.grad(truth, exact, [of_weight.double(), of_bias.double()])
            for i, (found, expected) in enumerate(zip(run_twice(run), [*truth, *grads], strict=True)):
                assert found.is_contiguous()
                assert_close(f"fold {(E, d, source, dtype, apart)}: {i}", found, expected.detach(), bound)
    mine = [t.requires_grad_() for t in fold_inputs(3, 5, torch.float32, False)]
    exact = [t.detach().double().requires_grad_() for t in mine]
    second = []
    for form, inputs in ((ops.fold_norm, mine), (naive.fold_norm, exact)):
        with ops.use_backend("gpu"):
            weight, bias = form(*inputs)
        first = torch.autograd.grad((weight**2).sum() + (bias**3).sum(), inputs, create_graph=True)
        second.append(torch.autograd.grad(torch.stack([(g**2).sum() for g in first]).sum(), inputs))
    for found, expected in zip(*second, strict=True):
        assert_close("second derivative of the fold", found, expected, 1e-4)
    tests = ("test_schema", "test_faketensor")
    plain = fold_inputs(3, 5, torch.float32, False)
    torch.library.opcheck(torch.ops.ssamba.gpu_fold_norm.default, (*plain, torch.float16), test_utils=tests)
    given = (draw(2, 2, 3, 5), draw(2, 2, 3), *plain)
    torch.library.opcheck(torch.ops.ssamba.gpu_fold_norm_backward.default, given, test_utils=tests)


def check_linear() -> None:
    """Against torch's own layer: values, gradients, a batch of backwards and second derivatives."""
    gpu_limits.MIN_VALUES = 1
    tensors = [t.requires_grad_() for t in (draw(3, 5, 7), draw(6, 7), draw(6))]
    found: list[Tensor] = []
    plain: list[Tensor] = []
    with ops.use_backend("gpu"):
        assert dispatch.find("linear", *tensors) is gpu_input
        for made, form in ((found, ops.linear), (plain, naive_linear.linear)):
            y = form(*tensors)
            first = torch.autograd.grad((y**3).sum(), tensors, create_graph=True)
            second = torch.autograd.grad(torch.stack([(g**2).sum() for g in first]).sum(), tensors)
            y = form(*tensors)
            given = torch.stack([draw(*y.shape), draw(*y.shape, seed=1)])
            batched = torch.autograd.grad(y, tensors, given, is_grads_batched=True)
            made += [y.detach(), *(g.detach() for g in first), *second, *batched]
            wanted = [x.detach().requires_grad_() for x in tensors[:2]]
            made += torch.autograd.grad((form(*wanted, tensors[2].detach()) ** 3).sum(), wanted)
    for i, (a, b) in enumerate(zip(found, plain, strict=True)):
        assert_close(f"linear: {i}", a, b, 1e-5)
    x, weight, bias = tensors
    for arguments in ((x, weight), (x, weight.detach(), bias.detach()), (x.double(), weight, bias)):
        assert gpu_limits.supports(*arguments) is not None
    assert gpu_limits.supports(x, weight, bias.detach()) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert gpu_limits.supports(x, weight, bias) is not None
    gpu_limits.MIN_VALUES = x.shape[0] * x.shape[1] * 6 + 1
    assert gpu_limits.supports(x, weight, bias) is not None
    gpu_limits.MIN_VALUES = 1 << 22


def check_join_products() -> None:
    """Against the products one by one, in float64; lengths around a program's share, one step, ranks up to 16."""
    for G, T, E, rank, outputs, parts in ((2, 150, 48, 12, 32, 3), (1, 1, 1, 1, 2, 1), (4, 65, 20, 16, 6, 2),
                                          (2, 64, 384, 3, 16, 1)):  # fmt: skip
        pad = -(rank + outputs) % 8
        ddt, dt_proj = draw(G, T, E).half(), F.pad(draw(G, E, rank), (0, -rank % 8)).half()
        dbc, p = draw(parts, G, T, outputs).half(), draw(G, T, rank + outputs).half()
        dp, part = run_twice(lambda: list(gradients.join_products(ddt, dbc, p, dt_proj, rank, pad)))  # noqa: B023
        wide = [t.double() for t in (ddt, dt_proj[..., :rank], dbc, p[..., :rank])]
        expected = torch.cat([wide[0] @ wide[1], wide[2].sum(0), torch.zeros(G, T, pad)], -1)
        where = f"gradient of the projection {(G, T, E, rank, outputs, parts)}"
        assert_close(where, dp, expected, 1e-3)
        assert_close(where, part.sum(0), wide[0].transpose(1, 2) @ wide[3], 1e-4)
        assert not dp[..., rank + outputs :].any()
        more = dbc.unflatten(-1, (2, -1))
        more = torch.cat([more, torch.full_like(more, float("nan"))], -1).flatten(-2)[..., : 2 * outputs]
        for form in (lambda d: gradients.join_products(ddt, d, p, dt_proj, rank, pad),  # noqa: B023
                     lambda d: gradients.join(ddt @ dt_proj, d, p, rank, pad)):  # noqa: B023  # fmt: skip
            assert all(torch.equal(a, b) for a, b in zip(form(dbc), form(more), strict=True)), where
    assert gradients.supports_products(draw(1, 2, 3), 4) is not None
    for E, rank in ((512, 17), (513, 16)):
        assert gradients.supports_products(torch.empty(1, 1, E, dtype=torch.float16), rank) is not None


def check_spread() -> None:
    """One, two and four numbers at once, more rows than a program has, and memory that is not aligned."""
    for tokens, rank, states in ((1, 12, 8), (150, 6, 10), (65, 5, 5), (3, 4, 12)):
        for start in (0, 1):
            p = draw(tokens * 2 * (rank + 2 * states) + start).half()[start:].view(2, 1, tokens, -1)
            found, expected = (p.new_full((2, 1, tokens, rank + 32), float("nan")) for _ in range(2))
            gradients.spread_states(p, found, rank)
            naive.spread_states(p, expected, rank)
            assert torch.equal(found, expected), (tokens, rank, states, start)
            assert torch.equal(found[..., : rank + states], p[..., : rank + states])
            assert torch.equal(found[..., rank + 16 : rank + 16 + states], p[..., rank + states :])
            assert not found[..., rank + states : rank + 16].any()
            assert not found[..., rank + 16 + states :].any()
    empty = torch.empty(2, 0, 3, 20).half()
    gradients.spread_states(empty, torch.empty(2, 0, 3, 36).half(), 4)


def check_pair() -> None:
    """A pair's whole step, forward and backward, with and without stochastic depth, beside the reference form."""
    gpu_limits.MIN_VALUES = 1
    for form in (Form(False, "both"), Form(True, "alternating")):
        config = Config(width=16, depth=2, decay="tied" if form.tied else "free", scan=form.scan)
        pair = MambaPair(config)
        pair.reset_parameters(torch.Generator().manual_seed(1))
        with torch.no_grad():
            pair.norm_bias_Kd.copy_(draw(2, 16))
        tokens, stream, factors = draw(2, 9, 16), draw(2, 9, 16, seed=1), torch.tensor([[1.0, 2.0], [0.0, 1.0]])
        for drop in (None, factors):
            results = []
            for backend, step in (("gpu", pair), ("reference", MambaPair(config))):
                step.load_state_dict(pair.state_dict())
                kind = torch.float64 if backend == "reference" else torch.float32
                inputs = [t.to(kind, copy=True).requires_grad_() for t in (tokens, stream)]
                with ops.use_backend(backend):
                    x, residual, *_ = step.to(kind)(ResidualState(inputs[0], inputs[1]), drop)
                    assert residual is not None
                    value = (x * draw(2, 9, 16, seed=2)).sum() + residual.square().sum()
                    results.append([x, residual, *torch.autograd.grad(value, [*inputs, *step.parameters()])])
            for i, (found, expected) in enumerate(zip(*results, strict=True)):
                assert_close(f"pair {form}, {drop is not None}: {i}", found, expected, 1e-4)
    gpu_limits.MIN_VALUES = 1 << 22


def check_traced() -> None:
    """In a graph the fold is one operator and gives the same bits."""
    tensors = [t.requires_grad_() for t in fold_inputs(4, 6, torch.float32, False)]
    with ops.use_backend("gpu"):
        built = torch.compile(lambda *t: ops.fold_norm(*t), fullgraph=True, backend="aot_eager")(*tensors)
        plain = ops.fold_norm(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(plain, built, strict=True))
    grads = (torch.autograd.grad((w * 2).sum() + b.sum(), tensors) for w, b in (plain, built))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


CHECKS = {
    "small": (check_parts, check_columns, check_padding, check_fold, check_linear, check_join_products, check_spread),
    "pair": (check_pair, check_traced),
}

if __name__ == "__main__":
    for check in CHECKS[sys.argv[1]]:
        check()
