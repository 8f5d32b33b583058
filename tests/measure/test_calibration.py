"""Calibration is Guo's error, its interval covers what it promises, and its picture says the figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.errors import RequestError
from hayless.measure.calibration import PAIR_BINS, TOKEN_BINS, Calibration, Judged, calibration, draw, write
from hayless.measure.quality import Document, quality
from tests import tiny


def judged(*predictions: list[tuple[float, float]]) -> list[Judged]:
    return [
        Judged(id=str(number), confidence=tuple(c for c, _ in each), right=tuple(r for _, r in each))
        for number, each in enumerate(predictions)
    ]


def drawn(documents: int, each: int, seed: int, less: float = 0.0) -> list[Judged]:
    """Predictions that are right as often as their confidence says, less `less`."""
    generator = np.random.default_rng(seed)
    sure = generator.uniform(0.3, 1, (documents, each))
    right = generator.uniform(0, 1, sure.shape) < sure - less
    return judged(*(list(zip(c, r, strict=True)) for c, r in zip(sure.tolist(), right.astype(float), strict=True)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1), min_size=1))
def test_the_error_is_the_formula(predictions: list[list[tuple[float, float]]]) -> None:
    found = calibration(judged(*predictions), *TOKEN_BINS)
    every, expected = [pair for each in predictions for pair in each], 0.0
    edges = np.linspace(0, 1, 16)
    for b in range(15):
        inside = [(c, r) for c, r in every if edges[b] < c <= edges[b + 1] or (b == 0 and c == 0)]
        if inside:
            expected += abs(sum(r for _, r in inside) - sum(c for c, _ in inside)) / len(every)
    assert found.error.value == pytest.approx(expected, abs=1e-12)
    assert found.count == len(every) == sum(entry.count for entry in found.bins)


def test_the_interval_is_over_documents_and_lies_around_the_error() -> None:
    for less in (0.0, 0.05, 0.2):
        found = calibration(drawn(60, 20, seed=1, less=less), *TOKEN_BINS)
        assert found.error.low is not None and found.error.high is not None
        assert 0 <= found.error.low <= found.error.value <= found.error.high
    one = calibration(judged([(0.9, 1.0), (0.8, 0.0)]), *TOKEN_BINS).error
    assert one.low is None and one.value == pytest.approx(0.45)
    # The same predictions in few documents say less.
    few = calibration(judged(*([(0.7, float(number < 5))] * 40 for number in range(10))), *TOKEN_BINS)
    many = calibration(judged(*([(0.7, float(number % 2))] for number in range(400))), *TOKEN_BINS)
    assert few.error.value == pytest.approx(many.error.value) == pytest.approx(0.2)
    assert few.error.high - few.error.low > 4 * (many.error.high - many.error.low)  # type: ignore[operator]


def test_the_interval_covers_a_known_error() -> None:
    covered = 0
    for seed in range(60):
        error = calibration(drawn(150, 4, seed, less=0.25), *TOKEN_BINS).error
        assert error.low is not None and error.high is not None
        covered += error.low <= 0.25 <= error.high
    assert covered >= 51, "at least 85% of 95% intervals"


def test_right_confidences_show_the_error_of_chance() -> None:
    found = [calibration(drawn(40, 10, seed), *TOKEN_BINS) for seed in range(50)]
    assert np.mean([each.error.value for each in found]) == pytest.approx(found[0].by_chance, rel=0.1)
    assert "by chance" in found[0].note


def test_pairs_have_bins_from_one_half() -> None:
    found = calibration(judged([(0.5, 0.5)], [(0.55, 1.0)], [(0.551, 0.0)], [(1.0, 1.0)]), *PAIR_BINS)
    assert [(round(entry.low, 2), entry.count) for entry in found.bins] == [(0.5, 2), (0.55, 1), (0.95, 1)]
    with pytest.raises(RequestError, match="no predictions"):
        calibration([], *PAIR_BINS)


def test_what_a_model_would_have_said_by_hand() -> None:
    model = tiny.model("llama")
    counted = torch.tensor([False] * 4 + [True] * 9)
    documents = [
        Document("a", torch.arange(5, 18), 20, counted),
        Document("b", torch.arange(30, 43), 20, counted),
    ]
    with torch.no_grad():
        # Some targets are what the model would say, so that accuracy is not 0.
        for _ in range(13):
            likeliest = model(documents[0].tokens[None]).logits[0].argmax(-1)
            documents[0].tokens[5:9] = likeliest[4:8]
    found = quality(model, documents, begin=1, context=8, stride=3, batch_size=3, judging=True)
    for document, each in zip(documents, found.judged, strict=True):
        tokens, expected = [1, *document.tokens.tolist()], []
        for target in range(5, 14):
            window = max(0, math.ceil((target - 8) / 3)) * 3
            with torch.no_grad():
                chances = model(torch.tensor([tokens[window:target]])).logits[0, -1].softmax(-1)
            expected.append((float(chances.max()), float(int(chances.argmax()) == tokens[target])))
        assert each.id == document.id
        assert each.confidence == pytest.approx([c for c, _ in expected], rel=1e-5)
        assert each.right == tuple(r for _, r in expected)
    assert found.token_accuracy is not None and found.calibration is not None
    assert found.token_accuracy.value == sum(sum(each.right) for each in found.judged) / 18
    alone = found.part({"b"})
    assert alone.calibration == calibration(found.judged[1:], *TOKEN_BINS)
    plain = quality(model, documents, begin=1, context=8, stride=3)
    assert plain.token_accuracy is None and plain.calibration is None and plain.loss == found.loss


def test_the_picture(tmp_path: Path) -> None:
    found = calibration(drawn(30, 10, seed=2), *TOKEN_BINS)
    write(found, "tokens", tmp_path)
    picture = (tmp_path / "reliability.svg").read_text()
    assert (
        f"calibration error {found.error.value:.3f}" in picture and ">confidence<" in picture and ">tokens<" in picture
    )
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "reliability.json").read_text())
    assert written.pop("what") == "tokens" and Calibration.model_validate(written) == found
    assert draw(found, "tokens", "svg").decode() == picture
    lonely = calibration(judged([(0.9, 1.0)]), *PAIR_BINS)
    picture = draw(lonely, "pairs", "svg").decode()
    assert "calibration error 0.100 over 1 pairs" in picture and "0.239 by chance" in picture
