"""Plans of models: how cost grows, what variants mean, and that nothing is counted twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.cost import Bytes, TrainShape
from hayless.core.decoding import CAPACITY_STEP
from hayless.core.devices import DEVICES
from hayless.core.dims import ModelDims
from hayless.core.errors import RequestError
from hayless.core.families import dims_of
from hayless.plan import memory
from hayless.plan.memory import needed, spent, variant
from hayless.plan.presets import config_of
from tests import tiny

H200 = DEVICES["H200"]
TINY = dims_of(tiny.config("llama").to_dict())


def peaks(dims: ModelDims, batch: int, sequence: int, name: str = "full") -> dict[str, int]:
    """Bytes in use at the peak of every phase."""
    plan = variant(name, dims, [], TrainShape(batch, sequence, precision="master"), H200)
    return {phase: held.total for cost in plan.costs.values() for phase, held in cost.phases.items()}


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 4), st.integers(2, 24), st.integers(1, 3), st.sampled_from(["full", "lora", "sgd", "kmeans+lora"])
)
def test_cost_grows_with_batch_sequence_and_layers(batch: int, sequence: int, layers: int, name: str) -> None:
    dims = replace(TINY, num_layers=layers)
    small = peaks(dims, batch, sequence, name)
    for larger in (
        peaks(dims, batch + 1, sequence, name),
        peaks(dims, batch, sequence + 1, name),
        peaks(replace(dims, num_layers=layers + 1), batch, sequence, name),
    ):
        assert all(larger[phase] >= small[phase] for phase in small)
    # Memory comes in steps, so a few more tokens may need nothing; a cache's step of them do. The update holds none.
    longer = peaks(dims, batch, sequence + CAPACITY_STEP, name)
    assert all(longer[phase] > small[phase] for phase in small if phase != "step")


def test_needs_add_up_and_bring_their_allowances() -> None:
    held = Bytes(weights=1000, activations=3000)
    found = needed(held)
    assert found["total"] == sum(size for cause, size in found.items() if cause != "total")
    assert found["total"] == 4000 + 200 + memory.CONTEXT_BYTES
    plan = variant("full", TINY, [], TrainShape(2, 16), H200)
    assert plan.train
    both = plan.train + plan.train
    assert both.peak.total == 2 * plan.train.peak.total


def test_lora_needs_less_and_checkpointing_less_again() -> None:
    dims = dims_of(config_of("llama-7b"))
    full, lora, again, packed = (
        max(peaks(dims, 2, 1024, name).values())
        for name in ("full", "lora", "lora+checkpointing", "kmeans+lora+checkpointing")
    )
    assert packed < again < lora < full
    plan = variant("lora", dims, [], TrainShape(2, 1024), H200)
    assert 0 < plan.ledger.trainable < plan.ledger.parameters / 100


def test_variants_that_cannot_be_are_refused() -> None:
    for name, words in (("lorra", "Did you mean 'lora'"), ("lm", "no way to train")):
        with pytest.raises(RequestError, match=words):
            variant(name, TINY, [], TrainShape(1, 8), H200)
    with pytest.raises(RequestError, match="cannot be combined"):
        variant("lora+lora", TINY, [], TrainShape(1, 8), H200)
    with pytest.raises(RequestError, match="up to 1,024"):
        variant("full", dims_of(config_of("gpt2")), [], TrainShape(1, 1025), H200)


def test_hours_and_energy_follow_from_speed() -> None:
    plan = variant("full", dims_of(config_of("llama-1b")), [], TrainShape(4, 2048, precision="master"), H200)
    rate, seconds = plan.train_tokens_per_second(), plan.step_seconds()
    assert rate and seconds and rate == pytest.approx(4 * 2048 / seconds)
    cost = spent(plan, 10**9)
    assert cost["gpu_hours"] == pytest.approx(1e9 / rate / 3600)
    assert cost["kwh"] == pytest.approx(cost["gpu_hours"] * 700 / 1000)


def test_a_device_without_a_known_power_has_no_energy() -> None:
    unknown = replace(H200, watts=None)
    plan = variant("full", TINY, [], TrainShape(1, 8), unknown)
    assert "kwh" not in spent(plan, 10**6) and all(device.watts for device in DEVICES.values())


def test_an_encoder_has_no_decoding() -> None:
    plan = variant("full", dims_of(tiny.config("bert").to_dict()), [], TrainShape(1, 8), H200)
    assert plan.decode is None and plan.token_seconds() is None
    assert any("does not continue" in note for note in plan.to_json()["notes"])
