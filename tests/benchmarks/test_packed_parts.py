"""The products that the benchmark of packed linear layers makes stand for the weights that they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

SPECS = Path(__file__).resolve().parents[2] / "benchmarks" / "specs"
if not SPECS.is_dir():
    pytest.skip("benchmarks are not part of this distribution", allow_module_level=True)


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("tokens", [1, 3])
def test_products_of_hayless(tokens, triton, monkeypatch):
    monkeypatch.syspath_prepend(str(SPECS))
    from parts import packed

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.randn(24, 256, device=device) * 256**-0.5
    x = torch.randn(tokens, 256, device=device)
    makers = [packed.integers(4, triton=triton), packed.nf4(triton=triton), packed.nf4(double=True, triton=triton)]
    for maker, off in zip([*makers, packed.integers(8, triton=triton)], (0.15, 0.15, 0.15, 0.02), strict=True):
        product = maker(weight)
        assert (product.weight - weight).norm() < off * weight.norm()
        torch.testing.assert_close(product.multiply(x), x @ product.weight.T, rtol=0, atol=1e-4)
    codes, scale, meant = packed._symmetric(weight)
    assert codes.dtype == torch.uint8 and scale.shape == (24, 2)
    assert (meant - weight).norm() < 0.15 * weight.norm()
