"""QLoRA's published figures: the 16 values, and what scales cost in bits a weight, on disk (arXiv:2305.14314)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hayless.core.compose import predict
from hayless.core.files import WeightFiles
from hayless.core.registry import configure
from hayless.methods.quantize.nf4.tables import normal_values, values_of
from hayless.model.build import build_model
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests.lecture.test_numbers import LLAMA_7B, llama

PUBLISHED = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]
"""Appendix E."""


def test_the_values_are_quantiles_of_a_normal_distribution() -> None:
    assert torch.equal(values_of("nf4"), torch.tensor(PUBLISHED))


def test_the_steps_with_rounded_ends_are_close_and_not_the_same() -> None:
    """Eight values from .56 to .97, seven from .57 to .97 whose negative inverses are taken, and a zero."""
    rounded = normal_values(torch.linspace(0.56, 0.97, 8).tolist(), torch.linspace(0.57, 0.97, 7).tolist())
    off = (rounded - torch.tensor(PUBLISHED)).abs()
    assert float(off.max()) == pytest.approx(0.0054, abs=5e-5)


@pytest.mark.parametrize(("double", "bits"), [(False, 0.5), (True, 0.127)])
def test_what_scales_cost(double: bool, bits: float, tmp_path: Path) -> None:
    """A float32 for 64 weights; in 8 bits 8/64 + 32/(64·256). Measured in a file of matrices of 256 blocks."""
    shape = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = build_model({"model_type": "llama", "vocab_size": 64, "max_position_embeddings": 16, **shape})
    apply(model, [configure("nf4", double=double)])
    save_model(model, tmp_path)
    files = WeightFiles(tmp_path)
    scales = [name for name in files.names if name.endswith("absmax")]
    stored = sum(len(files.content(name)) for name in scales)
    weights = 2 * sum(len(files.content(name)) for name in files.names if name.endswith("_proj.weight"))
    assert len(scales) == 7 * (1 + double) and weights == 7 * 128 * 128
    assert 8 * stored / weights == pytest.approx(bits, abs=5e-5)


def test_a_model_of_seven_billion() -> None:
    """Everything counted, tables and bitsandbytes' notes included: 4.13 bits a weight of the blocks."""
    ledger = predict(llama(*LLAMA_7B), [configure("nf4")])
    packed = [row for row in ledger.rows if row.method == "nf4"]
    stored = sum(entry.bytes for row in packed for _, entry in row.entries(on_disk=True))
    assert 8 * stored / sum(row.elements for row in packed) == pytest.approx(4.1273, abs=1e-4)
