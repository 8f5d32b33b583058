"""`hayless inspect weights` counts what the folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hayless.cli import inspect
from hayless.core.errors import RequestError
from hayless.core.registry import configure
from hayless.measure.weights import Inspection, RoleWeights
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests.cli.models import model, raised, run, saved


def _json(folder: Path | str) -> dict[str, Any]:
    found = run(inspect.app, "weights", str(folder), "--json")
    assert found.exit_code == 0, found.output
    document: dict[str, Any] = json.loads(found.stdout)
    return document


def test_the_table_is_that_of_the_tensors(tmp_path: Path) -> None:
    folder = saved(tmp_path / "llama")
    found, plain = _json(folder), model()
    roles = {role["role"]: role for role in found["roles"]}
    q = torch.cat([layer.self_attn.q_proj.weight.detach().flatten() for layer in plain.model.layers])
    assert (roles["q"]["elements"], roles["q"]["bytes"]) == (q.numel(), 4 * q.numel())
    assert roles["q"]["std"] == pytest.approx(float(q.std(correction=0)), rel=1e-4)
    assert roles["q"]["largest"] == pytest.approx(float(q.abs().max()))
    assert found["total"]["elements"] == sum(parameter.numel() for parameter in plain.parameters())
    assert found["total"]["elements"] == found["total"]["predicted_elements"]
    assert found["methods"] == found["unexplained"] == [] and found["class"] == "LlamaForCausalLM"
    shown = run(inspect.app, "weights", folder).stdout
    assert "Every tensor is one that the ledger predicts" in shown and "embedding" in shown and "none" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_methods_are_on_record_in_order(tmp_path: Path) -> None:
    changed = model()
    apply(changed, [configure("magnitude", sparsity=0.5), configure("kmeans", bits=4)])
    save_model(changed, tmp_path / "small")
    found = _json(tmp_path / "small")
    assert [method["method"] for method in found["methods"]] == [m["method"] for m in changed.config.hayless["methods"]]
    assert {method["method"] for method in found["methods"]} == {"magnitude", "kmeans"}
    assert found["dtype"] == "float32" and found["total"]["bytes"] == found["total"]["predicted_bytes"]
    q = next(role for role in found["roles"] if role["role"] == "q")
    assert q["zeros"] == pytest.approx(0.5, abs=0.02) and q["bytes"] < 4 * q["elements"] / 4
    shown = run(inspect.app, "weights", str(tmp_path / "small")).stdout
    assert "kmeans (" in shown and "bits 4" in shown and "targets blocks" in shown and f"{q['zeros']:.1%}" in shown


def test_numbers_that_are_none_are_counted(tmp_path: Path) -> None:
    broken = model()
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, :3] = torch.nan
    save_model(broken, tmp_path / "broken")
    found = _json(tmp_path / "broken")
    assert {role["role"]: role["not_finite"] for role in found["roles"] if role["not_finite"]} == {"up": 3}
    shown = run(inspect.app, "weights", str(tmp_path / "broken")).stdout
    assert "NaN or infinite: 3 in up." in shown


def test_what_was_not_predicted_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"mean": 0.0, "std": 1.0, "zeros": 0.0, "largest": 2.0, "not_finite": 0}
    roles = (
        RoleWeights("q", elements=12, bytes=48, predicted_elements=12, predicted_bytes=24, **figures),
        RoleWeights("k", elements=12, bytes=48, predicted_elements=12, predicted_bytes=48, **figures),
    )
    inspect._show([], Inspection(roles, tuple(f"extra.{number}" for number in range(23))))
    shown = capsys.readouterr().out
    assert "Not as the ledger predicts: q." in shown
    assert "23 tensors" in shown and "extra.19" in shown and "extra.20" not in shown and "and 3 more" in shown


def test_reward_models_can_be_inspected(tmp_path: Path) -> None:
    found = _json(saved(tmp_path / "judge", reward=True))
    assert found["class"] == "LlamaForSequenceClassification"
    assert next(role for role in found["roles"] if role["role"] == "head")["elements"] == 32


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "none", "no folder"), (tmp_path, "no config.json")):
        with pytest.raises(RequestError, match=words):
            raised(run(inspect.app, "weights", str(folder)))
