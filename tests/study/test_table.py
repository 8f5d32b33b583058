"""Records, tables, ranks, paired differences, the Pareto front."""

from __future__ import annotations

import csv
import io
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hayless.core.errors import RequestError
from hayless.measure import interval
from hayless.study import pareto, record, table
from hayless.study.pareto import Point, front
from hayless.study.record import thinned
from tests.study import folders


def test_a_record_of_a_whole_run(tmp_path: Path) -> None:
    found = record.read(folders.run(tmp_path / "small", steps=900))
    assert not found.failed and found.reason == "" and found.documents and len(found.documents.rows) == 40
    assert set(found.curves) >= {"loss", "validation_loss", "learning_rate", "gradient_norm"}
    loss = found.curves["loss"]
    assert len(loss) == 400 and loss[0][0] == 1 and loss[-1][0] == 900
    assert len(found.samples) == 18 and found.samples[-1].step == 900 and found.samples[-1].prompt == "def main("
    assert "name: small" in found.recipe_text and found.recipe["name"] == "small"


def test_metrics_cut_short_repeated_and_damaged(tmp_path: Path) -> None:
    folder = folders.run(tmp_path / "small", steps=3)
    lines = [
        '{"kind": "train", "step": 3, "loss": 9.0}',
        '{"kind": "train", "step": 4, "loss": NaN, "tokens_per_second": null}',
        "not json",
        '{"kind": "sample", "step": 4, "prompt": "a\\u2028b", "text": "c\u2028d"}',
        '{"kind": "train", "st',
    ]
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines))
    found = record.read(folder)
    assert dict(found.curves["loss"])[3] == 9.0 and 4 not in dict(found.curves["loss"])
    assert found.samples[-1].text == "c\u2028d"
    assert any("1 figures of training are not finite" in problem for problem in found.receipt.problems)


def test_metrics_of_several_training_steps_follow_each_other(tmp_path: Path) -> None:
    folder = folders.run(tmp_path / "small", steps=2)
    (folder / "metrics.jsonl").unlink()
    for number in (0, 2, 10):
        part = folder / "checkpoints" / f"step-{number}"
        part.mkdir(parents=True)
        (part / "metrics.jsonl").write_text(f'{{"kind": "train", "step": 5, "loss": {number}}}\n', encoding="utf-8")
    assert record.read(folder).curves["loss"] == [(5, 0.0), (10, 2.0), (15, 10.0)]


@pytest.mark.parametrize("content", ["{", "7", "[]", '[{"id": "a"}]', '[{"id":"a","nats":NaN,"tokens":1,"bytes":1}]'])
def test_damaged_documents_are_said(tmp_path: Path, content: str) -> None:
    folder = folders.run(tmp_path / "small")
    (folder / "documents.json").write_text(content, encoding="utf-8")
    found = record.read(folder)
    assert found.documents is None and any("documents.json" in problem for problem in found.receipt.problems)


@pytest.mark.parametrize(
    ("state", "reason"), [("running", "ended without a word"), ("new", "not run"), ("failed", "x")]
)
def test_runs_that_are_not_done(tmp_path: Path, state: str, reason: str) -> None:
    found = record.read(folders.run(tmp_path / "small", state=state, reason="x" if state == "failed" else ""))
    assert found.failed and reason in found.reason


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    found = record.read_all([folders.run(tmp_path / side, "same") for side in ("a", "b")])
    assert [row.label for row in found] == [f"same ({tmp_path / side})" for side in ("a", "b")]


def test_rows_within_the_noise_share_a_rank(tmp_path: Path) -> None:
    runs = [
        folders.run(tmp_path / "base", bits=2.000, seed=1),
        folders.run(tmp_path / "near", bits=2.001, seed=6),
        folders.run(tmp_path / "worse", bits=2.300, seed=3),
        folders.run(tmp_path / "worst", bits=2.600, seed=4),
        folders.run(tmp_path / "broken", state="failed", reason="out of memory"),
    ]
    found = table.build(record.read_all(runs))
    ranks = {row.label: row.rank for row in found.rows}
    assert ranks["base"] == ranks["near"] == 1
    assert (ranks["worse"], ranks["worst"], ranks["broken"]) == (3, 4, None)
    assert found.rows[-1].label == "broken" and found.baseline == "base"
    rows = {row.label: row for row in found.rows}
    near, worse = rows["near"].difference, rows["worse"].difference
    assert near and not near.excludes_zero and worse and worse.excludes_zero and worse.value > 0
    assert table.difference_text(near).startswith("≈ ") and rows["base"].difference is None


def test_the_difference_is_the_paired_bootstrap(tmp_path: Path) -> None:
    one, two = (
        record.read(folders.run(tmp_path / n, bits=b, seed=i)) for i, (n, b) in enumerate([("a", 2), ("b", 2.1)])
    )
    found = table.paired(two, one)
    bits = [found.receipt.measured("bits_per_byte") or 0 for found in (one, two)]
    assert found.value == pytest.approx(bits[1] - bits[0])
    assert found.low is not None and found.high is not None
    # Documents differ far more among themselves than the runs do: unpaired, the interval is many times wider.
    assert one.documents is not None
    rows = one.documents.rows.values()
    alone = interval.ratio([nats for nats, _, _ in rows], [float(size) for _, _, size in rows])
    assert alone.low is not None and alone.high is not None
    assert found.high - found.low < (alone.high - alone.low) / 3


def test_other_documents_give_no_rank_and_no_difference_but_a_remark(tmp_path: Path) -> None:
    runs = [folders.run(tmp_path / name, bits=bits) for name, bits in (("a", 2.0), ("b", 1.1), ("c", 2.2))]
    rows = json.loads((runs[1] / "documents.json").read_text(encoding="utf-8"))
    (runs[1] / "documents.json").write_text(json.dumps(rows[1:]), encoding="utf-8")
    (runs[2] / "documents.json").unlink()
    found = table.build(record.read_all(runs), "a")
    remarks = {row.label: row.remark for row in found.rows}
    assert "same documents" in remarks["b"] and "no losses by document" in remarks["c"] and remarks["a"] == ""
    assert {row.label: row.rank for row in found.rows} == {"a": 1, "c": 2, "b": None}
    assert "Best quality: a" in table.summary(found)[0]
    with pytest.raises(RequestError, match="Did you mean 'a'"):
        table.build(record.read_all(runs), "aa")


def test_table_as_csv_and_text(tmp_path: Path) -> None:
    runs = [
        folders.run(tmp_path / "base"),
        folders.run(tmp_path / "formula", '=HYPERLINK("http://e","x")', bits=2.2),
        folders.run(tmp_path / "bad", state="failed", reason='it, "broke"\nhere'),
    ]
    found = table.build(record.read_all(runs))
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["run"] for row in rows] == ["base", '\'=HYPERLINK("http://e","x")', "bad"]
    assert float(rows[0]["file_bytes"]) == float(rows[0]["file_bytes_predicted"]) == 4e6 and rows[2]["file_bytes"] == ""
    assert rows[2]["reason"] == 'it, "broke" here' and float(rows[1]["difference_bits_per_byte"]) > 0
    dicts = json.loads(json.dumps(found.to_dicts(), allow_nan=False))
    assert dicts[0]["rank"] == 1 and dicts[2]["state"] == "failed" and dicts[2]["measurements"] == []
    file = io.StringIO()
    Console(file=file, width=160).print(found.to_rich())
    assert "4.00 MB" in file.getvalue() and "bad: it" in file.getvalue() and "=HYPERLINK" in file.getvalue()


def test_energy_is_a_column_and_an_axis_where_some_run_has_it(tmp_path: Path) -> None:
    runs = [folders.run(tmp_path / "frugal", bits=2.2, joules=0.25), folders.run(tmp_path / "hungry", joules=1.5)]
    silent = folders.run(tmp_path / "silent")
    records = record.read_all([*runs, silent])
    found = table.build(records)
    assert found.columns[-1] == "joules_per_token" and "joules_per_token" not in table.build(records[2:]).columns
    file = io.StringIO()
    Console(file=file, width=200).print(found.to_rich())
    assert "0.2500" in file.getvalue() and "not measured" in file.getvalue()
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(found.to_csv()))}
    assert [rows[name]["joules_per_token"] for name in ("frugal", "hungry", "silent")] == ["0.25", "1.5", ""]
    svg = pareto.draw(records, "joules_per_token", form="svg").decode()
    assert "Energy, J/token (lower is better)" in svg and ">frugal<" in svg and ">silent<" not in svg
    receipt = records[2].receipt
    assert "Energy: this machine does not report energy." in receipt.markdown()
    assert "| Energy |  | not measured |  |" in receipt.markdown()


def test_the_summary_follows_from_the_figures(tmp_path: Path) -> None:
    runs = [folders.run(tmp_path / "base", size=8_000_000), folders.run(tmp_path / "packed", bits=2.3, size=2_000_000)]
    sentences = table.summary(table.build(record.read_all(runs)))
    assert sentences[0].startswith("Best quality: base, ")
    assert sentences[1].startswith("Smallest file: packed, 2.00 MB (4 times smaller than base), at +0.28")
    assert table.summary(table.build([])) == []


def test_front_of_a_worked_example() -> None:
    points = [Point("a", 1, 5), Point("b", 2, 3), Point("c", 3, 3), Point("d", 4, 1), Point("e", 2, 3)]
    assert [point.label for point in front(points)] == ["a", "b", "e", "d"]
    assert [point.label for point in front(points, higher_x=True, higher_y=True)] == ["a", "c", "d"]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25))
def test_every_point_is_on_the_front_or_beaten(pairs: list[tuple[int, int]]) -> None:
    points = [Point(str(number), *pair) for number, pair in enumerate(pairs)]
    found = front(points)
    assert found
    for point in points:
        beaten = any(o.x <= point.x and o.y <= point.y and (o.x, o.y) != (point.x, point.y) for o in found)
        assert (point in found) != beaten


def test_the_front_is_drawn(tmp_path: Path) -> None:
    noise = random.Random(0)
    runs = [folders.run(tmp_path / f"run-{n}", bits=2 + noise.random(), size=n * 900_000 + 10**6) for n in range(12)]
    runs.append(folders.run(tmp_path / "bad", "$\\frac{x", state="failed"))
    records = record.read_all(runs)
    pareto.write(records, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    svg = pareto.draw(records, form="svg").decode()
    assert all(f">run-{number}<" in svg for number in range(12)) and ">predicted<" in svg
    assert (
        "Training speed, tokens/s (higher is better)"
        in pareto.draw(records, "train_tokens_per_second", form="svg").decode()
    )
    assert "frac" not in svg
    with pytest.raises(RequestError, match="No finished run has both joules_per_token"):
        pareto.write(records, tmp_path / "x.png", x="joules_per_token")
    with pytest.raises(RequestError, match=r"ends in \.png or \.svg"):
        pareto.write(records, tmp_path / "x.gif")


def test_names_are_left_out_where_there_is_no_room(tmp_path: Path) -> None:
    one = record.read(folders.run(tmp_path / "run"))
    crowd = [replace(one, label=f"crowded-run-{number}") for number in range(60)]
    assert 1 <= pareto.draw(crowd, form="svg").decode().count(">crowded-run-") < 30


@given(st.integers(1, 60), st.integers(2, 20))
def test_thinning_keeps_both_ends(count: int, most: int) -> None:
    points = [(step, float(step)) for step in range(count)]
    kept = thinned(points, most)
    assert (
        len(kept) == min(count, most) and kept[0] == points[0] and kept[-1] == points[-1] and kept == sorted(set(kept))
    )
