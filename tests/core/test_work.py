"""Kernels read off a tape: their arithmetic is the formula's, and what is computed again is counted again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hayless.core.activations import record
from hayless.core.cost import TrainShape, training_cost
from hayless.core.families import dims_of, ledger_of
from hayless.core.flops import attention_flops, backward_flops, forward_flops
from hayless.core.forward import RunShape
from hayless.core.ledger import Ledger
from hayless.core.work import Kernel, Work, backward_work, eager, elementwise, forward_work
from tests import tiny

FAMILIES = ["llama", "llama-tied", "qwen3", "gemma", "gpt2", "opt", "opt-350m", "gpt_neox", "mixtral"]


def ledger(name: str = "llama") -> Ledger:
    """In 16 bits, in which attention is fused on GPUs whatever the model."""
    return ledger_of(dims_of(tiny.config(name).to_dict()).with_dtype("bfloat16"))


@pytest.mark.parametrize("name", FAMILIES)
def test_arithmetic_is_that_of_the_formulas(name: str) -> None:
    found, run = ledger(name), RunShape(2, 24)
    tape = record(found, run)
    forward = forward_work(tape)
    assert forward.flops == pytest.approx(forward_flops(found, 2, 24))
    # Fused attention computes its scores again, which the convention leaves out.
    attended = attention_flops(found.dims, 2, 24)
    fused = sum(kernel.flops * kernel.count for kernel in forward.kernels if kernel.unit == "attention")
    backward = backward_flops(found, TrainShape(2, 24)) - 2 * attended + 2 * (attended - fused) + 2.5 * fused
    assert backward_work(tape).flops == pytest.approx(backward)


def test_checkpointed_blocks_run_twice() -> None:
    whole, again = (backward_work(record(ledger(), RunShape(2, 24, checkpoint_every=every))) for every in (0, 1))
    head = 2 * 2 * 24 * ledger().dims.vocab_size * ledger().dims.hidden_size
    assert again.flops - whole.flops == pytest.approx(forward_flops(ledger(), 2, 24) - head)
    assert again.launches > whole.launches


def test_frozen_weights_need_fewer_kernels() -> None:
    found = ledger()
    frozen = replace(
        found, rows=tuple(replace(row, trainable=row.is_matrix and row.layers == ()) for row in found.rows)
    )
    shape = TrainShape(2, 24)
    trained, kept = (training_cost(each, shape).work["backward"] for each in (found, frozen))
    assert kept.launches < trained.launches / 4 and kept.flops < trained.flops / 4


def test_equal_kernels_are_counted_together() -> None:
    product = Kernel("matrix", "float32", 8.0, 4.0)
    found = eager([product, elementwise(2.0), product])
    assert found.launches == 3 and len(found.kernels) == 2
    assert (found.flops, found.moved_bytes) == (16.0, 10.0)
    both = (found + Work(launches=1)).times(2)
    assert (both.flops, both.moved_bytes, both.launches) == (32.0, 20.0, 8)


def test_widths_that_8_does_not_divide_are_uneven() -> None:
    odd = ledger_of(replace(ledger().dims, vocab_size=97))
    units = {kernel.unit for kernel in forward_work(record(odd, RunShape(1, 8))).kernels}
    assert "uneven" in units and "uneven" not in {
        kernel.unit for kernel in forward_work(record(ledger(), RunShape(1, 8))).kernels
    }
