"""Bytes of a folder by kind."""

from __future__ import annotations

import pytest

from hayless.core.errors import RequestError
from hayless.measure.files import FileBytes, file_bytes


def test_every_file_is_counted_once_by_kind(tmp_path):
    sizes = {
        "model-00001-of-00002.safetensors": 1,
        "base/model.safetensors": 20,
        "adapter_model.safetensors": 300,
        "adapter_config.json": 4000,
        "tokenizer.json": 50_000,
        "base/tokenizer_config.json": 600_000,
        "config.json": 7_000_000,
        "README.md": 80_000_000,
    }
    for name, size in sizes.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        file.truncate(900_000_000)
    found = file_bytes(tmp_path)
    assert found == FileBytes(weights=21, adapter=300, tokenizer=650_000, config=7_004_000, other=980_000_000)
    assert found.total == 987_654_321 and found.tensors == 321
    (tmp_path / "adapter_model.safetensors").unlink()
    assert file_bytes(tmp_path).tensors == 21


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(RequestError, match="not a folder"):
        file_bytes(tmp_path / "none")
