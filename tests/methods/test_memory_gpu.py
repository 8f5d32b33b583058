"""Memory methods on a GPU: what they need is what is predicted, and kernels train as plain PyTorch does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hayless.core.devices import find
from hayless.core.registry import configure
from hayless.measure.process import in_fresh_process
from hayless.plan.grid import TrainCase
from hayless.train.trial import Trained
from tests import tiny
from tests.train import source

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    "way",
    [
        "full+chunked_loss",
        "full+fused_kernels+chunked_loss",
        "full+checkpointing(keep=attention)+chunked_loss",
        "full+checkpointing(keep=products)+chunked_loss",
        "lora+checkpointing+offload+chunked_loss",
        "full+float8_linears",
    ],
)
def test_a_peak_is_what_was_predicted(way: str) -> None:
    """In a fresh process, as `plan verify` asks."""
    case = TrainCase("llama-1b", way, 4, 2048)
    found = Trained.model_validate(in_fresh_process("hayless.train.trial", case.asked("cuda", "cuda", 0.0)))
    cost = case.predicted(find("H100"), "cuda").train
    assert cost is not None
    assert found.peak_bytes == pytest.approx(cost.peak.total, rel=0.02)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("names", [("chunked_loss",), ("fused_kernels",), ("fused_kernels", "chunked_loss")])
@pytest.mark.parametrize("precision", ["bf16", "autocast", "fp32"])
def test_a_run_ends_near_the_plain_one(names: tuple[str, ...], precision: str, compile: bool, tmp_path: Any) -> None:
    losses = []
    for folder, memory in (("plain", []), ("changed", [configure(name) for name in names])):
        options = {"precision": precision, "steps": 4, "compile": compile and bool(memory)}
        run = source.trainer(tmp_path / folder, model=tiny.model("llama").cuda(), memory=memory, **options)
        losses.append(run.run().loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("compile", [False, True])
def test_float8_learns(compile: bool, tmp_path: Any) -> None:
    """One batch again and again, by products of 8-bit floats."""
    model = tiny.model("llama").cuda()
    options = {"precision": "bf16", "steps": 30, "log_every": 1, "batches": source.Random(period=1), "compile": compile}
    run = source.trainer(tmp_path, model=model, memory=[configure("float8_linears")], **options)
    result, lines = run.run(), source.lines(tmp_path, "train")
    assert result.loss < 0.5 * lines[0]["loss"]
