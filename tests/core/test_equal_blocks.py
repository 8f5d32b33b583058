"""Equal blocks are recorded a few times and counted as often as there are: no figure of a plan changes."""

from __future__ import annotations

from typing import Any

import pytest

from hayless.core.compose import compose, predict
from hayless.core.cost import Cost, TrainShape, training_cost
from hayless.core.families import dims_of, ledger_of
from hayless.core.forward import Run
from hayless.core.method import Part
from hayless.core.registry import configure, method_of
from hayless.plan.memory import methods_named
from tests import tiny

LAYERS = 11
WAYS = (
    ("full", "master", 2),
    ("full+checkpointing(blocks=6)+offload+chunked_loss", "bf16", 1),
    ("full+checkpointing(keep=products)", "autocast", 1),
    ("full+checkpointing(every=2)", "bf16", 1),
    ("nf4+lora+checkpointing+offload", "bf16", 1),
    ("lomo", "fp16", 1),
    ("adalomo+fused_kernels", "bf16", 1),
)


def cost_of(family: str, way: str, precision: str, accumulation: int) -> Cost:
    config: dict[str, Any] = tiny.config(family).to_dict()
    config["n_layer" if family == "gpt2" else "num_hidden_layers"] = LAYERS
    config.pop("layer_types", None)
    found = methods_named(way)
    transforms = [method for method in found if method_of(method).part is Part.TRANSFORM]
    shape = TrainShape(2, 24, accumulation=accumulation, precision=precision)
    for method in (configure("adamw"), *(method for method in found if method not in transforms)):
        shape = method_of(method).predict_training(shape, method)
    return training_cost(predict(ledger_of(dims_of(config)), compose(transforms)), shape)


@pytest.mark.parametrize(("way", "precision", "accumulation"), WAYS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_plans_are_those_of_every_block_followed(
    family: str, way: str, precision: str, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == "mixtral" and "lora" in way:
        pytest.skip("lora does not reach stacked experts")
    recorded, blocks = [], Run.blocks
    monkeypatch.setattr(Run, "blocks", lambda run: recorded.append(blocks(run)) or blocks(run))
    found = cost_of(family, way, precision, accumulation)
    monkeypatch.setattr(Run, "blocks", lambda run: list(range(run.dims.num_layers)))
    wanted = cost_of(family, way, precision, accumulation)
    assert found.phases == wanted.phases and found.notes == wanted.notes
    for phase, work in wanted.work.items():
        assert work.launches == found.work[phase].launches
        assert sorted(map(str, work.kernels)) == sorted(map(str, found.work[phase].kernels))
    assert all((len(each) < LAYERS) is ("every" not in way) for each in recorded) and recorded
