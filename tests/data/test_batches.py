"""Batches: every learnt token is a target once an epoch, targets stay inside documents, resuming is the same."""

from __future__ import annotations

import threading
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.errors import RequestError
from hayless.data.batches import IGNORED, Batch, Batches, attention_mask, one_pass
from hayless.data.config import DataConfig, Mixture, Source
from hayless.data.prefetch import prefetched
from hayless.data.store import TokenStore
from tests.data import made
from tests.data.test_store import EXAMPLES, PAIRS


@cache
def store(kind: str, sizes: tuple[int, ...] = (3, 40, 7, 90, 15, 1, 200, 22), domains: int = 2) -> TokenStore:
    """The training part of a small store."""
    folder = Path(mkdtemp(prefix="hayless-test-"))
    if kind == "lm":
        paths = [made.texts(folder, list(sizes), "d" * (number + 1)) for number in range(domains)]
    else:
        paths = [made.write_lines(folder / "rows.jsonl", EXAMPLES if kind == "sft" else PAIRS)]
    return made.prepared(folder, *paths, kind=kind, heldout=0.1).train  # type: ignore[arg-type]


def pieces(batch: Batch):
    """(document, inputs, targets) of each document in each row, checking positions and padding on the way."""
    for row, names in enumerate(batch.documents):
        for segment, name in enumerate(names):
            here = batch.segments[row] == segment
            inputs, targets = batch.input_ids[row, here], batch.targets[row, here]
            assert batch.position_ids[row, here].tolist() == list(range(len(inputs)))
            yield name, inputs.tolist(), targets.tolist()
        padding = batch.segments[row] == -1
        assert (batch.targets[row, padding] == IGNORED).all()
        assert batch.segments[row].max() == len(names) - 1


def epoch(batches: Batches) -> list[Batch]:
    """Batches that together are one epoch; the number of rows must be a multiple of the batch size."""
    assert batches.rows % batches.batch_size == 0
    return [batch for step in range(batches.rows // batches.batch_size) for batch in batches.step(step)]


def learnt(found: TokenStore) -> Counter[tuple[str, int]]:
    """How often each token is learnt in each document."""
    return Counter((d.id, int(t)) for d in map(found.__getitem__, range(len(found))) for t in d.tokens[d.trained])


@pytest.mark.parametrize(
    ("kind", "length"), [("lm", 1), ("lm", 7), ("lm", 64), ("lm", 10_000), ("sft", 64), ("sft", 10_000)]
)
def test_an_epoch_has_every_learnt_token_as_target_once(kind, length):
    found = store(kind)
    batches = Batches(found, sequence_length=length, batch_size=1, seed=3)
    seen: Counter[tuple[str, int]] = Counter()
    for batch in epoch(batches):
        assert batch.input_ids.shape == (1, length)
        for name, _, targets in pieces(batch):
            seen.update((name, target) for target in targets if target != IGNORED)
    assert seen == learnt(found)
    assert batches.truncated == batches.skipped == 0


@pytest.mark.parametrize("kind", ["lm", "sft"])
def test_targets_are_the_next_tokens_of_the_same_document(kind):
    found = store(kind)
    tokens = {document.id: document.tokens.tolist() for document in map(found.__getitem__, range(len(found)))}
    for batch in epoch(Batches(found, sequence_length=64, batch_size=1)):
        for name, inputs, targets in pieces(batch):
            spelt = " ".join(map(str, tokens[name]))
            assert " ".join(map(str, inputs)) in spelt
            following = [*inputs[1:], targets[-1]]
            assert all(target in (expected, IGNORED) for target, expected in zip(targets, following, strict=True))
            if kind == "sft":
                assert targets[-1] == 0 and IGNORED in targets


@given(st.integers(1, 50), st.integers(1, 6), st.integers(0, 2**40), st.integers(0, 10**9))
@settings(max_examples=40, deadline=None)
def test_a_batch_depends_on_its_step_only(length, size, seed, step):
    one = Batches(store("lm"), sequence_length=length, batch_size=2 * size, seed=seed)
    other = Batches(store("lm"), sequence_length=length, batch_size=2 * size, micro_batch_size=size, seed=seed)
    [whole] = one.step(step)
    other.at(0)
    halves = other.step(step)
    assert len(halves) == 2
    for name in ("input_ids", "targets", "position_ids", "segments"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))
    assert whole.documents == halves[0].documents + halves[1].documents


def test_a_store_smaller_than_a_batch_repeats():
    batches = Batches(store("lm", (5, 6, 7), 1), sequence_length=512, batch_size=16)
    batch = batches.at(0)
    assert batches.rows == 1 and len(set(batch.documents)) == 1 and len(batch.documents) == 16
    assert batch.trained_tokens == 16 * batches.at(1).trained_tokens // 16 > 0


def test_counts_add_up():
    batch = Batches(store("lm", (5, 6, 7), 1), sequence_length=512, batch_size=2).at(0)
    assert batch.input_tokens + batch.padded_tokens == 2 * 512
    assert batch.input_tokens == batch.trained_tokens
    assert batch.to("cpu").documents == batch.documents


def test_proportions_hold_row_by_row():
    found = store("lm", (300, 200, 100), 3)
    batches = Batches(found, sequence_length=16, batch_size=10, proportions={"d": 0.5, "dd": 0.3, "ddd": 0.2}, seed=1)
    domain = {found.ids[index]: found.domains[found.domain_of[index]] for index in range(len(found))}
    counts = Counter(domain[row[0]] for step in range(30) for row in batches.at(step).documents)
    assert counts == {"d": 150, "dd": 90, "ddd": 60}


def test_proportions_that_change_with_the_step():
    found = store("lm", (300, 200, 100), 2)
    stages = [Mixture(step=0, shares={"d": 1, "dd": 0}), Mixture(step=4, shares={"d": 1, "dd": 3})]
    batches = Batches(found, sequence_length=16, batch_size=4, micro_batch_size=2, proportions=stages, seed=1)
    domain = {found.ids[index]: found.domains[found.domain_of[index]] for index in range(len(found))}

    def domains(step: int) -> list[str]:
        return sorted(domain[row[0]] for batch in batches.step(step) for row in batch.documents)

    assert [domains(step) for step in range(3, 6)] == [["d"] * 4, ["d", "dd", "dd", "dd"], ["d", "dd", "dd", "dd"]]
    with pytest.raises(RequestError, match="Unknown domain"):
        Batches(found, sequence_length=16, batch_size=4, proportions=[*stages, Mixture(step=9, shares={"x": 1})])


@pytest.mark.parametrize(
    ("proportions", "reason"),
    [
        ([{"step": 1, "shares": {"d": 1}}], "start at step 0"),
        ([{"step": 0, "shares": {"d": 1}}, {"step": 0, "shares": {"d": 1}}], "go on in order"),
        ([{"step": 0, "shares": {"d": 0}}], "must not all be zero"),
        ({"d": -1.0}, "must not be negative"),
    ],
)
def test_impossible_proportions(proportions, reason):
    with pytest.raises(ValueError, match=reason):
        DataConfig(sources=(Source(path="x"),), proportions=proportions)
    assert DataConfig(sources=(Source(path="x"),), proportions=[]).proportions == ()


def test_proportions_of_what_is_not_there():
    with pytest.raises(RequestError, match="Unknown domain"):
        Batches(store("lm"), sequence_length=16, batch_size=1, proportions={"nowhere": 1})


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 4, "micro_batch_size": 3}, {"sequence_length": 0}])
def test_impossible_sizes(wrong):
    with pytest.raises(RequestError, match="is not possible"):
        Batches(store("lm"), **{"sequence_length": 8, "batch_size": 4, **wrong})
    with pytest.raises(IndexError):
        Batches(store("lm"), sequence_length=8, batch_size=4).at(0, 1)
    for sizes in ({"rows": 0, "sequence_length": 8}, {"rows": 1, "sequence_length": 0}):
        with pytest.raises(RequestError, match="is not possible"):
            next(one_pass(store("lm"), **sizes))


def test_examples_that_are_too_long_are_truncated_or_left_out_and_counted():
    found = store("sft")
    lengths = found.lengths - 1
    prompt = [int((~found[index].trained).sum()) for index in range(len(found))]
    cut = int(lengths.max()) - 1
    batches = Batches(found, sequence_length=cut, batch_size=1)
    assert batches.truncated == sum(lengths > cut) > 0 and batches.skipped == 0
    short = min(prompt)
    batches = Batches(found, sequence_length=short, batch_size=1)
    assert batches.skipped == sum(count > short for count in prompt) > 0
    assert f"{batches.truncated} documents truncated" in batches.description
    with pytest.raises(RequestError, match="nothing to learn"):
        Batches(found, sequence_length=3, batch_size=1)


def test_pairs_are_rows_side_by_side_with_one_document_each():
    found = store("preference")
    batches = Batches(found, sequence_length=64, batch_size=4, seed=5)
    seen = Counter()
    for step in range(batches.rows):
        batch = batches.at(step)
        assert batch.input_ids.shape[0] == 8 and batch.input_ids.shape[1] % 8 == 0
        for chosen, rejected in zip(batch.documents[::2], batch.documents[1::2], strict=True):
            name = chosen[0].removesuffix("#chosen")
            assert chosen == (f"{name}#chosen",) and rejected == (f"{name}#rejected",)
            seen[name] += 1
        for row in range(8):
            used = int((batch.segments[row] == 0).sum())
            assert batch.segments[row].tolist() == [0] * used + [-1] * (batch.segments.shape[1] - used)
    assert set(seen.values()) == {4} and len(seen) == batches.rows


def test_a_long_answer_loses_its_beginning():
    found = store("preference")
    batch = Batches(found, sequence_length=4, batch_size=1).at(0)
    for row, (name,) in enumerate(batch.documents):
        tokens = found[found.ids.index(name)].tokens
        assert batch.input_ids[row, :4].tolist() == tokens[-5:-1].tolist()
        assert batch.targets[row, 3] == tokens[-1] == 0


@pytest.mark.parametrize("kind", ["lm", "sft", "preference"])
def test_one_pass_has_every_document_once(kind):
    found = store(kind)
    batches = list(one_pass(found, sequence_length=64, rows=3))
    seen: Counter[tuple[str, int]] = Counter()
    for batch in batches:
        for name, _, targets in pieces(batch):
            seen.update((name, target) for target in targets if target != IGNORED)
    assert seen == learnt(found)
    some = list(one_pass(found, sequence_length=64, rows=3, max_tokens=150))
    assert 0 < sum(batch.input_tokens for batch in some) < sum(batch.input_tokens for batch in batches)
    assert [b.documents for b in some] == [
        b.documents for b in one_pass(found, sequence_length=64, rows=3, max_tokens=150)
    ]


def test_mask_by_hand():
    segments = torch.tensor([[0, 0, 1, -1]])
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    assert torch.equal(attention_mask(segments)[0, 0], expected)
    added = attention_mask(segments, torch.float16)[0, 0]
    assert torch.equal(added == 0, expected) and (added[~expected] == torch.finfo(torch.float16).min).all()
    near = attention_mask(torch.zeros(1, 4), window=2)[0, 0]
    assert near.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_masks_are_block_causal(lengths, padding):
    segments = torch.tensor([[n for n, size in enumerate(lengths) for _ in range(size)] + [-1] * padding])
    mask = attention_mask(segments)[0, 0]
    size = segments.shape[1]
    for query in range(size):
        for key in range(size):
            assert mask[query, key] == (key <= query and segments[0, query] == segments[0, key])


def test_prefetched_gives_the_same_and_its_thread_ends():
    batches = Batches(store("lm"), sequence_length=16, batch_size=4, micro_batch_size=2)
    before = threading.active_count()
    found = list(prefetched(batches, 3, 9))
    assert [step for step, _ in found] == list(range(3, 9))
    assert all(
        torch.equal(made_.input_ids, batches.at(step, n).input_ids)
        for step, parts in found
        for n, made_ in enumerate(parts)
    )
    early = prefetched(batches, 0, 10**9)
    next(early)
    early.close()
    assert threading.active_count() == before
    assert list(prefetched(batches, 5, 5)) == []


def test_prefetched_raises_what_the_thread_met(monkeypatch):
    batches = Batches(store("lm"), sequence_length=16, batch_size=4)
    monkeypatch.setattr(batches, "step", lambda step: 1 // (2 - step))
    with pytest.raises(ZeroDivisionError):
        list(prefetched(batches, 0, 5))
