"""Rewards are read at the last token of each answer, whatever stands beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from hayless.core.errors import NotSupported, RequestError, WorkError
from hayless.data.batches import Batch
from hayless.measure.reward import ranking, reward_accuracy, scores
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
    accuracy = reward_accuracy(model, [_batch(ANSWERS[:2]), _batch(ANSWERS[2:]), _batch(ANSWERS[1::-1])])
    assert accuracy.value == pytest.approx((sum(wins) + (not wins[0])) / 3)
    assert model.training


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(NotSupported, match="gives no score"):
        reward_accuracy(tiny.model("llama"), [_batch(ANSWERS)])
    with pytest.raises(RequestError, match="no documents"):
        reward_accuracy(_model(), [])
    broken = _model()
    with torch.no_grad():
        broken.score.weight.fill_(torch.nan)
    with pytest.raises(WorkError, match="finite"):
        reward_accuracy(broken, [_batch(ANSWERS)])


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
