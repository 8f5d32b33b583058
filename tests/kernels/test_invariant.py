"""Products whose rows are their own: equal to the plain ones, and to the bit whatever the number of tokens."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels import invariant

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 is wrong in Triton's interpreter.
DTYPES = [torch.float32, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float32, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width", "outputs"), [(1, 64, 48), (5, 100, 37), (16, 33, 1), (19, 300, 70)])
@pytest.mark.parametrize("extras", [False, True])
def test_equals_the_plain_product(dtype, tokens, width, outputs, extras):
    x, weight = _random(tokens, width, dtype=dtype), _random(outputs, width, dtype=dtype, seed=1) * width**-0.5
    bias = _random(outputs, dtype=dtype, seed=2) if extras else None
    wide = torch.full((tokens, outputs + 3), torch.nan, dtype=dtype, device=DEVICE)
    out = wide[:, :outputs]
    if extras:
        out.copy_(_random(tokens, outputs, dtype=dtype, seed=3))
    residual = out if extras else None
    expected = invariant.linear_reference(x, weight, bias, None if residual is None else residual.clone())
    found = invariant.linear(x, weight, out, bias=bias, residual=residual)
    torch.testing.assert_close(found.float(), expected.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert wide[:, outputs:].isnan().all(), "nothing is written beside it"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_s_bits_do_not_depend_on_the_others(dtype):
    x, weight = _random(37, 300, dtype=dtype), _random(40, 300, dtype=dtype, seed=1)

    def product(rows: torch.Tensor) -> torch.Tensor:
        return invariant.linear(rows, weight, torch.empty(len(rows), 40, dtype=torch.float32, device=DEVICE))

    every = product(x)
    for count in (1, 5, 16, 17, 36):
        assert torch.equal(product(x[:count]), every[:count])
    # The interpreter multiplies tiles in a library whose sums differ by a row's place in the tile; a GPU's do not.
    for rows in ([36], [3, 2, 1], list(range(5, 33))) if DEVICE.type == "cuda" else ():
        assert torch.equal(product(x[rows]), every[rows])


def test_a_residual_laid_out_otherwise_is_refused():
    x, weight = _random(2, 8, dtype=torch.float32), _random(4, 8, dtype=torch.float32)
    with pytest.raises(ValueError, match="strides"):
        invariant.linear(x, weight, torch.empty(2, 4, device=DEVICE), residual=torch.empty(4, 2, device=DEVICE).T)
