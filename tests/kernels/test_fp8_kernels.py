"""The kernels that make 8-bit floats give what plain PyTorch does on a CPU. What they must write is nonsense first."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels import fp8, fp8_kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 is wrong in Triton's interpreter.
DTYPES = [torch.float32, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float32, torch.float16]
SHAPES = [(1, 1), (3, 7), (5, 64), (70, 33), (64, 129)]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def _agree(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> None:
    expected, expected_scale = fp8.rows_quantized(x)
    torch.testing.assert_close(scale.cpu(), expected_scale, rtol=0, atol=0, equal_nan=True)
    # A NaN has a sign, and which is nobody's business.
    found = codes.view(fp8.DTYPE).float().cpu()
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_rows_and_columns(dtype: torch.dtype, rows: int, width: int) -> None:
    x = (torch.randn(rows, width) * torch.logspace(-4, 0, width)).to(dtype)
    _agree(x, *fp8_kernels.rows_quantized(x.to(DEVICE)))
    columns = x.t().contiguous()
    scale = fp8.rows_quantized(columns)[1]
    codes = fp8_kernels.columns_quantized(x.to(DEVICE), scale.to(DEVICE))
    assert codes.is_contiguous()
    _agree(columns, codes, scale)
    again, same = fp8.columns_quantized(x)
    assert torch.equal(same, scale) and torch.equal(again.float(), fp8.rows_quantized(columns)[0].float())


def test_every_code_the_middle_between_two_and_what_lies_beside_it() -> None:
    """448 in each row makes its scale 1."""
    codes = torch.arange(127, dtype=torch.uint8).view(fp8.DTYPE).float()
    middle = (codes[:-1] + codes[1:]) / 2
    beside = [torch.nextafter(middle, torch.tensor(to)) for to in (0.0, torch.inf)]
    row = torch.cat([codes, middle, *beside])
    x = torch.stack([row, -row])
    found, scale = fp8_kernels.rows_quantized(x.to(DEVICE))
    assert torch.equal(scale.cpu(), torch.ones(2))
    assert torch.equal(found[0, :127].cpu(), torch.arange(127, dtype=torch.uint8))
    _agree(x, found, scale)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38, 1e-38, 1e-43, 0.0])
def test_extremes(bad: float) -> None:
    x = torch.randn(3, 20)
    x[1] = 0
    x[1, 4] = bad
    _agree(x, *fp8_kernels.rows_quantized(x.to(DEVICE)))


def test_nothing_at_all() -> None:
    for shape in ((0, 4), (4, 0), (0, 0)):
        codes, scale = fp8.rows_quantized(torch.zeros(shape, device=DEVICE))
        assert codes.shape == shape and torch.equal(scale.cpu(), torch.ones(shape[0]))
        codes, scale = fp8.columns_quantized(torch.zeros(shape, device=DEVICE))
        assert codes.shape == shape[::-1] and torch.equal(scale.cpu(), torch.ones(shape[1]))
