"""Decoding through captured graphs and through modules: what is held, and the kernels of a step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hayless.core.compose import predict
from hayless.core.cost import DecodeShape, kv_cache_bytes, weight_bytes
from hayless.core.decoding import AHEAD, CAPACITY_STEP, GRAPHED, PREFILL_TOKENS, decode_cost, decode_peak
from hayless.core.families import dims_of, ledger_of
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from tests import tiny


def ledger(name: str = "llama") -> Ledger:
    return ledger_of(dims_of(tiny.config(name).to_dict()).with_dtype("bfloat16"))


def test_the_engine_s_own_numbers_are_those_predicted_with() -> None:
    graphs = pytest.importorskip("hayless.decode.graphs")
    from hayless.decode import program

    assert (graphs.CAPACITY_STEP, graphs.PREFILL_TOKENS) == (CAPACITY_STEP, PREFILL_TOKENS)
    assert graphs._SLOTS == AHEAD and set(program._FAMILIES) == GRAPHED
    for rows in (1, 2, 3, 8, 9, 17):
        held = decode_cost(ledger(), rows, CAPACITY_STEP).phases["decode"].kv_cache
        assert held == kv_cache_bytes(ledger().dims, graphs.bucket(rows), 2 * CAPACITY_STEP)


def test_a_cache_in_graphs_is_there_from_the_start() -> None:
    last, next_step = CAPACITY_STEP - AHEAD, CAPACITY_STEP - AHEAD + 1
    short, full, longer = (decode_cost(ledger(), 1, context).phases["decode"] for context in (1, last, next_step))
    assert short.kv_cache == full.kv_cache and longer.kv_cache == 2 * full.kv_cache


@pytest.mark.parametrize("changes", [[configure("lora")], [configure("kmeans", targets=("blocks", "embedding"))]])
def test_changed_models_are_decoded_through_modules(changes: list[MethodConfig]) -> None:
    changed = predict(ledger(), changes)
    assert decode_cost(ledger(), 1, 8).work["decode"].launches == 0
    assert decode_cost(changed, 1, 8).work["decode"].launches > 50
    assert "decoded in captured graphs" not in decode_cost(changed, 1, 8).notes
    assert decode_cost(ledger("gpt2"), 1, 8).work["decode"].launches > 0
    assert decode_cost(ledger(), 1, 8, device="cpu").work["decode"].launches > 0


def test_a_step_reads_every_weight_once_and_the_cache_as_far_as_it_is_filled() -> None:
    found = ledger()
    dims, context = found.dims, 40
    matrices = sum(row.count * math.prod(row.shape) for row in found.rows if row.is_matrix) * 2
    for rows in (1, 4):
        work = decode_cost(found, rows, context).work["decode"]
        read = matrices + kv_cache_bytes(dims, rows, context)
        assert read < work.moved_bytes < 1.5 * read
        matrix = 2 * rows * matrices / 2
        assert work.flops == pytest.approx(matrix + 4 * dims.num_layers * dims.q_width * rows * context)
    one, four = (decode_cost(found, rows, context).work["decode"].kernels for rows in (1, 4))
    assert sum(kernel.count for kernel in one) == 5 * dims.num_layers + 4
    assert sum(kernel.count for kernel in four) == 11 * dims.num_layers + 4


def test_packed_blocks_are_decoded_in_graphs_and_read_as_they_are_held() -> None:
    plain, packed = ledger(), predict(ledger(), [configure("kmeans", bits=4)])
    one, many = (decode_cost(each, 1, 8) for each in (plain, packed))
    assert "decoded in captured graphs" in many.notes and many.work["decode"].launches == 0
    largest = max(row.elements // row.count for row in packed.rows if row.method) * 2
    beside = many.phases["decode"].temporary - one.phases["decode"].temporary
    assert beside >= largest, "a palette is unpacked for its product"
    assert many.phases["decode"].weights < one.phases["decode"].weights
    matrices = len([row for row in packed.rows if row.layers and row.is_matrix])
    streams = [kernel for kernel in many.work["decode"].kernels if kernel.unit == "stream"]
    assert sum(kernel.count for kernel in streams) == matrices * packed.dims.num_layers + 1


def test_a_prompt_goes_in_pieces() -> None:
    wide = ledger_of(replace(ledger().dims, max_positions=10**6))
    at_once, twice = (decode_cost(wide, 1, tokens).phases for tokens in (PREFILL_TOKENS, 2 * PREFILL_TOKENS))
    extra = [phases["prefill"].total - phases["decode"].total for phases in (at_once, twice)]
    assert extra[0] == extra[1] > 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_drafts_add_their_model_and_what_checking_takes(device: str) -> None:
    shape = DecodeShape(1, 40, device=device)
    target, draft = ledger(), ledger("qwen2")
    plain = decode_peak(target, shape)
    assert plain == decode_cost(target, 1, 40, device=device).peak
    alone = decode_peak(target, replace(shape, drafted=4))
    both = decode_peak(target, replace(shape, drafted=4), draft)
    assert both.weights - alone.weights == weight_bytes(draft)
    assert both.kv_cache > alone.kv_cache >= plain.kv_cache
    assert decode_peak(target, replace(shape, drafted=16)).total >= alone.total >= plain.total
    tried = decode_peak(target, replace(shape, drafted=4, tried=True))
    assert (tried.kv_cache > alone.kv_cache) == (device == "cuda"), "graphs without drafts keep their cache"
