"""AdamW's kernel for one tensor beside torch's own AdamW, several updates one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hayless.kernels.adamw import LARGE, Options, Part, move, moved_alone

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 is wrong in Triton's interpreter.
NARROW = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
FACTOR = 0.3
MOMENTS = ("exp_avg", "exp_avg_sq")


def parts(sizes: list[int], dtype: torch.dtype, alone: list[bool]) -> list[Part]:
    """Weights, and gradients that are yet to come; moments of zeros."""
    torch.manual_seed(0)
    weights = [torch.randn(size).to(DEVICE, dtype) for size in sizes]
    states = [(torch.zeros_like(each), torch.zeros_like(each), torch.zeros((), device=DEVICE)) for each in weights]
    made = zip(weights, states, alone, strict=True)
    return [Part(weight, torch.empty_like(weight), *state, each) for weight, state, each in made]


def by_torch(weights: list[Tensor], gradients: list[list[Tensor]], options: Options) -> torch.optim.AdamW:
    """torch's AdamW after an update by each list of gradients: in float32, rounded to the weights' dtype after each."""
    parameters = [nn.Parameter(weight.float()) for weight in weights]
    optimizer = torch.optim.AdamW(
        parameters, lr=options.rate, betas=options.betas, eps=options.eps, weight_decay=options.decay, foreach=False
    )
    for each in gradients:
        for parameter, gradient in zip(parameters, each, strict=True):
            parameter.grad = gradient.float() * FACTOR
        optimizer.step()
        for parameter in parameters:
            for tensor in (parameter.data, *(optimizer.state[parameter][name] for name in MOMENTS)):
                tensor.copy_(tensor.to(weights[0].dtype))
    return optimizer


@pytest.mark.parametrize("betas", [(0.8, 0.9), (0.9, 0.999), (0.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, NARROW])
@pytest.mark.parametrize("sizes", [[1], [2048, 3000], [70]])
def test_moves_as_torch_does(sizes, dtype, betas):
    """Alone and together with others, by gradients times a factor; states are torch's."""
    pytest.importorskip("triton")
    options = Options(0.1, 0.2, betas, 1e-3)
    # Together CPUs round every operation to 16 bits.
    ways = [True, False] if dtype is torch.float32 or DEVICE.type == "cuda" else [True]
    mine = parts(sizes * len(ways), dtype, [way for way in ways for _ in sizes])
    gradients = [[torch.randn(len(each.weight)).to(DEVICE, dtype) for each in mine] for _ in range(3)]
    wanted = by_torch([each.weight for each in mine], gradients, options)
    for found in gradients:
        for part, gradient in zip(mine, found, strict=True):
            part.gradient.copy_(gradient)
        move(mine, options, FACTOR)
    for part, parameter in zip(mine, wanted.param_groups[0]["params"], strict=True):
        state = wanted.state[parameter]
        expected = (parameter.detach(), *(state[name] for name in MOMENTS))
        for one, other in zip((part.weight, part.first, part.second), expected, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 10)
        assert float(part.step) == float(state["step"]) == 3


def test_nothing_on_a_cpu_is_moved_alone():
    assert not moved_alone(torch.empty(LARGE))
