"""Costs: exact against live tensors, the properties any cost must have, and published figures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.compose import predict
from hayless.core.cost import (
    Bytes,
    TrainShape,
    gradient_bytes,
    kv_cache_bytes,
    optimizer_bytes,
    training_cost,
    weight_bytes,
)
from hayless.core.decoding import decode_cost
from hayless.core.dtypes import item_bytes
from hayless.core.errors import NotSupported, RequestError
from hayless.core.families import dims_of, ledger_of
from hayless.core.flops import attention_flops, backward_flops, forward_flops
from hayless.core.ledger import Layout, Ledger
from hayless.core.method import MethodConfig
from hayless.core.registry import configure, method_of
from hayless.core.roles import Role
from hayless.model.transform import apply
from hayless.train.update import make_updater
from hayless.train.updater import Updater
from tests import tiny

ADAMW, SGD, MOMENTUM = configure("adamw"), configure("sgd"), configure("sgd", momentum=0.9)


def ledger(name: str = "llama", **changes: Any) -> Ledger:
    return ledger_of(replace(dims_of(tiny.config(name).to_dict()), **changes))


def shaped(config: MethodConfig, **options: Any) -> TrainShape:
    return method_of(config).predict_training(TrainShape(**{"batch": 2, "sequence": 16, **options}), config)


def trained(model: Any, precision: Any, optimizer: MethodConfig) -> tuple[Updater, int]:
    """The updater after one step in which every trained weight had a gradient, and the bytes of the gradients."""
    updater = make_updater(model, precision, optimizer)
    updater.begin(1.0, None)
    updater.backward(sum(parameter.sum() for parameter in model.parameters() if parameter.requires_grad))
    size = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
    updater.step(updater.norm())
    return updater, size


def live_bytes(model: Any) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("name", tiny.NAMES)
@pytest.mark.parametrize("precision", ["fp32", "master", "bf16"])
def test_bytes_are_those_of_live_tensors(name: str, precision: str) -> None:
    model = tiny.model(name)
    found = ledger(name)
    shape = shaped(ADAMW, precision=precision)
    updater, gradients = trained(model, precision, ADAMW)
    state, _ = updater.optimizer_state()
    assert weight_bytes(found, shape.dtype) == live_bytes(model)
    assert gradient_bytes(found, shape) == gradients
    assert optimizer_bytes(found, shape) == sum(tensor.nbytes for tensor in state.values())
    if precision == "master":
        masters = sum(tensor.nbytes for tensor in updater.weights().values())
        assert training_cost(found, shape).phases["step"].master == masters


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD,
        MOMENTUM,
        configure("adafactor"),
        configure("adamw8bit", least_elements=100, block_size=80),
        configure("lomo"),
        configure("adalomo"),
    ],
    ids=lambda config: config.method,
)
@pytest.mark.parametrize("precision", ["fp32", "autocast", "fp16", "master"])
def test_state_of_other_optimizers(optimizer: MethodConfig, precision: str) -> None:
    updater, _ = trained(tiny.model("llama"), precision, optimizer)
    state, _ = updater.optimizer_state()
    expected = sum(tensor.nbytes for tensor in state.values())
    assert optimizer_bytes(ledger(), shaped(optimizer, precision=precision)) == expected


@pytest.mark.parametrize("methods", [("lora",), ("kmeans", "lora")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_train_and_their_base_does_not(methods: tuple[str, ...], precision: str) -> None:
    configs = [configure(name) for name in methods]
    model = tiny.model("llama")
    apply(model, configs)
    found = predict(ledger(), configs)
    shape = shaped(ADAMW, precision=precision)
    updater, gradients = trained(model, precision, ADAMW)
    state, _ = updater.optimizer_state()
    assert gradient_bytes(found, shape) == gradients
    assert optimizer_bytes(found, shape) == sum(tensor.nbytes for tensor in state.values())
    codes = sum(buffer.nbytes for name, buffer in model.named_buffers() if name.endswith(("_codes", "_codebook")))
    assert weight_bytes(found, shape.dtype) == live_bytes(model) + codes


def test_master_is_zeros_sixteen_bytes() -> None:
    found = ledger()
    step = training_cost(found, shaped(ADAMW, precision="master")).phases["step"]
    counters = 4 * sum(row.count for row in found.rows if not row.tied_to)
    assert step.weights + step.gradients + step.optimizer - counters + step.master == 16 * found.parameters


def test_llama_7b_as_lomo_prints_it() -> None:
    # LOMO (Lv et al., 2023), table 1, GiB: parameters 12.55, gradients 12.55, AdamW's states 75.31.
    config = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32}
    config |= {"num_attention_heads": 32, "intermediate_size": 11008, "dtype": "bfloat16"}
    step = training_cost(ledger_of(dims_of(config)), shaped(ADAMW, precision="master")).phases["step"]
    figures = (step.weights, step.gradients, step.optimizer + step.master)
    assert [round(size / 2**30, 2) for size in figures] == [12.55, 12.55, 75.31]


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["llama", "gpt2", "opt", "gpt_neox", "mixtral", "bert", "t5"]),
    batch=st.integers(1, 4),
    sequence=st.integers(2, 48),
    layers=st.integers(1, 3),
    precision=st.sampled_from(["fp32", "autocast", "master", "bf16", "fp16"]),
    every=st.integers(0, 2),
)
def test_training_costs_grow(name: str, batch: int, sequence: int, layers: int, precision: str, every: int) -> None:
    def cost(batch: int, sequence: int, layers: int) -> tuple[int, float, float]:
        shape = shaped(ADAMW, batch=batch, sequence=sequence, precision=precision, checkpoint_every=every)
        found = training_cost(ledger(name, num_layers=layers), shape)
        work = found.work.values()
        return found.peak.total, sum(part.flops for part in work), sum(part.moved_bytes for part in work)

    start = cost(batch, sequence, layers)
    for larger in (cost(batch + 1, sequence, layers), cost(batch, sequence + 1, layers)):
        # The peak may be that of the optimizer's step, which knows no batch.
        assert larger[0] >= start[0] and larger[1] > start[1] and larger[2] > start[2]
    deeper = cost(batch, sequence, layers + 1)
    assert all(more > less for more, less in zip(deeper, start, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["llama", "gpt2", "opt", "gpt_neox", "mixtral", "t5"]),
    batch=st.integers(1, 8),
    context=st.integers(1, 60),
)
def test_decoding_costs_grow(name: str, batch: int, context: int) -> None:
    def cost(batch: int, context: int, device: Literal["cpu", "cuda"]) -> list[float]:
        found = decode_cost(ledger(name), batch, context, device=device)
        phases = ("prefill", "decode")
        work = [number for phase in phases for number in (found.work[phase].flops, found.work[phase].moved_bytes)]
        return [*(found.phases[phase].total for phase in phases), *work]

    for device in ("cpu", "cuda"):
        start = cost(batch, context, device)
        for larger in (cost(batch + 1, context, device), cost(batch, context + 1, device)):
            # Graphs have steps of rows and of tokens.
            assert all(
                more > less or (device == "cuda" and more == less) for more, less in zip(larger, start, strict=True)
            )


@settings(max_examples=20, deadline=None)
@given(split=st.integers(1, 10), batch=st.integers(1, 3), sequence=st.integers(2, 32))
def test_costs_add(split: int, batch: int, sequence: int) -> None:
    whole = ledger()
    shape = shaped(ADAMW, batch=batch, sequence=sequence)
    parts = (replace(whole, rows=whole.rows[:split]), replace(whole, rows=whole.rows[split:]))
    for measure in (gradient_bytes, optimizer_bytes):
        assert measure(whole, shape) == sum(measure(part, shape) for part in parts)
    assert weight_bytes(whole) == sum(weight_bytes(part) for part in parts)
    attended = attention_flops(whole.dims, batch, sequence)
    assert forward_flops(whole, batch, sequence) + attended == pytest.approx(
        sum(forward_flops(part, batch, sequence) for part in parts)
    )
    cost = training_cost(whole, shape)
    both = cost + cost
    assert both.peak.total == 2 * cost.peak.total and both.tokens == cost.tokens
    assert both.work["forward"].flops == 2 * cost.work["forward"].flops
    assert Bytes(weights=1) + Bytes(loss=2) == Bytes(weights=1, loss=2)


def test_costs_of_different_work_do_not_add() -> None:
    with pytest.raises(RequestError, match="same phases"):
        _ = training_cost(ledger(), shaped(ADAMW)) + decode_cost(ledger(), 1, 8)


def test_arithmetic_is_counted_by_hand() -> None:
    found = ledger("llama")
    dims, tokens = found.dims, 2 * 16
    kv = dims.kv_width
    block = dims.hidden_size * (2 * dims.q_width + 2 * kv + 3 * dims.intermediate_size)
    matrices = dims.num_layers * block + dims.vocab_size * dims.hidden_size
    pairs = 2 * 16 * 17 // 2
    attended = dims.num_layers * 4 * dims.q_width * pairs
    assert forward_flops(found, 2, 16) == 2 * matrices * tokens + attended
    full = dims.num_layers * 4 * dims.q_width * 2 * 16 * 16
    assert forward_flops(found, 2, 16, attention="full") == 2 * matrices * tokens + full
    assert backward_flops(found, shaped(ADAMW)) == 4 * matrices * tokens + 2 * attended
    again = 2 * dims.num_layers * block * tokens + attended
    assert backward_flops(found, shaped(ADAMW, checkpoint_every=1)) == 4 * matrices * tokens + 2 * attended + again
    for blocks, share in ((1, 1 / dims.num_layers), (9, 1.0)):
        partly = backward_flops(found, shaped(ADAMW, checkpoint_every=1, checkpoint_blocks=blocks))
        assert partly == 4 * matrices * tokens + 2 * attended + again * share


def test_frozen_weights_have_half_the_backward_arithmetic() -> None:
    found = ledger("llama")
    frozen = replace(found, rows=tuple(replace(row, trainable=row.layout is Layout.VECTOR) for row in found.rows))
    matrices = forward_flops(found, 2, 16) - attention_flops(found.dims, 2, 16)
    extra = backward_flops(found, shaped(ADAMW)) - backward_flops(frozen, shaped(ADAMW))
    assert extra == matrices


def test_only_active_experts_compute() -> None:
    one, two = (ledger("mixtral", experts_per_token=count) for count in (1, 2))
    experts = sum(row.count * math.prod(row.shape) for row in one.rows if row.layout is Layout.EXPERTS)
    assert forward_flops(two, 1, 8) - forward_flops(one, 1, 8) == 2 * 8 * experts / one.dims.num_experts
    assert weight_bytes(one) == weight_bytes(two)
    # A large batch meets all experts, one token only its own.
    alone, many = decode_cost(one, 1, 4), decode_cost(one, 64, 4)
    assert alone.work["decode"].moved_bytes < weight_bytes(one) < many.work["decode"].moved_bytes


def test_tied_weights_count_once_and_compute_twice() -> None:
    tied, apart = ledger("llama", tied_embeddings=True), ledger("llama", tied_embeddings=False)
    head = next(row for row in apart.rows if row.role is Role.HEAD)
    assert weight_bytes(apart) - weight_bytes(tied) == head.bytes
    assert forward_flops(tied, 1, 8) == forward_flops(apart, 1, 8)
    assert backward_flops(tied, shaped(ADAMW)) == backward_flops(apart, shaped(ADAMW))
    reads = (decode_cost(found, 1, 8).work["decode"].moved_bytes for found in (tied, apart))
    assert next(reads) == pytest.approx(next(reads))


def test_accumulation_keeps_gradients_and_multiplies_work() -> None:
    once, twice = (training_cost(ledger(), shaped(ADAMW, accumulation=count)) for count in (1, 2))
    assert once.phases["forward"].gradients == 0
    assert twice.phases["forward"].gradients == gradient_bytes(ledger(), shaped(ADAMW))
    assert twice.work["forward"].flops == 2 * once.work["forward"].flops
    assert twice.work["step"] == once.work["step"]
    assert twice.tokens == 2 * once.tokens


def test_updates_in_the_backward_pass_hold_the_largest_gradient() -> None:
    found, lomo = ledger("llama", vocab_size=5000, tied_embeddings=False), configure("lomo")
    largest = max(math.prod(row.shape) * 4 for row in found.rows)
    once, twice = (training_cost(found, shaped(lomo, clips=clips, device="cpu")) for clips in (False, True))
    plain = training_cost(found, shaped(SGD, device="cpu"))
    for cost, phase in ((once, "backward"), (twice, "backward"), (twice, "step")):
        assert cost.phases[phase].gradients <= largest < plain.phases["step"].gradients
    assert once.phases["step"].gradients == once.phases["step"].activations == 0
    # The first of two passes keeps what was saved for the second.
    assert once.phases["backward"].total <= twice.phases["backward"].total
    assert twice.work["step"].flops == twice.work["backward"].flops == once.work["backward"].flops
    assert once.work["step"].flops == 0 and once.work["step"].launches > plain.work["step"].launches / 3
    assert [any("two backward passes" in note for note in cost.notes) for cost in (once, twice)] == [False, True]
    again = training_cost(found, shaped(lomo, precision="fp16", clips=False))
    assert any("fp16's loss scale" in note for note in again.notes)


def test_updates_in_the_backward_pass_do_not_accumulate() -> None:
    with pytest.raises(RequestError, match="2 micro-batches an update are not possible"):
        shaped(configure("adalomo"), accumulation=2)


def test_cache_is_that_of_transformers() -> None:
    import transformers

    for name in ("llama", "gpt2", "qwen3"):
        model = tiny.model(name)
        cache = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=torch.zeros(3, 20, dtype=torch.long), past_key_values=cache, use_cache=True)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert kv_cache_bytes(ledger(name).dims, 3, 20) == held
    assert kv_cache_bytes(ledger().dims, 3, 20, "float16") * 2 == kv_cache_bytes(ledger().dims, 3, 20)


def test_what_is_unverified_says_so() -> None:
    assert any("unverified" in note for note in training_cost(ledger("t5"), shaped(ADAMW)).notes)
    assert not any("unverified" in note for note in training_cost(ledger("llama"), shaped(ADAMW)).notes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"batch": 1.5},
        {"batch": True},
        {"sequence": -1},
        {"accumulation": 0},
        {"checkpoint_every": -1},
        {"checkpoint_blocks": -1},
        {"precision": "fp8"},
    ],
)
def test_wrong_shapes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        shaped(ADAMW, **wrong)


def test_impossible_requests_are_refused() -> None:
    frozen = replace(ledger(), rows=tuple(replace(row, trainable=False) for row in ledger().rows))
    with pytest.raises(RequestError, match="trainable"):
        training_cost(frozen, shaped(ADAMW))
    with pytest.raises(NotSupported, match="BERT"):
        decode_cost(ledger("bert"), 1, 8)
    with pytest.raises(RequestError, match="context"):
        decode_cost(ledger(), 1, 0)
    with pytest.raises(RequestError, match="dtype"):
        decode_cost(ledger(), 1, 8, cache_dtype="int3")


def test_cards_state_bytes_a_parameter() -> None:
    shape = shaped(ADAMW)
    assert shape.state_bytes((10, 10), "float32") == 2 * 100 * item_bytes("float32") + 4
    assert shaped(configure("checkpointing", every=2)).checkpoint_every == 2
    assert shaped(configure("checkpointing", blocks=3)).checkpoint_blocks == 3
