"""Rewards are read at the last token of each answer, whatever stands beside it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import transformers

from hayless.core.errors import NotSupported, RequestError, WorkError
from hayless.data.batches import Batch
from hayless.measure.reward import PairScores, Ranking, ranking, scores
from tests import tiny

ANSWERS = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [14, 2, 2]]


def _model(family: str = "llama") -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = tiny.config(family)
    config.num_labels = 1
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def _batch(answers: list[list[int]]) -> Batch:
    longest = max(map(len, answers))
    padded = torch.tensor([answer + [2] * (longest - len(answer)) for answer in answers])
    segments = torch.tensor([[0] * len(answer) + [-1] * (longest - len(answer)) for answer in answers])
    positions = torch.arange(longest).expand_as(padded)
    return Batch(padded, padded, positions, segments, tuple((str(row),) for row in range(len(answers))))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_score_is_that_of_the_answer_alone(family):
    model = _model(family)
    with torch.no_grad():
        together = scores(model, _batch(ANSWERS))
        for answer, score in zip(ANSWERS, together, strict=True):
            hidden = model.base_model(torch.tensor([answer])).last_hidden_state[0, -1]
            torch.testing.assert_close(score, model.score(hidden)[0], rtol=1e-4, atol=1e-6)


def test_accuracy_is_over_all_pairs_of_all_batches():
    model = _model().train()
    with torch.no_grad():
        found = scores(model.eval(), _batch(ANSWERS)).tolist()
    model.train()
    wins = [found[0] > found[1], found[2] > found[3]]
    accuracy = ranking(model, [_batch(ANSWERS[:2]), _batch(ANSWERS[2:]), _batch(ANSWERS[1::-1])]).accuracy
    assert accuracy.value == pytest.approx((sum(wins) + (not wins[0])) / 3)
    assert model.training


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(NotSupported, match="gives no score"):
        ranking(tiny.model("llama"), [_batch(ANSWERS)])
    with pytest.raises(RequestError, match="no documents"):
        _ = ranking(_model(), []).accuracy
    broken = _model()
    with torch.no_grad():
        broken.score.weight.fill_(torch.nan)
    found = ranking(broken, [_batch(ANSWERS)])
    for figure in ("accuracy", "loss", "brier", "calibration"):
        with pytest.raises(WorkError, match="finite"):
            getattr(found, figure)


def test_a_ranking_knows_its_pairs():
    model, batch = (
        _model(),
        replace(_batch(ANSWERS), documents=(("a#1#chosen",), ("a#1#rejected",), ("b#chosen",), ("b#rejected",))),
    )
    found = ranking(model, [batch])
    expected = scores(model, batch).tolist()
    assert [(pair.id, pair.chosen, pair.rejected) for pair in found.pairs] == [
        ("a#1", expected[0], expected[1]),
        ("b", expected[2], expected[3]),
    ]
    part = found.part({"b"})
    assert part.pairs == found.pairs[1:] and part.accuracy.value == float(expected[2] > expected[3])


def _ranked(*scored: tuple[float, float]) -> Ranking:
    return Ranking(tuple(PairScores(str(number), *pair) for number, pair in enumerate(scored)))


def test_ties_count_half():
    found = _ranked((1.0, 0.0), (2.0, 2.0), (3.0, 4.0), (0.0, -1.0)).accuracy
    assert found.value == 2.5 / 4 and found.low <= found.value <= found.high


def test_figures_of_pairs_by_hand():
    found = _ranked((2.0, 0.0), (0.5, 1.5), (1.0, 1.0))
    chances = [1 / (1 + math.exp(-margin)) for margin in (2.0, -1.0, 0.0)]
    assert found.loss.value == pytest.approx(sum(-math.log(p) for p in chances) / 3)
    assert found.brier.value == pytest.approx(sum((1 - p) ** 2 for p in chances) / 3)
    # The tie is half right at 50%; the model is 88% sure and right once, 73% sure and wrong once.
    assert found.calibration.error.value == pytest.approx(((1 - chances[0]) + (1 - chances[1])) / 3)
    assert [(entry.low, entry.count, entry.accuracy) for entry in found.calibration.bins] == [
        (pytest.approx(low), 1, right) for low, right in ((0.5, 0.5), (0.7, 0.0), (0.85, 1.0))
    ]


def test_margins_that_overflow_an_exponential_have_figures_all_the_same():
    found = _ranked((2000.0, 0.0), (0.0, 2000.0))
    assert found.loss.value == 1000 and found.brier.value == 0.5 and found.calibration.error.value == 0.5
