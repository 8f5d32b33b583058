"""PEFT's files both ways: the real peft reads what we write and writes what we read, with equal logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hayless.core.errors import FileDamaged, NotSupported
from hayless.core.registry import configure, method_of
from hayless.methods.adapters.lora import peft_config
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import batch, logits, lora_of, predicted

LORA = method_of(configure("lora")).load()


def randomized(model: nn.Module) -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)


@torch.no_grad()
def outputs(model: nn.Module, base: Any) -> torch.Tensor:
    return model.eval()(**batch(base)).logits


@pytest.mark.parametrize("name", tiny.NAMES)
def test_peft_reads_what_we_write(name: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    config = lora_of(name, rank=3, alpha=7, rslora="tied" in name, dropout=0.1)
    apply(model, [config])
    randomized(model)
    files = LORA.export(model, config)
    (tmp_path / "adapter_config.json").write_text(json.dumps(files.config))
    save_file(files.tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "adapter_model.safetensors").stat().st_size == predicted(model, [config]).file_bytes()["adapter"]
    loaded = peft.PeftModel.from_pretrained(tiny.model(name), tmp_path)
    assert torch.equal(outputs(loaded, model), logits(model))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    ("llama", {"target_modules": "all-linear", "use_rslora": True}),
    ("llama", {"target_modules": ["model.layers.1.mlp.down_proj", "k_proj"]}),
    ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"]}),
    ("gpt_neox", {"target_modules": ["query_key_value", "dense"]}),
    ("opt", {"target_modules": ["q_proj", "fc1"], "init_lora_weights": "gaussian"}),
    ("mixtral", {"target_modules": ["q_proj", "o_proj"]}),
    ("t5", {"target_modules": ["q", "v"]}),
    ("bert", {"target_modules": ["query"], "lora_dropout": 0.1}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_we_read_what_peft_writes(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = tiny.model(name)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, **options))
    randomized(theirs)
    theirs.save_pretrained(tmp_path)
    config = LORA.read(json.loads((tmp_path / "adapter_config.json").read_text()))
    model = tiny.model(name)
    LORA.restore(model, config)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    LORA.load(model, config, tensors)
    assert torch.equal(logits(model), outputs(theirs, model))
    again = LORA.export(model, config)
    assert again.tensors.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[key]) for key, value in again.tensors.items())
    assert peft_config.read(again.config).rank == 4


def test_a_bfloat16_base_computes_as_under_peft_to_rounding(tmp_path: Path) -> None:
    base = tiny.model("llama").to(torch.bfloat16)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    randomized(theirs)
    theirs.save_pretrained(tmp_path)
    config = LORA.read(json.loads((tmp_path / "adapter_config.json").read_text()))
    model = tiny.model("llama").to(torch.bfloat16)
    LORA.restore(model, config)
    LORA.load(model, config, load_file(tmp_path / "adapter_model.safetensors"))
    # PEFT copies x to float32 for its branches; here they are rounded as the base's products are.
    torch.testing.assert_close(logits(model), outputs(theirs, model), rtol=2e-2, atol=1e-2)


PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modules_to_save", "all"),
        ("rank_pattern", {r".*\.layers\.[01]\.q_proj": 2}),
        ("alpha_pattern", {"(q|v)_proj": 2}),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("layers_to_transform", [0]),
        ("layers_pattern", "layers"),
        ("exclude_modules", ["k_proj"]),
        ("target_parameters", ["mlp.experts.down_proj"]),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 1]]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("use_qalora", True),
        ("megatron_config", {"a": 1}),
        ("a_field_of_tomorrow", 3),
        ("peft_type", "IA3"),
        ("target_modules", r".*\.(q|v)_proj"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(NotSupported, match=field if field != "peft_type" else "IA3"):
        LORA.read({**PLAIN, field: value})


def test_a_config_without_rank_is_damaged() -> None:
    with pytest.raises(FileDamaged, match="lora_alpha"):
        LORA.read({key: value for key, value in PLAIN.items() if key != "lora_alpha"})


def test_every_field_of_pefts_own_config_is_known() -> None:
    """A config that PEFT writes with defaults is read; so a new field with an effect shows here."""
    assert LORA.read(peft.LoraConfig(target_modules=["q_proj"]).to_dict() | {"target_modules": ["q_proj"]}).rank == 8
