"""The kernel of 8-bit moments beside plain PyTorch, several updates one after the other; its codes beside a search."""

from __future__ import annotations

import pytest
import torch

from hayless.kernels.adamw8bit import Moment, Step, move_reference
from hayless.kernels.blockwise import map_on, quantize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 is wrong in Triton's interpreter.
NARROW = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture
def kernels():
    return pytest.importorskip("hayless.kernels.adamw8bit_kernels", reason="triton is not installed")


def zeros(elements: int, block: int, coded: bool, signed: bool) -> Moment:
    if not coded:
        return Moment(torch.zeros(elements, device=DEVICE), None)
    zero = int(quantize(torch.zeros(1), signed, 1)[0])
    codes = torch.full((elements,), zero, dtype=torch.uint8, device=DEVICE)
    return Moment(codes, torch.zeros(-(-elements // block), device=DEVICE))


def copy(moment: Moment) -> Moment:
    return Moment(moment.values.clone(), None if moment.scales is None else moment.scales.clone())


@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, NARROW])
@pytest.mark.parametrize(("elements", "block"), [(1, 16), (300, 24), (5000, 256), (4096, 4096)])
def test_the_kernel_moves_as_plain_pytorch_does(kernels, elements, block, dtype, coded):
    torch.manual_seed(0)
    gradients = [torch.randn(elements) ** 3 for _ in range(3)]
    gradients[0][: elements // 3] = 0
    expected = torch.randn(elements).to(DEVICE, dtype)
    wanted = [zeros(elements, block, coded, signed) for signed in (True, False)]
    # A quotient between two values may fall to either side, and moves a weight by another step then; both begin each
    # update with the same moments, or what is a step now would be several after the next one.
    few = 1 + 1e-3 * elements * coded
    for number, gradient in enumerate(gradients, 1):
        weight, found = expected.clone(), [copy(one) for one in wanted]
        step = Step(number, 0.1, 0.2, (0.8, 0.9), 1e-3)
        kernels.move(weight, gradient.to(DEVICE, dtype), *found, step, block)
        move_reference(expected, gradient.to(DEVICE, dtype), *wanted, step, block)
        off = (weight - expected).abs() > TOLERANCE[dtype] * (1 + expected.abs())
        assert weight.isfinite().all() and off.sum() < few
        for one, other in zip(found, wanted, strict=True):
            if not coded:
                torch.testing.assert_close(one.values, other.values, rtol=1e-5, atol=1e-6)
                continue
            torch.testing.assert_close(one.scales, other.scales, rtol=1e-5, atol=0)
            steps = (one.values.int() - other.values.int()).abs()
            assert steps.max() <= 1 and (steps != 0).sum() <= few


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_that_a_search_finds(kernels, signed):
    """At every value, at every middle and beside it, and between: with betas of zero the moments are g and g². So near
    to a middle that rounding decides, both values are as good."""
    table, middles = map_on(torch.device("cpu"), signed)
    beside = [torch.nextafter(middles, torch.tensor(towards)) for towards in (-2.0, 2.0)]
    small = torch.logspace(-9, 0, 2000)
    shares = torch.cat([table, middles, *beside, torch.linspace(-1, 1, 2000), small, -small])
    gradient = shares.clamp(-1, 1) if signed else shares.clamp(0, 1).sqrt()
    # Each share its own block, beside a one, which makes the scale 1.
    gradient = torch.stack([torch.ones_like(gradient), gradient], 1).flatten().to(DEVICE)
    moments = [zeros(len(gradient), 2, True, each) for each in (True, False)]
    kernels.move(torch.zeros_like(gradient), gradient, *moments, Step(1, 0.1, 0.0, (0.0, 0.0), 1e-3), 2)
    wanted = gradient if signed else gradient * gradient
    found, expected = moments[0 if signed else 1].values.cpu(), quantize(wanted, signed, 2)[0].cpu()
    steps = found.int() - expected.int()
    crossed = middles[torch.minimum(found, expected).int().clamp(max=254)]
    decided = (wanted.cpu() - crossed).abs() > 5e-7 * crossed.abs()
    assert steps.abs().max() <= 1 and not (decided & (steps != 0)).any()
    assert (found == expected)[1 : 2 * len(table) : 2].all()


@pytest.mark.parametrize("signed", [True, False])
def test_values_are_those_of_the_map(kernels, signed):
    """All of them, as a weight of zero moves by them: of the first moment as it is, of the second by 1 / √."""
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    ones = torch.ones(1, device=DEVICE)
    full = torch.full_like(codes, 255)
    first, second = (codes.clone(), torch.zeros_like(codes)) if signed else (full, codes.clone())
    weight, eps = torch.zeros(256, device=DEVICE), 1.0 if signed else 1e-30
    # With betas of a half both moments are half of what they were, and are divided by a half.
    step = Step(1, -1.0, 0.0, (0.5, 0.5), eps)
    kernels.move(weight, torch.zeros_like(weight), Moment(first, ones), Moment(second, ones.clone()), step, 256)
    table = map_on(DEVICE, signed)[0]
    torch.testing.assert_close(weight if signed else weight**-2, table, rtol=5e-6, atol=0)
