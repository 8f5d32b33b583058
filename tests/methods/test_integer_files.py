"""Packed integers in the layouts of compressed-tensors, GPTQ and AutoAWQ: both ways, and what cannot be honoured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hayless.core.errors import FileDamaged, HaylessError, NotSupported
from hayless.core.ledger import Layout
from hayless.core.registry import configure
from hayless.measure.files import file_bytes
from hayless.methods.common.integer_packing import IntegerPacking, rounded
from hayless.methods.common.integers import IntegerFormat
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import Context, apply, record
from tests import tiny
from tests.methods.running import check_held, predicted
from tests.methods.test_gptq import text
from tests.model.saving import check_same, edit_config, edit_tensors

WIDE = ("attention", "gate", "up")
CASES: list[dict[str, Any]] = [
    {"bits": 4, "group_size": 32, "targets": WIDE},
    {"bits": 8, "group_size": "row", "symmetric": False},
    {"bits": 4, "group_size": 32, "targets": WIDE, "symmetric": False, "disk_layout": "gptq"},
    {"bits": 8, "group_size": "row", "disk_layout": "gptq_v1"},
    {"bits": 4, "group_size": "row", "symmetric": False, "disk_layout": "awq"},
]


@pytest.mark.parametrize("options", CASES, ids=lambda options: f"{options.get('disk_layout', '')}-{options['bits']}")
def test_a_folder_that_other_libraries_read(options: dict[str, Any], tmp_path: Path) -> None:
    model, config = tiny.model("llama"), configure("uniform", **options)
    apply(model, [config])
    ledger = predicted(model, [config])
    save_model(model, tmp_path / "model")
    found = json.loads((tmp_path / "model" / "config.json").read_text())
    library = options.get("disk_layout", "compressed-tensors").removesuffix("_v1")
    assert found["model_type"] == "llama" and found["quantization_config"]["quant_method"] == library
    assert file_bytes(tmp_path / "model").weights == ledger.file_bytes()["model"]
    check_same(model, load_model(tmp_path / "model"))
    # As another tool would have written it: without our record.
    edit_config(tmp_path / "model", remove=("hayless",))
    back = load_model(tmp_path / "model")
    check_held(back, ledger)
    check_same(model, back)
    assert predicted(back, record(back)) == predicted(back, [config])
    save_model(back, tmp_path / "again")
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("model", "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_weights_are_in_the_same_files(method: str, tmp_path: Path) -> None:
    model = tiny.model("mistral")
    apply(model, [configure(method, group_size=32, targets=WIDE)], Context(calibration=text()))
    save_model(model, tmp_path / "model")
    found = json.loads((tmp_path / "model" / "config.json").read_text())
    assert found["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] is (method == "gptq")
    check_same(model, load_model(tmp_path / "model"))
    edit_config(tmp_path / "model", remove=("hayless",))
    back = load_model(tmp_path / "model")
    check_same(model, back)
    assert [config.method for config in record(back)] == ["uniform"]


def test_two_settings_name_their_modules(tmp_path: Path) -> None:
    model = tiny.model("llama")
    apply(model, [configure("uniform", bits=8, group_size="row", targets="v")])
    apply(model, [configure("uniform", bits=4, group_size=32, targets="q")])
    save_model(model, tmp_path / "model")
    groups = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert [group["weights"]["num_bits"] for group in groups.values()] == [8, 4]
    assert groups["group_1"]["targets"] == [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    check_same(model, load_model(tmp_path / "model"))
    edit_config(tmp_path / "model", remove=("hayless",))
    with pytest.raises(NotSupported, match="one group of modules"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"bits": 3}),
        ("llama", {"group_size": 32}),
        ("llama", {"group_size": "tensor"}),
        ("gpt2", {}),
        ("mixtral", {}),
        ("llama", {"bits": 2, "twos_complement": True, "group_size": "row"}),
    ],
)
def test_what_they_cannot_hold_is_in_our_layout(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny.model(name)
    apply(model, [configure("uniform", **options)])
    save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "hayless"
    check_same(model, load_model(tmp_path / "model"))


def test_layouts_are_as_their_libraries_have_them() -> None:
    weight = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0))

    def form(**options: Any) -> IntegerFormat:
        settings = {"bits": 4, "group_size": 32, "symmetric": False, **options}
        return IntegerFormat(shape=(16, 64), layout=Layout.LINEAR, **settings)

    pieces = rounded(weight, form())
    codes = torch.stack([pieces["codes"] & 15, pieces["codes"] >> 4], dim=-1).flatten(1).long()
    zero = pieces["zero"].long()
    found = {files: IntegerPacking(form(disk_layout=files)).to_disk(pieces, torch.float32) for files in ("gptq", "awq")}
    first = IntegerPacking(form(disk_layout="gptq_v1"))
    word = found["gptq"]["qweight"][1, 5].item() & 0xFFFFFFFF
    assert [word >> 4 * place & 15 for place in range(8)] == codes[5, 8:16].tolist()
    word = found["gptq"]["qzeros"][1, 0].item() & 0xFFFFFFFF
    assert [word >> 4 * place & 15 for place in range(8)] == zero[:8, 1].tolist()
    less_one = first.to_disk(pieces, torch.float32)["qzeros"][1, 0].item() & 0xFFFFFFFF
    assert [less_one >> 4 * place & 15 for place in range(8)] == (zero[:8, 1] - 1).tolist()
    word = found["awq"]["qweight"][9, 1].item() & 0xFFFFFFFF
    assert [word >> 4 * place & 15 for place in range(8)] == codes[[8, 10, 12, 14, 9, 11, 13, 15], 9].tolist()
    assert torch.equal(found["gptq"]["scales"], pieces["scale"].T)
    with pytest.raises(NotSupported, match="zero of 0"):
        first.to_disk({**pieces, "zero": torch.zeros_like(pieces["zero"])}, torch.float32)
    scattered = {**found["gptq"], "g_idx": found["gptq"]["g_idx"].flip(0)}
    with pytest.raises(NotSupported, match="not neighbours"):
        IntegerPacking(form(disk_layout="gptq")).from_disk(scattered, "q_proj")


def _edited(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    found = json.loads(path.read_text())
    for name, value in fields.items():
        place = found["quantization_config"]
        *outer, last = name.split("__")
        for key in outer:
            place = place[key]
        place[last] = value
    path.write_text(json.dumps(found))
    edit_config(folder, remove=("hayless",))


@pytest.mark.parametrize(
    ("files", "fields", "said"),
    [
        ("compressed-tensors", {"config_groups__group_0__weights__actorder": "group"}, "neighbouring inputs"),
        ("compressed-tensors", {"config_groups__group_0__weights__num_bits": 6}, "6 bits"),
        ("compressed-tensors", {"config_groups__group_0__weights__type": "float"}, "integers"),
        ("compressed-tensors", {"config_groups__group_0__weights__strategy": "block"}, "block"),
        ("compressed-tensors", {"config_groups__group_0__input_activations": {"num_bits": 8}}, "Only weights"),
        ("compressed-tensors", {"strange": 1}, "strange"),
        ("gptq", {"checkpoint_format": "marlin"}, "marlin"),
        ("gptq", {"sym": True}, "its zeros say that it is not"),
        ("awq", {"version": "gemv"}, "gemv"),
        ("awq", {"bits": 8}, "8 bits"),
    ],
)
def test_folders_that_cannot_be_honoured(files: str, fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = tiny.model("llama")
    apply(model, [configure("uniform", group_size="row", symmetric=False, disk_layout=files)])
    save_model(model, tmp_path / "model")
    _edited(tmp_path / "model", **fields)
    with pytest.raises(HaylessError, match=said):
        load_model(tmp_path / "model")


def test_tensors_of_other_shapes_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny.model("llama")
    apply(model, [configure("uniform", group_size="row")])
    save_model(model, tmp_path / "model")

    def cut(tensors: dict[str, Any]) -> None:
        name = "model.layers.1.self_attn.q_proj.weight_packed"
        tensors[name] = tensors[name][:, 1:].contiguous()

    edit_tensors(tmp_path / "model", cut)
    with pytest.raises(FileDamaged, match=r"layers\.1\.self_attn\.q_proj.*weight_packed"):
        load_model(tmp_path / "model")
