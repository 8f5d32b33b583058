"""The threshold that a risk allows: its bound by simulation, and on text that was not looked at."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hayless.core.errors import RequestError
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.program import Program, plan
from hayless.methods.decoding.early_exit.calibrate import PROMPT, TOKENS, read_forced, windows_of
from hayless.methods.decoding.early_exit.config import EarlyExitConfig
from hayless.methods.decoding.early_exit.part import EarlyExit
from hayless.methods.decoding.early_exit.predict import THRESHOLDS, first_failing, p_value, smallest_risk
from tests import asset

RISK, DELTA = 0.15, 0.1


def test_the_p_value_is_hoeffdings() -> None:
    assert p_value(0.0, 60, 0.05) == pytest.approx(0.95**60)
    assert p_value(0.02, 100, 0.1) == pytest.approx((0.1 / 0.02) ** 2 * (0.9 / 0.98) ** 98)
    assert p_value(0.1, 100, 0.1) == p_value(0.3, 100, 0.1) == 1
    for mean in (0.0, 0.03, 0.07):
        assert p_value(mean, 200, 0.1) <= math.exp(-2 * 200 * (0.1 - mean) ** 2), "CALM's is looser"
    assert p_value(0.0, 58, smallest_risk(58, DELTA)) == pytest.approx(DELTA)


def test_no_more_than_delta_of_calibrations_break_the_bound() -> None:
    """Windows whose risks are known at each threshold: how often a larger one is let through, and how near it comes."""
    generator = torch.Generator().manual_seed(0)
    true = [0.4 * (1 - threshold) for threshold in THRESHOLDS]
    broken, found = 0, []
    for _ in range(600):
        means = {}
        for threshold, risk in zip(THRESHOLDS, true, strict=True):
            # The hardest case for a mean of numbers in [0, 1]: all or nothing.
            means[threshold] = float((torch.rand(150, generator=generator) < risk).double().mean())
        tried = first_failing(means.__getitem__, 150, RISK, DELTA)
        kept = [threshold for threshold, mean in tried if p_value(mean, 150, RISK) <= DELTA]
        chosen = 0.4 * (1 - min(kept, default=1.0))
        broken += chosen > RISK
        found.append(chosen)
    assert broken / 600 <= DELTA
    assert sum(found) / 600 > 0.4 * RISK, "the bound must be of use"


@pytest.fixture(scope="module")
def model() -> Any:
    return asset.model()


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    """Windows of modules that the model has not seen, shuffled, of which 10 tokens are read."""
    found = windows_of([document.tokens.tolist() for document in asset.text()], 1000)
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0)), : PROMPT + 10]


@pytest.mark.parametrize("confidence", ["softmax", "classifier"])
def test_the_risk_holds_on_other_text(model: Any, windows: torch.Tensor, confidence: str) -> None:
    said: list[str] = []
    config = EarlyExitConfig(confidence=confidence, risk=RISK, delta=DELTA, text="given", least=1)
    known, other = windows[:36], windows[36:]
    part = EarlyExit(config, model, asset.tokenizer(), windows=known, say=said.append)
    Engine(model, asset.tokenizer(), exit=part).generate([[1, 2, 3]], SamplingOptions(max_tokens=2))
    found = part.calibration
    assert found is not None and 0 < found.threshold < 1 and part.threshold == found.threshold
    assert "at most 15.00% in general" in said[0] and f"{found.threshold:.4g}" in said[0]
    assert found.windows == (36 if confidence == "softmax" else 18)
    likeliest = []
    for threshold in (1.0, found.threshold):
        program = plan(model)
        assert isinstance(program, Program)
        made = part._confident(model, program, threshold)
        likeliest.append(torch.stack([logits.argmax(-1) for logits in read_forced(made, other)], 1))
    risk = float((likeliest[0] != likeliest[1]).double().mean())
    assert risk <= RISK
    assert risk > 0 or confidence == "classifier", "some tokens do leave"


def test_where_nothing_can_be_promised_nothing_leaves(model: Any, windows: torch.Tensor) -> None:
    said: list[str] = []
    config = EarlyExitConfig(risk=0.01, text="given")
    part = EarlyExit(config, model, windows=windows[:8], say=said.append)
    options = SamplingOptions(max_tokens=6, ignore_end=True)
    prompt = windows[0, :20].tolist()
    assert (
        Engine(model, exit=part).generate([prompt], options)[0].tokens
        == Engine(model).generate([prompt], options)[0].tokens
    )
    assert part.threshold == 1 and "no token leaves early (a risk below 0.31 needs more" in said[0]
    assert part.document()["calibration"]["tried"] and part.traces == [[4] * 6]


def test_windows_of_text(tmp_path: Any) -> None:
    size = PROMPT + TOKENS
    found = windows_of([list(range(size * 9 + 5)), list(range(size)), [1]], 5)
    assert found.shape == (5, size) and found[:, 0].tolist() == [0, 128, 256, 384, 512]
    with pytest.raises(RequestError, match="has 3 windows of 64 tokens; at least 8"):
        windows_of([list(range(size * 3))], 5)
    for number in range(3):
        (tmp_path / f"{number}.py").write_text("def main(argument):\n    return argument\n" * 200, encoding="utf-8")
    config = EarlyExitConfig(risk=0.5, text=str(tmp_path), windows=10)
    part = EarlyExit(config, asset.model(), asset.tokenizer())
    assert part._windows is not None and part._windows.shape == (10, size)
    with pytest.raises(RequestError, match="no file or folder"):
        EarlyExit(config.model_copy(update={"text": str(tmp_path / "gone")}), asset.model(), asset.tokenizer())


@pytest.mark.parametrize(
    "options",
    [{"threshold": 0.0}, {"confidence": "classifier", "threshold": 0.0}, {"confidence": "schedule", "over": 2}],
    ids=str,
)
@torch.inference_mode()
def test_learnt_heads_say_more_of_what_the_model_says(
    model: Any, windows: torch.Tensor, options: dict[str, Any]
) -> None:
    program = plan(model)
    assert isinstance(program, Program)
    known, other = windows[:40], windows[40:]
    said = {}
    for heads in ("whole", "shared", "learnt"):
        given = {"threshold": 1.0} if heads == "whole" else {**options, "heads": heads}
        fits = heads == "learnt" or given.get("confidence") == "classifier"
        config = EarlyExitConfig(least=2, **given, text="given" if fits else None)
        part = EarlyExit(config, model, windows=known if fits else None)
        made = part.reader(model, program)
        said[heads] = torch.stack([logits.argmax(-1) for logits in read_forced(made, other)], 1)
    shared, learnt = ((said[heads] != said["whole"]).double().mean() for heads in ("shared", "learnt"))
    assert learnt < 0.8 * shared
