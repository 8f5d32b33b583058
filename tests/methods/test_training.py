"""Changed models in every precision of our own updates: codes and zeros stay, what is trained moves."""

from __future__ import annotations

import pytest
import torch

from hayless.core.registry import configure
from hayless.model.transform import apply
from hayless.train.precision import arithmetic
from hayless.train.update import make_updater
from tests import tiny
from tests.methods.running import batch, lora_of

PRECISIONS = ("fp32", "autocast", "master", "bf16")


def update(model: torch.nn.Module, precision: str, steps: int = 2) -> None:
    updater = make_updater(model.train(), precision, configure("adamw", learning_rate=1e-2, decay="all"))
    inputs = batch(model)
    for _ in range(steps):
        with arithmetic(precision, torch.device("cpu")):
            loss = model(**inputs, labels=inputs["input_ids"]).loss
        updater.backward(loss)
        updater.begin(1.0, 1.0)
        assert updater.step(updater.norm())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("targets", [("blocks",), ("blocks", "embedding", "head")])
def test_branches_beside_packed_weights(name: str, precision: str, targets: tuple[str, ...]) -> None:
    if name == "gpt2" and len(targets) > 1:
        targets = ("blocks", "position")
    model = tiny.model(name)
    apply(model, [configure("kmeans", bits=3, group_size=8, targets=targets), lora_of(name)])
    codes = {key: value.clone() for key, value in model.named_buffers() if key.endswith("_codes")}
    start = {key: value.detach().clone() for key, value in model.named_parameters() if "lora_B" in key}
    update(model, precision)
    assert codes and all(torch.equal(value, model.get_buffer(key)) for key, value in codes.items())
    assert all(not torch.equal(value, model.get_parameter(key)) for key, value in start.items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_zeros(name: str, precision: str) -> None:
    model = tiny.model(name)
    (change,) = apply(model, [configure("magnitude", sparsity=0.8)])
    before = {key: value.detach() == 0 for key, value in model.named_parameters() if value.ndim > 1}
    assert sum(int(zeros.sum()) for zeros in before.values()) > change.figures["nonzero"]
    update(model, precision)
    for key, zeros in before.items():
        assert bool((model.get_parameter(key)[zeros] == 0).all()), key
