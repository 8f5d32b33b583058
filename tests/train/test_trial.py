"""A trial trains as the trainer does and counts what lives; other tools are asked about the same trial."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hayless.core.cost import TrainShape
from hayless.core.devices import DEVICES
from hayless.core.errors import NotSupported
from hayless.core.families import dims_of
from hayless.data.batches import IGNORED
from hayless.plan.memory import methods_named, variant
from hayless.train.oracles import accelerate_bytes, tracked_bytes
from hayless.train.trial import STEPS, Trial, batches, run

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}


def trial(way: str = "full", precision: str = "fp32", **changes: Any) -> Trial:
    rows = {"steps": 1, "batch_size": 4, "micro_batch_size": 2, "sequence_length": 48, "precision": precision}
    methods = [config.model_dump(mode="json") for config in methods_named(way)]
    asked: dict[str, Any] = {"config": CONFIG, "dtype": "float32", "device": "cpu", "settings": rows, **changes}
    for method in methods:
        name = method["method"]
        part = {"lora": "transforms", "checkpointing": "memory"}.get(name, "optimizer")
        asked[part] = method if part == "optimizer" else [*asked.get(part, []), method]
    return Trial.model_validate(asked)


def predicted(way: str, precision: str) -> Any:
    shape = TrainShape(2, 48, accumulation=2, precision=precision, device="cpu")
    return variant(way, dims_of(CONFIG).with_dtype("float32"), [], shape, DEVICES["H100"], decode=False).train


@pytest.mark.parametrize(
    ("way", "precision"), [("full", "master"), ("sgd(momentum=0.9)", "bf16"), ("lora+checkpointing", "fp32")]
)
def test_live_tensors_are_counted_and_equal_the_prediction(way: str, precision: str) -> None:
    found = run(trial(way, precision))
    step = predicted(way, precision).phases["step"]
    assert found.weights_bytes == step.weights and found.gradients_bytes == step.gradients
    assert found.optimizer_bytes == step.optimizer and found.master_bytes == step.master
    assert set(found.phases) == {"forward", "backward", "step"} == set(found.phase_seconds)
    assert found.peak_bytes == max(found.phases.values()) and not found.times and found.step_seconds is None


def test_updates_are_timed_where_that_is_asked() -> None:
    found = run(trial(seconds=1e-6))
    assert len(found.times) == 3 and found.step_seconds and found.step_seconds.median > 0
    assert all(found.host_seconds[phase] <= found.phase_seconds[phase] for phase in found.phases)
    assert STEPS == 3


@pytest.mark.parametrize("documents", [1, 3])
def test_rows_hold_documents_of_equal_length(documents: int) -> None:
    first, second = batches(trial(documents=documents))
    assert first is second and first.input_ids.shape == (2, 48)
    assert all(len(names) == documents for names in first.documents)
    length = 48 // documents
    assert torch.equal(first.position_ids, torch.arange(length).repeat(documents).expand(2, -1))
    targets = first.targets.unflatten(1, (documents, length))
    assert (targets[..., -1] == IGNORED).all()
    assert torch.equal(targets[..., :-1], first.input_ids.unflatten(1, (documents, length))[..., 1:])
    run(trial(documents=documents))


@pytest.mark.parametrize(("way", "precision"), [("full", "master"), ("checkpointing", "fp32")])
def test_torch_s_own_tracker_agrees(way: str, precision: str) -> None:
    assert predicted(way, precision).peak.total == pytest.approx(tracked_bytes(trial(way, precision)), rel=0.02)


@pytest.mark.parametrize(
    ("way", "precision", "tied"),
    [("lomo", "fp32", True), ("adalomo", "bf16", False), ("lomo+checkpointing", "master", False)],
)
def test_gradients_that_go_at_once_are_not_predicted_to_stay(way: str, precision: str, tied: bool) -> None:
    """Few tokens and large tables, so that the peak is a gradient; with tied tables, three of them."""
    config = {**CONFIG, "hidden_size": 128, "vocab_size": 4096, "tie_word_embeddings": tied}
    settings = {"steps": 1, "batch_size": 1, "sequence_length": 4, "precision": precision, "clip_norm": None}
    shape = TrainShape(1, 4, precision=precision, clips=False, device="cpu")
    dims = dims_of(config).with_dtype("float32")
    cost = variant(way, dims, [], shape, DEVICES["H100"], decode=False).train
    assert cost and cost.peak_phase == "backward" and cost.phases["step"].gradients == 0
    found = tracked_bytes(trial(way, config=config, settings=settings))
    assert cost.peak.total == pytest.approx(found, rel=0.005)


def test_what_the_tracker_cannot_follow_is_said() -> None:
    with pytest.raises(NotSupported, match="MemTracker cannot follow"):
        tracked_bytes(trial("lora"))


def test_accelerate_s_formula() -> None:
    pytest.importorskip("accelerate")
    parameters = dims_of(CONFIG)
    table = parameters.vocab_size * parameters.hidden_size
    found = accelerate_bytes(CONFIG, "float32")
    assert found["training"] == 4 * found["loading"] > 16 * table
    assert accelerate_bytes(CONFIG, "bfloat16")["loading"] * 2 == found["loading"]
