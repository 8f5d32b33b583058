"""From sources to clean records: the split by names, no copies across it, kept on disk."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.errors import FileDamaged, RequestError
from hayless.data.corpus import corpus, to_measure
from hayless.data.documents import Document
from hayless.data.split import position, split
from tests.data import made
from tests.data.test_dedupe import changed


@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=40, unique=True), st.floats(0.01, 0.9))
@settings(max_examples=60, deadline=None)
def test_split_is_a_partition_decided_by_names(names, share):
    records = [Document(name, "ab"[number % 2], "x") for number, name in enumerate(names)]
    try:
        train, heldout = split(records, share)
    except RequestError:
        assert all(len({position(r.id) for r in records if r.domain == domain}) < 2 for domain in "ab")
        return
    assert sorted(r.id for r in train + heldout) == sorted(names)
    assert not {position(r.id) for r in train} & {position(r.id) for r in heldout}
    for domain in "ab":
        if len({position(r.id) for r in records if r.domain == domain}) > 1:
            assert any(r.domain == domain for r in train + heldout)


def test_split_follows_the_share_and_adding_documents_moves_none():
    records = [Document(f"doc-{n}", "d", "x") for n in range(4000)]
    _, heldout = split(records, 0.05)
    assert len(heldout) == sum(position(r.id) < 0.05 for r in records)
    assert abs(len(heldout) / 4000 - 0.05) < 0.01
    fewer = split(records[:2000], 0.05)[1]
    assert [r for r in heldout if r in records[:2000]] == fewer


def test_each_domain_has_a_held_out_document_however_small_the_share():
    records = [Document(f"{domain}-{n}", domain, "x") for domain in "ab" for n in range(3)]
    train, heldout = split(records, 1e-9)
    assert sorted(r.domain for r in heldout) == ["a", "b"]
    train, heldout = split(records, 1 - 1e-9)
    assert sorted(r.domain for r in train) == ["a", "b"]


def test_one_document_is_too_few():
    with pytest.raises(RequestError, match="1 document is too few"):
        split([Document("only", "d", "x")], 0.5)


@pytest.mark.parametrize("near", [True, False])
def test_no_training_document_copies_a_held_out_one(tmp_path, near):
    folder = made.texts(tmp_path, [300] * 20)
    whole = corpus(made.config(folder, heldout=0.3), tmp_path)
    for number, record in enumerate(whole.heldout):
        (folder / f"copy{number}.txt").write_text(record.text)
        (folder / f"near{number}.txt").write_text(changed(record.text, 0.02))
    (folder / "twin.txt").write_text(changed(next(iter(whole.train)).text, 0.02))
    again = corpus(made.config(folder, heldout=0.3, near_duplicates=near), tmp_path)
    texts = [record.text for record in again.heldout]
    for record in again.train:
        assert record.text not in texts
        assert not record.id.startswith(("copy", "near"))
    kept = {record.id for record in [*again.train, *again.heldout]}
    assert ("twin.txt" in kept and next(iter(whole.train)).id in kept) == (not near)
    assert "near-copies" in again.description


def test_it_is_kept_and_read_back(tmp_path):
    folder = made.texts(tmp_path, [50] * 8)
    first = corpus(made.config(folder), tmp_path / "kept")
    made_at = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.jsonl")}
    again = corpus(made.config(folder), tmp_path / "kept")
    assert (list(again.train), list(again.heldout)) == (list(first.train), list(first.heldout))
    assert (len(again.train), len(again.heldout)) == (len(list(first.train)), len(list(first.heldout)))
    assert (again.description, again.fingerprint, again.left_out) == (
        first.description,
        first.fingerprint,
        first.left_out,
    )
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.jsonl")} == made_at
    (folder / "000.txt").write_text("changed")
    second = corpus(made.config(folder), tmp_path / "kept")
    assert second.fingerprint != first.fingerprint
    assert "changed" in {record.text for record in [*second.train, *second.heldout]}


def test_a_damaged_corpus_is_not_used(tmp_path):
    folder = made.texts(tmp_path, [50] * 8)
    corpus(made.config(folder), tmp_path / "kept")
    [path] = (tmp_path / "kept").glob("corpus-*/train.jsonl")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(FileDamaged, match=r"train\.jsonl"):
        corpus(made.config(folder), tmp_path / "kept")


def test_domains_are_chosen_by_name_and_nearest_spelling_is_offered(tmp_path):
    folders = [made.texts(tmp_path, [40] * 4, name) for name in ("verse", "prose")]
    chosen = corpus(made.config(*folders, domains=("verse",)), tmp_path)
    assert {record.domain for record in [*chosen.train, *chosen.heldout]} == {"verse"}
    with pytest.raises(RequestError, match="Did you mean 'verse'"):
        corpus(made.config(*folders, domains=("vers",)), tmp_path)


def test_equal_names_in_two_sources_are_told_apart(tmp_path):
    folders = [made.texts(tmp_path / name, [40] * 3, name) for name in ("a", "bb")]
    found = corpus(made.config(*folders), tmp_path)
    ids = [record.id for record in [*found.train, *found.heldout]]
    assert len(set(ids)) == len(ids) == 6 and "000.txt~2" in ids


def test_what_a_step_learns_must_be_what_the_source_holds(tmp_path):
    text = made.texts(tmp_path, [40] * 3)
    pairs = made.write_lines(
        tmp_path / "p.jsonl", [{"prompt": f"{n}", "chosen": "a", "rejected": "b"} for n in range(9)]
    )
    examples = made.write_lines(tmp_path / "e.jsonl", [{"prompt": f"p{n} ", "completion": "c"} for n in range(9)])
    for path, kind, has in (
        (text, "sft", "plain text"),
        (pairs, "lm", "preference pairs"),
        (examples, "preference", "prompts"),
    ):
        with pytest.raises(RequestError, match=has):
            corpus(made.config(path), tmp_path, kind=kind)
    whole = corpus(made.config(examples, heldout=0.3), tmp_path, kind="lm")
    assert sorted(record.text for record in [*whole.train, *whole.heldout]) == sorted(f"p{n} c" for n in range(9))


@pytest.mark.parametrize("near", [True, False])
def test_what_is_held_out_for_measuring_is_what_training_holds_out(tmp_path, near):
    folder = made.texts(tmp_path, [60] * 12)
    for number in range(8):
        text = made.prose(60, 5) + f"and {number}\n"
        (folder / f"near{number}.txt").write_text(text, encoding="utf-8")
    config = made.config(folder, heldout=0.5, near_duplicates=near)
    found, expected = to_measure(config, everything=False), corpus(config, tmp_path)
    assert found.records == list(expected.heldout) and found.kind == "lm"
    everything = to_measure(config, everything=True)
    assert len(everything.records) == 20 and "all: 20 documents" in everything.description


def test_the_kind_to_measure_is_the_source_s_own(tmp_path):
    text = made.texts(tmp_path, [40])
    pairs = made.write_lines(tmp_path / "p.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    examples = made.write_lines(tmp_path / "e.jsonl", [{"prompt": "p", "completion": "c"}])
    for path, kind in ((text, "lm"), (pairs, "preference"), (examples, "sft")):
        assert to_measure(made.config(path), everything=True).kind == kind
    with pytest.raises(RequestError, match="plain text and preference pairs"):
        to_measure(made.config(pairs, text), everything=True)
    with pytest.raises(RequestError, match="too few"):
        to_measure(made.config(text), everything=False)
