"""4-bit models on disk: bitsandbytes' layout where it has one, ours where it has none, and folders of others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from hayless.core.errors import FileDamaged, NotSupported
from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from hayless.measure.files import file_bytes
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import apply, record
from hayless.recipe.prediction import predict
from hayless.recipe.schema import Recipe
from tests import tiny
from tests.methods.running import batch, check_held, logits, predicted
from tests.model.saving import check_same, edit_config, edit_tensors

ATTENTION = ("q", "k", "v", "o")
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama-tied", {"type": "fp4", "double": False}),
    ("gpt2", {"block_size": 128}),
    ("gpt_neox", {"targets": ("attention", "head")}),
    ("mixtral", {"targets": ATTENTION}),
]


def packed(name: str, **options: Any) -> tuple[PreTrainedModel, MethodConfig]:
    model, config = tiny.model(name), configure("nf4", **options)
    apply(model, [config])
    return model, config


def foreign(model: PreTrainedModel, folder: Path) -> Path:
    """The folder as another tool would have written it: without our record."""
    save_model(model, folder)
    edit_config(folder, remove=("hayless",))
    return folder


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_folder_of_bitsandbytes(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, config = packed(name, **options)
    ledger = predicted(model, [config])
    save_model(model, tmp_path / "model")
    found = json.loads((tmp_path / "model" / "config.json").read_text())
    assert found["model_type"] == model.config.model_type and found["quantization_config"]["load_in_4bit"]
    assert file_bytes(tmp_path / "model").weights == ledger.file_bytes()["model"]
    check_same(model, load_model(tmp_path / "model"))
    edit_config(tmp_path / "model", remove=("hayless",))
    back = load_model(tmp_path / "model")
    check_held(back, ledger)
    check_same(model, back)
    assert predicted(back, record(back)) == predicted(back, [config])
    save_model(back, tmp_path / "again")
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("model", "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("name", "options"), [("mixtral", {}), ("llama", {"type": "int4"}), ("t5", {})])
def test_what_bitsandbytes_cannot_hold_is_in_our_layout(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, config = packed(name, **options)
    save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "hayless"
    assert file_bytes(tmp_path / "model").weights == predicted(model, [config]).file_bytes()["model"]
    check_same(model, load_model(tmp_path / "model"))


def test_another_dtype_is_noted_in_each_weight(tmp_path: Path) -> None:
    model, config = packed("llama")
    save_model(model, tmp_path / "model", dtype="bfloat16")
    back = load_model(tmp_path / "model")
    assert back.dtype == torch.bfloat16
    check_held(back, predicted(back, [config]))
    narrow = model.to(torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, narrow[name]) for name, tensor in back.state_dict().items())
    assert file_bytes(tmp_path / "model").weights == predicted(back, [config]).file_bytes()["model"]


def test_a_recipe_knows_what_a_foreign_folder_holds(tmp_path: Path) -> None:
    model, config = packed("llama")
    folder = foreign(model, tmp_path / "model")
    found = predict(Recipe.model_validate({"name": "x", "model": str(folder), "steps": ["save"]}))
    assert found.figures["file_bytes"] == file_bytes(folder).weights
    assert found.ledger == predicted(model, [config])


def test_foreign_folders_that_cannot_be_honoured(tmp_path: Path) -> None:
    model, _ = packed("llama")
    save_model(model, tmp_path / "whole")
    found = json.loads((tmp_path / "whole" / "config.json").read_text())["quantization_config"]
    module = "model.layers.1.self_attn.q_proj"

    def plain(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith(f"{module}.weight")]:
            tensors.pop(name)
        tensors[f"{module}.weight"] = torch.zeros(32, 32)

    def other(tensors: dict[str, Any]) -> None:
        tensors[f"{module}.weight.quant_map"][3] = 0.5

    def cut(tensors: dict[str, Any]) -> None:
        tensors[f"{module}.weight.absmax"] = tensors[f"{module}.weight.absmax"][1:]

    def spare(tensors: dict[str, Any]) -> None:
        tensors["model.spare"] = torch.zeros(1)

    for number, (fields, change, error, words) in enumerate(
        [
            ({"quant_method": "awq"}, None, NotSupported, "awq"),
            ({**found, "bnb_5bit": True}, None, NotSupported, "bnb_5bit"),
            ({**found, "load_in_4bit": False, "_load_in_4bit": False}, None, NotSupported, "bitsandbytes"),
            (found, plain, NotSupported, f"left {module}"),
            (found, other, NotSupported, "quant_map"),
            (found, cut, FileDamaged, f"absmax of {module}"),
            (found, spare, FileDamaged, r"model\.spare"),
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        edit_config(folder, remove=("hayless",), quantization_config=fields)
        if change is not None:
            edit_tensors(folder, change)
        with pytest.raises(error, match=words):
            load_model(folder)


def test_codes_under_another_dtype_are_the_same_bytes(tmp_path: Path) -> None:
    model, _ = packed("llama")
    folder = foreign(model, tmp_path / "model")

    def stored(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            tensors[name] = tensors[name].view(-1).view(torch.bfloat16)[:, None].contiguous()

    edit_tensors(folder, stored)
    check_same(model, load_model(folder))


def test_with_bitsandbytes_itself(tmp_path: Path) -> None:
    """Its modules compute what ours do, from our folder; and a folder of its own comes back to the bit."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    shape = {**tiny._GROUPED, "hidden_size": 128, "intermediate_size": 192}
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()
    plain.save_pretrained(tmp_path / "plain")
    wanted = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=wanted)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    save_model(ours, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    with torch.no_grad():
        # In training mode it unpacks weights to float32; in evaluation its CPU kernel computes in bfloat16.
        for model in (theirs, again):
            assert torch.equal(model.train()(**batch(model)).logits, logits(ours))
