"""Predicted activations against what PyTorch saves, and the predicted peaks' own consistency."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

from hayless.core.activations import VERIFIED, record
from hayless.core.attention import Attention
from hayless.core.compose import predict
from hayless.core.families import dims_of, ledger_of
from hayless.core.forward import RunShape
from hayless.core.ledger import Ledger
from hayless.core.new_rows import only_new_rows
from hayless.core.registry import configure, method_of
from hayless.core.replay import Replay, replay
from hayless.core.roles import Role
from hayless.core.work import forward_work
from hayless.data.batches import Batch
from hayless.measure.activations import SavedActivations, saved_activations
from hayless.methods.memory.checkpointing import CheckpointingConfig
from hayless.methods.memory.recompute import Checkpointing
from hayless.model.attention import VARLEN, attending
from hayless.model.new_tokens import Added
from hayless.model.transform import apply
from hayless.model.vocabulary import training_alone
from hayless.train.attention import varlen
from hayless.train.forward import model_inputs

B, S, V = 4, 96, 160
SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
OPT = {**SHAPE, "ffn_dim": 160, "dropout": 0.0}
GPT2 = {
    "vocab_size": V,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(**GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=32),
    "gemma": lambda: transformers.GemmaConfig(**GROUPED, head_dim=32),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**GROUPED, head_dim=32, query_pre_attn_scalar=32),
    "gpt2": lambda: transformers.GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "gpt2-dropout": lambda: transformers.GPT2Config(**GPT2),
    "opt": lambda: transformers.OPTConfig(**OPT, word_embed_proj_dim=64),
    "opt-350m": lambda: transformers.OPTConfig(**OPT, word_embed_proj_dim=32, do_layer_norm_before=False),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SHAPE),
    "gpt_neox-sequential": lambda: transformers.GPTNeoXConfig(**SHAPE, use_parallel_residual=False),
    "mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=4),
}
TOLERANCE = 0.02


def built(name: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> tuple[Any, Ledger]:
    torch.manual_seed(0)
    config = CONFIGS[name]()
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention).train()
    written = {**config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
    return model, ledger_of(dims_of(written))


def measured(model: Any, autocast: bool = False, **inputs: Any) -> SavedActivations:
    ids, targets = torch.randint(0, V, (2, B, S))

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
            logits = model(input_ids=ids, use_cache=False, **inputs).logits
            return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")

    return saved_activations(model, loss)


def predicted(ledger: Ledger, **options: Any) -> Replay:
    return replay(record(ledger, RunShape(B, S, device="cpu", **options)))


def agree(found: SavedActivations, expected: Replay) -> None:
    saved = expected.saved
    assert saved.activations + saved.loss == pytest.approx(found.bytes, rel=TOLERANCE)
    assert saved.loss == pytest.approx(found.outside(), rel=TOLERANCE)
    assert saved.temporary == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "mixtral"])
def test_saved_tensors(name: str, attention: str, dtype: torch.dtype) -> None:
    model, ledger = built(name, dtype, attention)
    agree(measured(model), predicted(ledger, attention=attention))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "opt", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_autocast(name: str, attention: str) -> None:
    model, ledger = built(name, attention=attention)
    agree(measured(model, autocast=True), predicted(ledger, attention=attention, arithmetic="bfloat16"))


@pytest.mark.parametrize(("every", "blocks"), [(1, 0), (2, 0), (3, 0), (1, 3), (2, 1)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_checkpointing(name: str, every: int, blocks: int) -> None:
    model, ledger = built(name)
    whole = measured(model)
    with Checkpointing.install(model, CheckpointingConfig(every=every, blocks=blocks or None)):
        found = measured(model)
    assert found.bytes < (0.9 if blocks == 1 else 0.8) * whole.bytes
    expected = predicted(ledger, checkpoint_every=every, checkpoint_blocks=blocks).saved
    # A checkpoint keeps its keyword arguments in a closure, where hooks do not see cosines and sines.
    unseen = 2 * S * ledger.dims.head_dim * 4 if name == "llama" and every == 1 and not blocks else 0
    assert expected.activations + expected.loss - unseen == pytest.approx(found.bytes, rel=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_masked_rows(name: str, dtype: torch.dtype) -> None:
    model, ledger = built(name, dtype)
    mask = torch.ones(S, S, dtype=torch.bool).tril().expand(B, 1, S, S).contiguous()
    positions = torch.arange(S).expand(B, S).contiguous()
    agree(measured(model, attention_mask=mask, position_ids=positions), predicted(ledger, masked=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma3_text", "gpt2", "opt", "gpt_neox"])
def test_packed_rows_by_their_lengths(name: str, dtype: torch.dtype) -> None:
    """Queries, keys, values, outputs and a number for each row and head; no mask. Here documents go one by one."""
    model, ledger = built(name, dtype)
    positions = torch.cat([torch.arange(length) for length in (40, 1, 35, 20)]).expand(B, S)
    segments = (positions == 0).cumsum(1)
    batch = Batch(torch.zeros_like(positions), torch.zeros_like(positions), positions, segments, (("a", "b"),) * B)
    with attending(model, VARLEN, varlen):
        inputs = model_inputs(model, batch)
        agree(
            measured(model, **{key: inputs[key] for key in inputs.keys() - {"input_ids", "use_cache"}}),
            predicted(ledger, masked=True, attention="varlen"),
        )


def test_on_a_gpu_lengths_save_what_fused_attention_saves_without_a_mask() -> None:
    _, ledger = built("llama", torch.bfloat16)

    def saved(attention: Attention, **options: Any) -> int:
        return replay(record(ledger, RunShape(B, S, attention=attention, **options))).saved.total

    rotations = 2 * (B - 1) * S * ledger.dims.head_dim * 2
    assert saved("varlen", masked=True) == saved("sdpa") + rotations
    repeated = 2 * B * S * (ledger.dims.q_width - ledger.dims.kv_width) * 2 * ledger.dims.num_layers
    assert saved("sdpa", masked=True) > saved("varlen", masked=True) + repeated


@pytest.mark.parametrize("role", [Role.Q, Role.DOWN, Role.NORM, Role.HEAD])
def test_frozen_weights(role: Role) -> None:
    model, ledger = built("llama")
    names = {Role.Q: "q_proj", Role.DOWN: "down_proj", Role.NORM: "norm", Role.HEAD: "lm_head"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = names[role] in name
    rows = tuple(replace(row, trainable=row.role is role) for row in ledger.rows)
    agree(measured(model), predicted(replace(ledger, rows=rows)))


@pytest.mark.parametrize("methods", [("lora",), ("kmeans", "lora"), ("ia3",), ("prefix",)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_frozen_base_with_adapters(name: str, methods: tuple[str, ...]) -> None:
    model, ledger = built(name)
    configs = [configure(method) for method in methods]
    apply(model, configs)
    model.train()
    agree(measured(model), predicted(predict(ledger, configs)))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_options_of_lora(name: str, autocast: bool) -> None:
    """Lengths beside directions, pairs that began with singular vectors, other ranks in some layers, trained norms."""
    layer = {"llama": "model.layers.1.mlp.up_proj", "gpt2": "h.1.mlp.c_fc"}[name]
    config = configure("lora", dora=True, initial="pissa", ranks={layer: 16, "down": 3}, whole="norm")
    model, ledger = built(name)
    apply(model, [config])
    expected = predicted(predict(ledger, [config]), arithmetic="bfloat16" if autocast else None)
    agree(measured(model.train(), autocast=autocast), expected)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_mixtures_of_loras(name: str, autocast: bool) -> None:
    config = configure("lora_moe", experts=6, rank=8)
    model, ledger = built(name)
    apply(model, [config])
    expected = predicted(predict(ledger, [config]), arithmetic="bfloat16" if autocast else None)
    agree(measured(model.train(), autocast=autocast), expected)


def test_a_mixture_whose_gate_is_frozen() -> None:
    config = configure("lora_moe", experts=6, rank=8, top_k=2, router="arrow", temperature=0.5)
    model, ledger = built("llama")
    method_of(config).load().restore(model, config)
    agree(measured(model.train()), predicted(predict(ledger, [config])))


@pytest.mark.parametrize("form", ["serial", "parallel"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_bottlenecks(name: str, form: str) -> None:
    config = configure("bottleneck", form=form, width=24, activation="relu" if name == "opt" else "gelu")
    model, ledger = built(name)
    apply(model, [config])
    autocast = name == "gpt_neox"
    expected = predicted(predict(ledger, [config]), arithmetic="bfloat16" if autocast else None)
    agree(measured(model.train(), autocast=autocast), expected)


FUSED: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 6},
    "serial": {"method": "bottleneck", "width": 12},
    "parallel": {"method": "bottleneck", "width": 12, "form": "parallel", "activation": "relu"},
}


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_attention_over_modules(name: str, kind: str, value: bool) -> None:
    config = configure("fusion", modules=(FUSED[kind],) * 3, value=value, width=None if value else 24)
    model, ledger = built(name)
    method_of(config).load().restore(model, config)
    autocast = name == "gpt2"
    expected = predicted(predict(ledger, [config]), arithmetic="bfloat16" if autocast else None)
    agree(measured(model.train(), autocast=autocast), expected)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "opt-350m", "gpt_neox"])
def test_rows_of_new_tokens_alone(name: str, autocast: bool) -> None:
    model, ledger = built(name)
    added = Added(("one", "other", "third"), 20, ((), (), ()))
    expected = predicted(only_new_rows(ledger, 3), arithmetic="bfloat16" if autocast else None)
    with training_alone(model, added):
        agree(measured(model, autocast=autocast), expected)
    assert expected.backward.gradients <= 2 * 3 * 64 * 4


def test_experts_are_close_though_not_listed_as_verified() -> None:
    model, ledger = built("mixtral")
    assert "mixtral" not in VERIFIED
    agree(measured(model), predicted(ledger))


def test_verified_families_are_those_tested() -> None:
    assert {ledger_of(dims_of(CONFIGS[name]().to_dict())).dims.model_type for name in CONFIGS} - {"mixtral"} == VERIFIED


def test_a_storage_counts_once_and_parameters_never() -> None:
    layer = torch.nn.Linear(8, 8, bias=False)
    x = torch.randn(4, 8, requires_grad=True)

    def loss() -> torch.Tensor:
        y = layer(x)
        return (y * y.view(8, 4).view(4, 8) + layer(x)).sum()

    # x is saved by both products and y by the square: two storages, in which the weight is not.
    assert saved_activations(layer, loss).bytes == 2 * 4 * 8 * 4


def test_peaks_are_ordered() -> None:
    _, ledger = built("llama")
    whole, again = predicted(ledger), predicted(ledger, checkpoint_every=1)
    assert whole.saved.total <= whole.backward.total and whole.saved.total <= whole.forward.total
    assert again.backward.total < whole.backward.total
    every_gradient = sum(row.bytes for row in ledger.rows if row.trainable)
    assert whole.backward.gradients <= every_gradient
    accumulating = replay(record(ledger, RunShape(B, S)), gradients=every_gradient)
    assert accumulating.forward.gradients == accumulating.backward.gradients == every_gradient


def test_nothing_is_saved_without_training() -> None:
    _, ledger = built("llama")
    found = predicted(ledger, training=False)
    assert found.saved.total == found.backward.total == 0
    assert 0 < found.forward.total < predicted(ledger).forward.total


def test_packed_rows_are_looked_up_and_not_kept() -> None:
    _, ledger = built("llama")
    packed = predict(ledger, [configure("kmeans", bits=4), configure("lora", rank=8)])
    plain = predict(ledger, [configure("lora", rank=8)])
    assert predicted(packed).saved == predicted(plain).saved
    shape = RunShape(B, S)
    assert forward_work(record(packed, shape)).moved_bytes > forward_work(record(plain, shape)).moved_bytes
