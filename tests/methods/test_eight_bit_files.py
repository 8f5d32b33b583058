"""8-bit models on disk: in bitsandbytes' and compressed-tensors' layouts where those have one, in ours elsewhere."""

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
from tests import tiny
from tests.methods.running import batch, check_held, logits, predicted
from tests.methods.test_saved import generated
from tests.model.saving import check_same, edit_config, edit_tensors

ATTENTION = ("q", "k", "v", "o")
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("int8", "llama", {}),
    ("int8", "gpt2", {"threshold": 4.5}),
    ("int8", "mixtral", {"targets": ATTENTION}),
    ("fp8", "llama-tied", {}),
    ("fp8", "gpt_neox", {"targets": ("attention", "head")}),
]


def packed(method: str, name: str, **options: Any) -> tuple[PreTrainedModel, MethodConfig]:
    model, config = tiny.model(name), configure(method, **options)
    apply(model, [config])
    return model, config


@pytest.mark.parametrize(("method", "name", "options"), CASES)
def test_a_folder_that_other_libraries_read(method: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, config = packed(method, name, **options)
    ledger = predicted(model, [config])
    save_model(model, tmp_path / "model")
    found = json.loads((tmp_path / "model" / "config.json").read_text())
    library = {"int8": "bitsandbytes", "fp8": "compressed-tensors"}[method]
    assert found["model_type"] == model.config.model_type
    assert found["quantization_config"]["quant_method"] == library
    assert file_bytes(tmp_path / "model").weights == ledger.file_bytes()["model"]
    check_same(model, load_model(tmp_path / "model"))
    # As another tool would have written it: without our record.
    edit_config(tmp_path / "model", remove=("hayless",))
    back = load_model(tmp_path / "model")
    check_held(back, ledger)
    check_same(model, back)
    assert predicted(back, record(back)) == predicted(back, [config])
    assert getattr(record(back)[0], "threshold", 6.0) == options.get("threshold", 6.0)
    save_model(back, tmp_path / "again")
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("model", "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("method", "name"), [("int8", "mixtral"), ("int8", "t5"), ("fp8", "gpt2"), ("fp8", "mixtral")])
def test_what_they_cannot_hold_is_in_our_layout(method: str, name: str, tmp_path: Path) -> None:
    model, config = packed(method, name)
    save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "hayless"
    assert file_bytes(tmp_path / "model").weights == predicted(model, [config]).file_bytes()["model"]
    check_same(model, load_model(tmp_path / "model"))


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixtral"])
@pytest.mark.parametrize("method", ["int8", "fp8"])
def test_models_generate_the_same_after_a_save(method: str, name: str, tmp_path: Path) -> None:
    model, _ = packed(method, name)
    save_model(model, tmp_path / "model")
    back = load_model(tmp_path / "model")
    assert torch.equal(logits(back), logits(model))
    assert torch.equal(generated(back), generated(model))


def test_scales_stored_in_16_bits_are_read(tmp_path: Path) -> None:
    model, _ = packed("fp8", "llama")
    save_model(model, tmp_path / "model")
    edit_config(tmp_path / "model", remove=("hayless",))

    def narrow(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith("weight_scale")]:
            tensors[name] = tensors[name].bfloat16()

    edit_tensors(tmp_path / "model", narrow)
    back = load_model(tmp_path / "model").model.layers[0].mlp.up_proj
    assert back.weight_scale.dtype is torch.float32
    assert torch.equal(back.weight_scale, model.model.layers[0].mlp.up_proj.weight_scale.bfloat16().float())


MODULE = "model.layers.1.self_attn.q_proj"


def _unpacked(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith(f"{MODULE}.")]:
        tensors.pop(name)
    tensors[f"{MODULE}.weight"] = torch.zeros(32, 32)


def _cut(tensors: dict[str, Any]) -> None:
    for name in ("SCB", "weight_scale"):
        if f"{MODULE}.{name}" in tensors:
            tensors[f"{MODULE}.{name}"] = tensors[f"{MODULE}.{name}"][1:]


def _other_layout(tensors: dict[str, Any]) -> None:
    tensors[f"{MODULE}.weight_format"] = torch.tensor(2, dtype=torch.uint8)


def _none(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.endswith((".SCB", ".weight_format"))]:
        tensors.pop(name)


def test_folders_that_cannot_be_honoured(tmp_path: Path) -> None:
    wholes = {method: tmp_path / method for method in ("int8", "fp8")}
    fields: dict[str, Any] = {}
    for method, folder in wholes.items():
        save_model(packed(method, "llama")[0], folder)
        fields[method] = json.loads((folder / "config.json").read_text())["quantization_config"]
    group = fields["fp8"]["config_groups"]["group_0"]
    still = {**group["input_activations"], "dynamic": False}
    for number, (method, changes, change, error, words) in enumerate(
        [
            ("int8", {"bnb_5bit": True}, None, NotSupported, "bnb_5bit"),
            ("int8", {}, _unpacked, NotSupported, f"left {MODULE}"),
            ("int8", {}, _cut, FileDamaged, f"scale of {MODULE}"),
            ("int8", {}, _other_layout, NotSupported, "weight_format 2"),
            ("int8", {}, _none, NotSupported, "none of this folder's are"),
            ("fp8", {}, _cut, FileDamaged, f"scale of {MODULE}"),
            ("fp8", {"format": "nvfp4-pack-quantized"}, None, NotSupported, "No method here reads"),
            ("fp8", {"config_groups": {"one": {**group, "input_activations": still}}}, None, NotSupported, "dynamic"),
            ("fp8", {"config_groups": {"one": group, "two": group}}, None, NotSupported, "more than one group"),
            ("fp8", {"kv_cache_scheme": {"num_bits": 8}}, None, NotSupported, "kv_cache_scheme"),
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(wholes[method], folder)
        edit_config(folder, remove=("hayless",), quantization_config={**fields[method], **changes})
        if change is not None:
            edit_tensors(folder, change)
        with pytest.raises(error, match=words):
            load_model(folder)


def _large(folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {**tiny._GROUPED, "hidden_size": 128, "intermediate_size": 192}
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).eval()
    plain.save_pretrained(folder)
    return plain


def test_with_bitsandbytes_itself(tmp_path: Path) -> None:
    """Its folder and ours hold the same bytes, and each reads the other's."""
    pytest.importorskip("bitsandbytes")
    plain = _large(tmp_path / "plain")
    wanted = transformers.BitsAndBytesConfig(load_in_8bit=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=wanted, dtype=torch.float32
    )
    theirs.save_pretrained(tmp_path / "theirs")
    apply(plain, [configure("int8")])
    read = load_model(tmp_path / "theirs")
    save_model(read, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    for name, buffer in read.named_buffers():
        if name.endswith("_codes"):
            # It multiplies in another order, so that a few numbers between two codes take the other.
            assert (buffer.int() - plain.get_buffer(name).int()).abs().max() <= 1
            module = again.get_submodule(name.rpartition(".")[0])
            assert torch.equal(module.weight.data if module.state.CB is None else module.state.CB, buffer)
    with torch.no_grad():
        expected = theirs(**batch(theirs)).logits
        assert torch.equal(again(**batch(again)).logits, expected)
    # Inputs are rounded to 16 bits there.
    assert (logits(read) - expected).norm() < 0.01 * expected.norm()


def test_with_compressed_tensors_itself(tmp_path: Path) -> None:
    """It reads our folder, with the weights that we show."""
    pytest.importorskip("compressed_tensors")
    ours = _large(tmp_path / "plain")
    apply(ours, [configure("fp8")])
    save_model(ours, tmp_path / "ours")
    edit_config(tmp_path / "ours", remove=("hayless",))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    module = theirs.model.layers[1].mlp.down_proj
    shown = ours.model.layers[1].mlp.down_proj
    assert torch.equal(module.weight_scale.float().flatten(), shown.weight_scale)
    assert torch.equal(module.weight.float(), shown.weight_codes.float())
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch(theirs)).logits, logits(ours), rtol=0.02, atol=5e-3)
