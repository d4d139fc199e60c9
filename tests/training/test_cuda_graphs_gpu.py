"""A step's gradients as a CUDA graph against the same step as it is."""

import pytest
import torch

from ssamba.models import masking
from ssamba.models.config import Config
from ssamba.models.registry import make_encoder
from ssamba.training.cuda_graphs import Gradients
from ssamba.training.loop import precision
from ssamba.training.pretrain.task import PretrainInputs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
@pytest.mark.parametrize("autocast", ["fp32", "bf16"])
def test_replays_equal_eager_steps(encoder: str, autocast: str) -> None:
    config = Config(encoder=encoder, width=64, depth=4, frames=64, stride_frequency=16, stride_time=16)
    model = make_encoder(config, heads=True).cuda().train()
    parameters = list(model.parameters())

    def losses(inputs: PretrainInputs) -> dict[str, torch.Tensor]:
        return model.losses(inputs.features, inputs.mask_a, None, "joint", (inputs.keep_a, None))

    context = precision(autocast, torch.device("cuda"))
    graphed, eager = Gradients(losses, parameters, context), Gradients(losses, parameters, context, graphs=False)
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        mask = masking.cluster_masks(5, config.grid, 16, draw).cuda()
        keep = model.draw_keep(5, draw)
        features = torch.randn(5, 64, 128, generator=draw).cuda()
        inputs = PretrainInputs(features, mask, keep_a=None if keep is None else keep.cuda())
        metrics = {k: v.clone() for k, v in graphed(inputs).items()}
        gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        assert graphed.uses_graphs  # captured, and not fallen back
        for key, value in eager(inputs).items():
            torch.testing.assert_close(value, metrics[key], rtol=1e-4, atol=1e-5)
        assert len(gradients) == sum(p.grad is not None for p in parameters) > 10
        for mine, parameter in zip(gradients, [p for p in parameters if p.grad is not None], strict=True):
            assert parameter.grad is not None
            assert torch.linalg.vector_norm(mine - parameter.grad) <= 1e-3 * torch.linalg.vector_norm(mine) + 1e-6
        with torch.no_grad():  # weights that change in place are seen by the next replay
            for p in parameters:
                p.add_(0.01 * torch.randn(p.shape, generator=draw).to(p.device))
