"""Memory that holds nothing yet."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `torch.empty` gives is full of NaN, or of numbers that nobody should read; random numbers are seeded."""
    empty = torch.empty

    def full(*shape: Any, **options: Any) -> torch.Tensor:
        found = empty(*shape, **options)
        return found.fill_(torch.nan if found.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty", full)
    torch.manual_seed(0)
