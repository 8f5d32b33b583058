"""Fixtures of the server's tests. They need what `serving` needs, and are asked for by tests that have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hayless.decode.engine import Engine
from hayless.model.load import load_model, load_tokenizer
from tests.asset import FOLDER


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of the asset."""
    from tests.serve.serving import adapter

    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("legal", "medical")):
        adapter(root / name, seed)
    return root


@pytest.fixture(scope="session")
def alone() -> Engine:
    """What the asset says by itself."""
    return Engine(load_model(str(FOLDER), dtype="float32"), load_tokenizer(str(FOLDER)))
