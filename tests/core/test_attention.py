"""Which attention a run trains with, and why not another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hayless.core.attention import attention_for, varlen_refusal
from hayless.core.cost import TrainShape, training_cost
from hayless.core.dims import ModelDims
from hayless.core.errors import NotSupported, RequestError
from hayless.core.families import dims_of, ledger_of
from tests import tiny


def dims(name: str) -> ModelDims:
    return dims_of(tiny.config(name).to_dict())


def chosen(
    wanted: str, shape: ModelDims, arithmetic: str = "bfloat16", device: str = "cuda", packed: bool = True
) -> str:
    return attention_for(wanted, shape, arithmetic=arithmetic, device=device, packed=packed)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma3", "opt", "gpt_neox", "mixtral", "qwen3_moe"])
def test_auto_takes_lengths_where_rows_are_packed_and_the_kernel_serves(name: str) -> None:
    shape = replace(dims(name), head_dim=64)
    assert chosen("auto", shape) == chosen("auto", shape, "float16") == "varlen"
    assert chosen("auto", shape, "float32") == "sdpa"
    assert chosen("auto", shape, device="cpu") == chosen("auto", shape, device="mps") == "sdpa"
    assert chosen("auto", shape, packed=False) == "sdpa"
    assert chosen("eager", shape) == "eager" and chosen("sdpa", shape) == "sdpa"
    assert chosen("varlen", shape, "float32", device="cpu") == "varlen"


@pytest.mark.parametrize(
    ("name", "changes", "arithmetic", "reason"),
    [
        ("llama", {}, "float32", "16 bits, not in float32"),
        ("gpt2", {}, "bfloat16", "no dropout of attention, the model has 0.1"),
        ("llama", {"head_dim": 20}, "bfloat16", "multiples of 8, not of 20"),
        ("llama", {"head_dim": 512}, "bfloat16", "up to 256"),
    ],
)
def test_what_the_kernel_does_not_do_is_refused_and_auto_does_without(name, changes, arithmetic, reason) -> None:
    shape = replace(dims(name), **changes)
    with pytest.raises(RequestError, match=reason):
        chosen("varlen", shape, arithmetic)
    assert attention_for("auto", shape, arithmetic=arithmetic, device="cuda", packed=True)[0] == "sdpa"
    assert chosen("varlen", shape, arithmetic, device="cpu") == "varlen"


def test_older_gpus_do_without() -> None:
    known = {"arithmetic": "float16", "device": "cuda", "packed": True}
    assert attention_for("auto", dims("llama"), **known, capability=9)[0] == "varlen"
    found, why = attention_for("auto", dims("llama"), **known, capability=7)
    assert found == "sdpa" and "this one has 7" in why
    with pytest.raises(RequestError, match="compute capability 8 and above"):
        attention_for("varlen", dims("llama"), **known, capability=7)


@pytest.mark.parametrize("name", ["bert", "t5", "t5-gated"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_encoders_are_refused_by_name(name: str, device: str) -> None:
    with pytest.raises(NotSupported, match=f"{dims(name).model_type} is no decoder"):
        chosen("varlen", dims(name), device=device)
    assert chosen("auto", dims(name), device=device) == "sdpa"


def test_models_that_cap_their_scores_stay_eager() -> None:
    assert chosen("auto", dims("gemma2")) == chosen("eager", dims("gemma2")) == "eager"
    for wanted in ("sdpa", "varlen"):
        with pytest.raises(NotSupported, match="gemma2 caps its scores"):
            chosen(wanted, dims("gemma2"), device="cpu")


def test_the_rule_decides_what_training_is_predicted_to_hold() -> None:
    config = tiny.config("llama")
    config.max_position_embeddings, config.vocab_size = 512, 128
    ledger = ledger_of(dims_of(config.to_dict()))
    shape = TrainShape(4, 512, precision="bf16", masked=True)
    auto, varlen, sdpa = (
        training_cost(ledger, replace(shape, attention=name)).peak.total for name in ("auto", "varlen", "sdpa")
    )
    assert auto == varlen < sdpa
    assert training_cost(ledger, replace(shape, precision="fp32")).notes[0].startswith("attention: sdpa")
    with pytest.raises(RequestError, match="16 bits"):
        training_cost(ledger, replace(shape, precision="fp32", attention="varlen"))
    assert not varlen_refusal(ledger.dims, "bfloat16", "cuda")
