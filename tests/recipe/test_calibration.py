"""Recipes with methods that need text: where it comes from, what is said of it, and a run that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hayless.core.errors import RequestError
from hayless.methods.common.calibration import Stream
from hayless.model.load import load_model
from hayless.model.transform import record
from hayless.recipe.load import load
from tests.recipe.running import quietly, recipe

TEXT = {"tokens": 320, "sequence_length": 100}


def apply(method: str, **options: Any) -> dict[str, Any]:
    return {"apply": {"method": method, "group_size": 32, **options}}


def test_text_comes_from_the_training_documents_or_a_file(tmp_path: Path) -> None:
    done, said = quietly(recipe(tmp_path, apply("gptq"), calibration=TEXT), tmp_path / "one")
    # The model's limit is 64 tokens.
    assert "Calibrating on 320 tokens of the training documents, in 5 rows of 64 (seed 0)." in said
    assert [config.method for config in record(load_model(done.folder / "model"))] == ["gptq"]
    assert "output_error" in said and not (done.folder / "blocks").exists()
    file = tmp_path / "more.txt"
    file.write_text("A horse that eats no grass runs on hay, or on nothing. " * 60, encoding="utf-8")
    wanted = recipe(tmp_path, apply("awq"), calibration={**TEXT, "path": str(file), "seed": 3})
    _, said = quietly(wanted, tmp_path / "two")
    assert f"320 tokens of {file}, in 5 rows of 64 (seed 3)" in said


def test_a_run_that_was_stopped_goes_on_behind_the_finished_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(tmp_path, apply("gptq", bits=3), calibration=TEXT)
    whole, _ = quietly(wanted, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "advance", lambda self, number: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            quietly(wanted, tmp_path / "stopped")
    assert [path.name for path in (tmp_path / "stopped" / "blocks" / "step-0").glob("*.safetensors")] == [
        "block-0.safetensors"
    ]
    stopped, _ = quietly(wanted, tmp_path / "stopped")
    files = [(run.folder / "model" / "model.safetensors").read_bytes() for run in (whole, stopped)]
    assert files[0] == files[1] and not (tmp_path / "stopped" / "blocks").exists()


def test_text_that_is_too_short_says_so(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, apply("gptq"), calibration={"tokens": "1M"})
    with pytest.raises(RequestError, match=r"(?s)1,000,000 tokens in rows of 64 is asked for.*calibration\.tokens"):
        quietly(wanted, tmp_path / "run")
    wanted = recipe(tmp_path, apply("gptq"), calibration={"tokens": 40, "sequence_length": 40})
    with pytest.raises(RequestError, match=r"40 tokens reach .*down_proj.weight, which has 48 inputs"):
        quietly(wanted, tmp_path / "other")


def test_text_and_methods_that_need_it_go_together(tmp_path: Path) -> None:
    model = {"name": "a", "model": "somewhere"}
    with pytest.raises(RequestError, match=r"gptq is calibrated on text: add a data section, or calibration\.path"):
        load({**model, "steps": [apply("gptq")]})
    with pytest.raises(RequestError, match="calibration is for methods that need text, and no step applies one"):
        load({**model, "steps": [apply("uniform")], "calibration": {"path": "texts"}})
    assert load({**model, "steps": [apply("gptq")], "calibration": {"path": "texts"}}).calibration
    with pytest.raises(RequestError, match="sequence_length"):
        load({**model, "steps": [apply("gptq")], "calibration": {"path": "texts", "sequence_length": 1}})


def test_rows_are_documents_end_to_end_in_a_seeded_order(tmp_path: Path) -> None:
    from hayless.data.running_text import running_text
    from hayless.recipe.start import Start

    start = Start(recipe(tmp_path), tmp_path / "data", lambda *_: None, lambda _: None)
    store = start.data("lm").train
    rows = [running_text(store, tokens=200, length=48, seed=seed) for seed in (0, 0, 1)]
    assert rows[0].shape == (4, 48) and torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    documents = [store[index].tokens.tolist() for index in range(len(store))]
    flat = rows[0].flatten().tolist()
    first = next(tokens for tokens in documents if flat[: len(tokens)] == tokens[: len(flat)])
    assert len(first) >= len(flat) or any(flat[len(first) :][:5] == tokens[:5] for tokens in documents)
