"""A benchmark's model: its own weights, an adapter on them, or random ones where there are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.registry import configure
from hayless.measure import bench
from hayless.measure.bench import Bench
from hayless.model import checksums
from hayless.model.save import save_model
from hayless.model.tensors import WEIGHTS
from hayless.model.transform import apply
from tests import tiny

TRAIN = {"batch_size": 2, "sequence_length": 8, "steps": 1}


def _here(source: Any, **work: Any) -> Bench:
    """What the fresh process would answer, without starting one."""
    request = {"source": str(source), "random": False, "device": "cpu", "dtype": None, **work}
    return Bench.model_validate(json.loads(json.dumps(bench._measure(request), allow_nan=False)))


def test_only_the_adapter_of_an_adapter_is_trained(tmp_path):
    model = tiny.model("gpt2")
    apply(model, [configure("lora", rank=2)])
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    save_model(model, tmp_path / "adapter")
    found = _here(tmp_path / "adapter", train=TRAIN)
    assert found.weights == "saved" and found.trained_parameters == trained < found.parameters
    assert found.row("step_seconds").value > 0 and found.backend is None


def test_random_weights_have_the_dtype_of_the_config_or_the_one_asked_for(tmp_path):
    save_model(tiny.model("llama"), tmp_path / "saved", dtype="bfloat16")
    for name in (WEIGHTS, checksums.NAME):
        (tmp_path / "saved" / name).unlink()
    assert _here(tmp_path / "saved", decode={"tokens": 2, "prompt_tokens": 3, "repeats": 1}).dtype == "bfloat16"
    found = _here(tmp_path / "saved", train=TRAIN, dtype="float32")
    assert (found.weights, found.dtype, found.weight_bytes) == ("random", "float32", 4 * found.parameters)


def test_weights_that_are_not_whole_are_no_reason_for_random_ones(tmp_path):
    save_model(tiny.model("llama"), tmp_path / "saved")
    (tmp_path / "saved" / WEIGHTS).rename(tmp_path / "saved" / "pytorch_model.bin")
    with pytest.raises(FileDamaged, match="missing"):
        _here(tmp_path / "saved", train=TRAIN)
    (tmp_path / "saved" / checksums.NAME).unlink()
    with pytest.raises(RequestError, match="pickle"):
        _here(tmp_path / "saved", train=TRAIN)


def test_packed_models_have_no_random_weights(tmp_path):
    model = tiny.model("llama")
    apply(model, [configure("kmeans", bits=4)])
    save_model(model, tmp_path / "packed")
    assert _here(tmp_path / "packed", decode={"tokens": 2, "prompt_tokens": 3, "repeats": 1}).backend
    with pytest.raises(NotSupported, match="packed"):
        _here(tmp_path / "packed", train=TRAIN, random=True)
