"""Quality is what its docstring says, whatever the batch, and intervals cover what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hayless.core.errors import NotSupported, RequestError, WorkError
from hayless.measure import interval
from hayless.measure.quality import (
    Document,
    DocumentLoss,
    Quality,
    batch_drift,
    paired_difference,
    quality,
)
from tests import tiny

BEGIN = 1


def _documents(lengths: list[int], seed: int = 0) -> list[Document]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Document(f"d{number}", torch.randint(3, 96, (length,), generator=generator), bytes=3 * length + 1)
        for number, length in enumerate(lengths)
    ]


def _by_hand(model: torch.nn.Module, document: Document, context: int, stride: int) -> list[float]:
    """Nats of each token, each from its own forward pass over the tokens its window shows it, and nothing else."""
    tokens = [BEGIN, *document.tokens.tolist()]
    costs = []
    for target in range(1, len(tokens)):
        window = max(0, math.ceil((target - context) / stride))
        with torch.no_grad():
            logits = model(torch.tensor([tokens[window * stride : target]]), use_cache=False).logits[0, -1]
        costs.append(-float(logits.double().log_softmax(-1)[tokens[target]]))
    return costs


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_each_token_is_predicted_once_from_its_window(name):
    model, documents = tiny.model(name), _documents([1, 5, 8, 9, 23])
    for batch_size in (1, 4):
        found = quality(model, documents, begin=BEGIN, context=8, stride=3, batch_size=batch_size)
        for row, document in zip(found.documents, documents, strict=True):
            assert row.id == document.id and row.tokens == len(document.tokens) and row.bytes == document.bytes
            assert row.nats == pytest.approx(sum(_by_hand(model, document, 8, 3)), rel=2e-6)


@pytest.mark.parametrize(("context", "stride"), [(64, 32), (7, 7), (7, 1), (1, 1), (10, 4)])
def test_the_batch_size_does_not_change_the_result(context, stride):
    model, documents = tiny.model("gpt2"), _documents([40, 2, 17, 17, 9, 33])
    results = [
        quality(model, documents, begin=BEGIN, context=context, stride=stride, batch_size=size) for size in (1, 3, 50)
    ]
    for found in results[1:]:
        assert found.loss.value == pytest.approx(results[0].loss.value, rel=1e-6)
        assert found.tokens == results[0].tokens == 118


def test_drift_is_what_another_batch_size_changes():
    model, documents = tiny.model("gpt2"), _documents([1, 40, 2, 17, 17, 9, 33])
    found = quality(model, documents, begin=BEGIN, batch_size=4)
    drift = batch_drift(model, documents, found, begin=BEGIN, batch_size=4, tokens=50)
    assert (drift.documents, drift.batch_sizes) == (4, (4, 1)) and 0 <= drift.loss <= drift.largest < 1e-5
    one = found.documents[1]
    wrong = one.model_copy(update={"nats": one.nats + 0.6})
    shifted = found.model_copy(update={"documents": (found.documents[0], wrong, *found.documents[2:])})
    moved = batch_drift(model, documents, shifted, begin=BEGIN, batch_size=1, tokens=50)
    assert moved.loss == pytest.approx(0.6 / 60, rel=1e-3) and moved.largest == pytest.approx(0.6 / 40, rel=1e-3)
    assert moved.batch_sizes == (1, 8)


def test_figures_are_token_and_byte_weighted():
    model, documents = tiny.model("llama"), _documents([30, 4])
    found = quality(model, documents, begin=BEGIN)
    nats = sum(row.nats for row in found.documents)
    assert found.loss.value == pytest.approx(nats / 34)
    assert found.bits_per_byte.value == pytest.approx(nats / math.log(2) / (91 + 13))
    assert found.perplexity.value == pytest.approx(math.exp(nats / 34))
    assert (found.context, found.stride) == (64, 32)
    assert Quality.model_validate_json(found.model_dump_json()) == found


def test_a_document_with_its_own_begin_token_gets_no_second_one():
    model, plain = tiny.model("llama"), _documents([12])[0]
    own = Document("own", torch.cat([torch.tensor([BEGIN]), plain.tokens]), plain.bytes)
    one, other = (quality(model, [document], begin=begin) for document, begin in ((plain, BEGIN), (own, BEGIN)))
    third = quality(model, [own], begin=None)
    assert one.loss.value == other.loss.value == third.loss.value and other.tokens == third.tokens == 12


def test_only_counted_tokens_are_scored():
    model, (document,) = tiny.model("llama"), _documents([20])
    counted = torch.zeros(20, dtype=torch.bool)
    counted[14:] = True
    found = quality(model, [Document("out", document.tokens, 6, counted)], begin=BEGIN, context=8, stride=4)
    assert found.tokens == 6
    assert found.documents[0].nats == pytest.approx(sum(_by_hand(model, document, 8, 4)[14:]), rel=2e-6)


def test_documents_without_a_token_to_predict_are_counted():
    model = tiny.model("llama")
    found = quality(model, _documents([0, 5, 0]), begin=BEGIN)
    assert found.too_short == 2 and [row.id for row in found.documents] == ["d1"]
    assert quality(model, _documents([1, 5]), begin=None).too_short == 1
    for empty in ([], _documents([0])):
        with pytest.raises(RequestError, match="No document"):
            quality(model, empty, begin=BEGIN)


def test_modes_and_gradients_are_left_as_they_were():
    model = tiny.model("gpt2").train()
    one, other = (quality(model, _documents([20]), begin=BEGIN).loss.value for _ in range(2))
    assert one == other and model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 65}, "context = 65.*1 to 64"),
        ({"context": 0}, "context = 0"),
        ({"stride": 65}, "stride = 65"),
        ({"stride": 0}, "stride = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"begin": 96}, "begin = 96"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        quality(tiny.model("gpt2"), _documents([5]), **({"begin": BEGIN} | changes))


def test_impossible_documents_are_refused():
    model, tokens = tiny.model("gpt2"), torch.tensor([4, 5])
    for documents, message in (
        ([Document("a", tokens, 2), Document("a", tokens, 2)], "Two documents"),
        ([Document("a", torch.tensor([4, 96]), 2)], "token 96; the model has 96"),
        ([Document("a", tokens, 0)], "0 bytes"),
        ([Document("a", tokens, 2, torch.tensor([True]))], "different lengths"),
    ):
        with pytest.raises(RequestError, match=message):
            quality(model, documents, begin=BEGIN)


def test_a_loss_that_is_not_finite_names_the_document():
    model = tiny.model("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = torch.inf
    with pytest.raises(WorkError, match="'d0' is nan"):
        quality(model, _documents([9]), begin=BEGIN)


def test_perplexity_too_large_for_a_number_is_none():
    row = DocumentLoss(id="a", nats=1e4, tokens=1, bytes=1)
    one = interval.Interval(value=1e4)
    found = Quality(loss=one, bits_per_byte=one, documents=(row,), too_short=0, context=1, stride=1)
    assert found.perplexity is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        tokens = generator.integers(20, 200, 60).astype(float)
        nats = tokens * generator.normal(3.0, 0.4, 60)
        found = interval.ratio(list(nats), list(tokens))
        covered += found.low <= 3.0 <= found.high
    assert 130 <= covered <= 149


def test_a_pair_sees_differences_that_two_intervals_do_not():
    generator = np.random.default_rng(1)
    hardness = generator.normal(3, 1, 80)
    rows = [(100 * value, 100, 300) for value in hardness]

    def contender(shift: float) -> Quality:
        documents = tuple(
            DocumentLoss(id=f"d{number}", nats=nats + shift * generator.normal(1, 0.5), tokens=tokens, bytes=size)
            for number, (nats, tokens, size) in enumerate(rows)
        )
        loss = interval.ratio([row.nats for row in documents], [row.tokens for row in documents])
        return Quality(loss=loss, bits_per_byte=loss, documents=documents, too_short=0, context=8, stride=4)

    one, other = contender(0.0), contender(3.0)
    assert one.loss.high > other.loss.low, "the intervals overlap"
    found = paired_difference(other, one, "loss")
    assert found.excludes_zero and found.low < 0.03 < found.high
    assert found == paired_difference(other, one, "loss"), "seeded"
    bits = paired_difference(other, one)
    assert bits.value == pytest.approx(found.value * 100 / 300 / math.log(2))
    assert not paired_difference(one, one).excludes_zero


def test_pairs_need_the_same_documents():
    model, documents = tiny.model("llama"), _documents([9, 5])
    both, first = quality(model, documents, begin=BEGIN), quality(model, documents[:1], begin=BEGIN)
    with pytest.raises(RequestError, match=r"same documents.*'d1'"):
        paired_difference(both, first)
    longer = quality(model, [Document("d0", documents[1].tokens, documents[0].bytes)], begin=BEGIN)
    assert first.loss.low is None and not paired_difference(first, longer).excludes_zero
    with pytest.raises(RequestError, match="9 tokens in one and 5"):
        paired_difference(first, longer, "loss")
    other = quality(model, [Document("d0", documents[0].tokens, 5)], begin=BEGIN)
    with pytest.raises(RequestError, match="28 bytes in one and 5"):
        paired_difference(first, other)


def test_a_part_has_the_figures_of_its_documents_alone():
    model, documents = tiny.model("llama"), _documents([9, 30, 5])
    whole, alone = quality(model, documents, begin=BEGIN), quality(model, documents[1:], begin=BEGIN)
    part = whole.part({"d1", "d2"})
    assert part.tokens == alone.tokens == 35 and part.loss.value == pytest.approx(alone.loss.value, rel=1e-6)
    with pytest.raises(RequestError, match="no documents"):
        whole.part({"other"})


def test_progress_counts_windows():
    told = []
    model = tiny.model("llama")
    quality(model, _documents([9, 30]), begin=BEGIN, context=16, batch_size=2, progress=lambda *step: told.append(step))
    assert told[0][1] == 0 and told[-1][1] == told[-1][2] >= 3 and all(what == "measuring" for what, *_ in told)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_models_that_are_not_causal_are_refused(family):
    with pytest.raises(NotSupported, match="causal"):
        quality(tiny.model(family), _documents([9]), begin=BEGIN)
