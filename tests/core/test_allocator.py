"""Blocks of PyTorch's CUDA allocator, and what they add to a prediction."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hayless.core.activations import record
from hayless.core.allocator import allocated_bytes, workspace_bytes
from hayless.core.cost import TrainShape, training_cost
from hayless.core.families import dims_of, ledger_of
from hayless.core.forward import RunShape
from hayless.core.replay import replay
from tests import tiny

MIB = 2**20


@pytest.mark.parametrize(
    ("size", "held"),
    [
        (0, 0),
        (1, 512),
        (513, 1024),
        (MIB, MIB),
        (5_120_000, 5_120_000 + (20 * MIB - 4 * 5_120_192) // 4 + 192),  # four in a segment, whose rest is too small
        (7 * MIB, 7 * MIB),  # two in a segment, whose rest is cut off
        (20_480_000, 20 * MIB),
        (15_360_000, 15_360_000),
        (25 * MIB, 26 * MIB),
    ],
)
def test_blocks_by_hand(size: int, held: int) -> None:
    assert allocated_bytes(size) == held


@given(st.integers(0, 100 * MIB), st.integers(0, 3 * MIB))
def test_more_never_takes_less_and_at_most_a_rest_is_added(size: int, more: int) -> None:
    assert size <= allocated_bytes(size) <= allocated_bytes(size + more)
    assert allocated_bytes(size) < size + MIB + 512


def test_a_weight_that_is_used_twice_needs_its_gradient_three_times() -> None:
    config = {**tiny.config("llama").to_dict(), "vocab_size": 50_000}
    tied = ledger_of(replace(dims_of(config), tied_embeddings=True))
    table = next(row for row in tied.rows if row.module == "model.embed_tokens")
    found = replay(record(tied, RunShape(1, 2, device="cpu")))
    others = sum(row.bytes for row in tied.rows if row is not table)
    assert 3 * table.bytes < found.backward.total <= 3 * table.bytes + 2 * others
    assert found.backward.gradients <= tied.weight_bytes
    # Under autocast the product's gradient is cast, and the other one is added to it where it lies.
    cast = replay(record(tied, RunShape(1, 2, device="cpu", arithmetic="bfloat16")))
    assert cast.backward.total < found.backward.total


def test_workspaces_and_rests_are_counted_on_cuda_only() -> None:
    ledger = ledger_of(dims_of(tiny.config("llama").to_dict()))
    there, here = (training_cost(ledger, TrainShape(1, 8, device=kind)).phases["step"] for kind in ("cuda", "cpu"))
    assert there.weights == here.weights and there.gradients == here.gradients and here.temporary == 0
    workspaces = 2 * workspace_bytes(biases=True)
    assert workspaces < there.temporary < workspaces + 512 * 4 * len(ledger.rows) * 2
