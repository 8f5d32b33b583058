"""The ledger's rows against what transformers builds and writes: names, shapes, counts and file sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from hayless.core.families import dims_of, ledger_of
from tests import tiny


@pytest.mark.parametrize("name", tiny.NAMES)
def test_rows_are_the_models_parameters(name: str) -> None:
    model = tiny.model(name)
    ledger = ledger_of(dims_of(model.config.to_dict()))
    rows = {
        f"{row.module}.{row.parameter}".replace("{layer}", str(layer)): row.shape
        for row in ledger.rows
        if not row.tied_to
        for layer in row.layers or (0,)
    }
    assert rows == {path: tuple(value.shape) for path, value in model.named_parameters()}
    assert ledger.parameters == sum(value.numel() for value in model.parameters())
    assert ledger.weight_bytes == sum(value.numel() * value.element_size() for value in model.parameters())


@pytest.mark.parametrize("name", tiny.NAMES)
def test_file_bytes_are_exact(name: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    model.save_pretrained(tmp_path)
    ledger = ledger_of(dims_of(model.config.to_dict()))
    assert ledger.file_bytes() == {"model": (tmp_path / "model.safetensors").stat().st_size}
