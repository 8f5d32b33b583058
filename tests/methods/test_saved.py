"""Changed models on disk: predicted bytes are the file's, and what comes back is the same to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from hayless.measure.files import file_bytes
from hayless.model.transform import apply, record
from tests import tiny
from tests.methods.running import check_held, logits, lora_of, losses, predicted

load_model = pytest.importorskip("hayless.model.load").load_model
save_model = pytest.importorskip("hayless.model.save").save_model

METHODS = ("kmeans", "magnitude", "lora", "all")


def configs_of(name: str, which: str) -> list[MethodConfig]:
    """The configs of one method, or of all three together."""
    found = {
        "kmeans": configure("kmeans", bits=3, group_size=5, iterations=3),
        "magnitude": configure("magnitude", sparsity=0.6),
        "lora": lora_of(name, rank=3, alpha=6),
    }
    if which == "all":
        return [found["magnitude"], found["kmeans"], found["lora"]]
    return [found[which]]


@torch.no_grad()
def generated(model: nn.Module) -> torch.Tensor:
    """Six tokens after a fixed prompt, greedily."""
    ids = torch.tensor([[3, 4, 5]])
    return model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)


@pytest.mark.parametrize("name", tiny.CAUSAL)
@pytest.mark.parametrize("which", METHODS)
def test_what_comes_back_is_the_same(name: str, which: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    configs = configs_of(name, which)
    apply(model, configs)
    if which != "magnitude":
        losses(model, steps=1)
    save_model(model, tmp_path / "model")
    back = load_model(str(tmp_path / "model"))
    check_held(back, predicted(model, configs))
    assert [config.method for config in record(back)] == [config.method for config in configs]
    assert torch.equal(logits(back), logits(model))
    assert torch.equal(generated(back), generated(model))


@pytest.mark.parametrize("name", tiny.NAMES)
@pytest.mark.parametrize("which", METHODS)
def test_predicted_bytes_are_the_files(name: str, which: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    configs = configs_of(name, which)
    apply(model, configs)
    save_model(model, tmp_path / "model")
    files = predicted(model, configs).file_bytes()
    found = file_bytes(tmp_path / "model")
    assert found.adapter == files.get("adapter", 0)
    if which != "lora":
        assert found.weights == files["model"]


def test_zeros_stay_after_loading(tmp_path: Path) -> None:
    model = tiny.model("llama")
    apply(model, configs_of("llama", "magnitude"))
    save_model(model, tmp_path / "model")
    back = load_model(str(tmp_path / "model"))
    zeros = {key: value.detach() == 0 for key, value in back.named_parameters() if value.ndim > 1}
    losses(back, steps=2)
    assert sum(int(mask.sum()) for mask in zeros.values())
    assert all(torch.equal(back.get_parameter(key) == 0, mask) for key, mask in zeros.items())
