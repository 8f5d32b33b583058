"""Captured steps without a GPU: a captured step is the step itself, run by Triton's interpreter. Needs Triton."""

from __future__ import annotations

import pytest
import torch

from hayless.decode import engine, graphs


class Step:
    """Stands in for a captured graph."""

    def __init__(self, run, device):
        self.replay = run


class Event:
    """All that was queued is done at once."""

    def record(self):
        pass

    def synchronize(self):
        pass


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine take graphs for what a CPU can capture."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, pin_memory=False, **more: zeros(*shape, **more))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(graphs, "captured", Step)
    monkeypatch.setattr(engine, "_no_graphs", lambda program: None)
