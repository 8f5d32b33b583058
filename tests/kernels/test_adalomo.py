"""AdaLomo's kernels beside plain PyTorch, several updates one after the other. What kernels must write is NaN first."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor

from hayless.kernels.adalomo import Reference, Step
from hayless.kernels.adalomo_sizes import scratch_bytes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 is wrong in Triton's interpreter.
NARROW = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
# Plain PyTorch rounds a weight twice an update: when it decays, and when it is moved.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
UPDATES = 3


@pytest.fixture(autouse=True)
def _poisoned():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def kernels():
    return pytest.importorskip("hayless.kernels.adalomo_kernels", reason="triton is not installed")


def step(number: int, decay: float = 0.1) -> Step:
    return Step(1 - number**-0.8, 0.1, decay, 1e-30, 1e-3, 1.0)


def moved(moves, shape: tuple[int, ...], gradients: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Weight and second moment after an update by each gradient."""
    torch.manual_seed(1)
    weight = torch.randn(shape).to(DEVICE, dtype)
    state = [torch.zeros(length, device=DEVICE) for length in shape]
    for number, gradient in enumerate(gradients, 1):
        move = moves.move_matrix if len(shape) == 2 else moves.move_vector
        move(weight, gradient.clone(), *state, step(number))
    return [weight, *state]


@pytest.mark.parametrize("dtype", [torch.float32, NARROW])
@pytest.mark.parametrize("shape", [(1, 1), (17, 300), (300, 17), (131, 260), (1,), (1025,)])
def test_kernels_move_as_plain_pytorch_does(kernels, shape, dtype):
    gradients = [torch.randn(shape).to(DEVICE, dtype) * 0.1**number for number in range(UPDATES)]
    found, wanted = (moved(moves, shape, gradients, dtype) for moves in (kernels, Reference))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype is other.dtype
        torch.testing.assert_close(one, other, rtol=TOLERANCE[one.dtype], atol=TOLERANCE[one.dtype])
    assert all(torch.equal(*pair) for pair in zip(found, moved(kernels, shape, gradients, dtype), strict=True))


@pytest.mark.parametrize("shape", [(20, 30), (40,)])
def test_gradients_of_zero_move_nothing(kernels, shape):
    weight = torch.randn(shape, device=DEVICE)
    before = weight.clone()
    state = [torch.zeros(length, device=DEVICE) for length in shape]
    move = kernels.move_matrix if len(shape) == 2 else kernels.move_vector
    move(weight, torch.zeros_like(weight), *state, step(1, decay=0.0))
    assert torch.equal(weight, before) and all(moment.isfinite().all() for moment in state)


@pytest.mark.parametrize("shape", [(130, 257), (20_000, 3), (3, 5000)])
def test_kernels_need_what_is_predicted(kernels, monkeypatch, shape):
    launched = []
    monkeypatch.setattr(kernels, "_matrix", defaultdict(lambda: lambda *inputs, **options: launched.append(inputs)))
    kernels.move_matrix(torch.zeros(shape), torch.zeros(shape), *map(torch.zeros, shape), step(1))
    scratch = launched[0][4].untyped_storage().nbytes()
    # Each part begins at 16 bytes.
    assert len(launched) == 1 and 0 <= scratch - scratch_bytes(shape, "cuda") < 4 * 16
