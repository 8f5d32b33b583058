"""A scaling law of one's own runs: what is known is found again, and what cannot be compared is refused by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hayless.core.errors import FileDamaged, MissingExtra, RequestError
from hayless.plan.scaling import Parametric, flops
from hayless.plan.sweep import findings, fit, picture, tables
from hayless.plan.sweep.runs import Run, Sweep, read
from tests.plan import sweeps
from tests.recipe.running import TRAIN, quietly, recipe

GRID = [(7e4 * 2**size, 3e5 * 2**length) for size in range(5) for length in range(4)]
SIZES = (70_000, 140_000, 280_000, 560_000, 1_120_000)


def noisy(law: Parametric, noise: float, seed: int = 0) -> list[fit.Point]:
    generator = np.random.default_rng(seed)
    return [(n, d, law.loss(n, d) * float(np.exp(noise * generator.normal()))) for n, d in GRID]


def made(noise: float = 0.0, law: Parametric = sweeps.LAW) -> Sweep:
    """Runs of five sizes and four lengths, a quarter of each model outside its blocks."""
    runs = [Run(f"{n:.0f}-{d:.0f}", int(n), int(0.75 * n), int(d), loss, 4, 64) for n, d, loss in noisy(law, noise)]
    return Sweep(tuple(runs))


@pytest.mark.parametrize(
    "law", [sweeps.LAW, Parametric(1.69, 406.4, 410.7, 0.34, 0.28), Parametric(2.5, 5e3, 40.0, 0.7, 0.2)]
)
def test_a_law_without_noise_is_found_again(law: Parametric) -> None:
    found = fit.fit(noisy(law, 0))
    for name in ("irreducible", "a", "b", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-4), name
    parameters, tokens = found.optimum(1e15)
    assert (parameters, tokens) == pytest.approx(law.optimum(1e15), rel=1e-3)
    assert flops(parameters, tokens) == pytest.approx(1e15)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_noise_the_law_lies_within_the_intervals(seed: int) -> None:
    points = noisy(sweeps.LAW, 0.003, seed)
    found = fit.fit(points)
    laws = fit.resample(points, found, 100)
    for name in ("alpha", "beta", "irreducible"):
        values = [getattr(law, name) for law in laws]
        low, high = np.percentile(values, [2.5, 97.5])
        assert low <= getattr(sweeps.LAW, name) <= high, name
        assert low < getattr(found, name) < high, name


def test_one_run_far_off_moves_the_law_little() -> None:
    points = noisy(sweeps.LAW, 0)
    points[7] = (*points[7][:2], 1.2 * points[7][2])
    assert fit.fit(points).loss(2e6, 4e6) == pytest.approx(sweeps.LAW.loss(2e6, 4e6), rel=1e-3)


def test_the_gradient_is_the_objectives() -> None:
    runs = fit._Runs.of(noisy(sweeps.LAW, 0.01))
    at = np.array([0.3, 0.2, -0.4, 0.5, 0.6])
    _, gradient = runs.objective(at)
    for place in range(5):
        step = np.zeros(5)
        step[place] = 1e-6
        numeric = (runs.objective(at + step)[0] - runs.objective(at - step)[0]) / 2e-6
        assert gradient[place] == pytest.approx(numeric, rel=1e-4)


def test_the_optimum_is_the_least_loss_on_the_budgets_diagonal() -> None:
    law = fit.fit(noisy(sweeps.LAW, 0.005))
    best = law.loss(*law.optimum(1e13))
    sizes = np.geomspace(1e3, 1e9, 400)
    losses = [law.loss(size, 1e13 / 6 / size) for size in sizes]
    assert best <= min(losses) and best == pytest.approx(min(losses), rel=1e-3)


def test_the_run_of_most_compute_is_held_out_and_predicted() -> None:
    sweep = made()
    found = findings.analyse(sweep, resamples=40)
    assert found.held_out is not None and found.held_out.parameters == SIZES[-1] and len(found.runs) == 19
    assert found.predicted(found.held_out) == pytest.approx(found.held_out.loss, rel=1e-5)
    assert findings.analyse(sweep, held_out="none", resamples=40).held_out is None
    named = findings.analyse(sweep, held_out=sweep.runs[0].name, resamples=40)
    assert named.held_out is sweep.runs[0] and sweep.runs[0] not in named.runs
    with pytest.raises(RequestError, match="Unknown run 'x'"):
        findings.analyse(sweep, held_out="x")
    with pytest.raises(RequestError, match="resamples = 10"):
        findings.analyse(sweep, resamples=10)


def test_what_n_counts_changes_n_and_compute_and_is_said() -> None:
    for counted, share in (("total", 1.0), ("non-embedding", 0.75)):
        found = findings.analyse(made(), counted, resamples=40)  # type: ignore[arg-type]
        law, runs, *_ = tables.tables(found)
        assert law.records[0]["parameters_counted"] == counted
        for record in runs.records:
            assert record["flops"] == pytest.approx(6 * share * record["parameters"] * record["tokens"], rel=1e-4)
    assert "Kaplan" in law.notes[0]
    assert found.law.a == pytest.approx(sweeps.LAW.a * 0.75**sweeps.LAW.alpha, rel=1e-2)


def test_numbers_in_json_have_units_and_the_budgets_are_told() -> None:
    found = findings.analyse(made(0.004), resamples=40)
    parts = tables.tables(found, [1e13, 1e15])
    assert [part.records[0]["run"] for part in parts if part.title.startswith("The run that")] == [
        found.held_out and found.held_out.name
    ]
    optimum = next(part for part in parts if "budget" in part.title).records
    assert [row["flops"] for row in optimum] == [1e13, 1e15]
    assert all(row["parameters_low"] <= row["parameters"] <= row["parameters_high"] for row in optimum)
    assert optimum[0]["loss_nats"] > optimum[1]["loss_nats"]
    units = ("_nats", "_ratio", "parameters", "tokens", "flops", "_low", "_high", "runs", "resamples")
    plain = {"alpha", "beta", "size_exponent", "run", "parameters_counted", "layers", "width"}
    for part in parts:
        for name in {name for record in part.to_json()["rows"] for name in record} - plain:
            assert name.endswith(units), name
    with pytest.raises(RequestError, match=r"flops = -1\.0"):
        tables.tables(found, [-1.0])


def test_shapes_of_one_size_and_length_are_set_side_by_side() -> None:
    sweep = made()
    base = sweep.runs[5]
    others = [
        Run(name, base.parameters + more, base.non_embedding + 100, base.tokens, base.loss * factor, layers, width)
        for name, more, factor, layers, width in (("deep", -20_000, 1.02, 9, 40), ("wide", 30_000, 1.01, 1, 128))
    ]
    found = findings.analyse(Sweep((*sweep.runs, *others)), resamples=40)
    (group,) = found.shapes
    assert [run.name for run in group] == ["wide", base.name, "deep"]
    assert findings.spread(group) == pytest.approx(0.02)
    shapes = tables.tables(found)[-1]
    assert "2.00%" in shapes.notes[0] and shapes.records[2]["above_best_ratio"] == pytest.approx(0.02)
    drawn = picture.draw(found, "sweep", "svg").decode()
    assert "9 × 40" in drawn and "Kaplan" in drawn and "held out" in drawn


def test_a_picture_without_shapes_and_held_out_run() -> None:
    drawn = picture.draw(findings.analyse(made(), held_out="none", resamples=40), "sweep", "png")
    assert drawn.startswith(b"\x89PNG")


def test_larger_models_that_did_worse_are_named() -> None:
    sweep = made()
    worse = Run("late", 3_000_000, 2_000_000, 300_000, 9.0, 4, 64)
    found = findings.analyse(Sweep((*sweep.runs, worse)), resamples=40)
    (note,) = [note for note in tables.tables(found)[1].notes if note.startswith("Worse")]
    assert "late" in note and sweep.runs[-1].name not in note


def test_an_exponent_that_runs_do_not_determine_is_named() -> None:
    runs = [Run(f"{n}-{d}", int(n), int(n), int(d), 2 + 9e9 / n**2.5 + 50 / d**0.3, 4, 64) for n, d in GRID]
    law = tables.tables(findings.analyse(Sweep(tuple(runs)), resamples=40))[0]
    assert any("do not determine α" in note for note in law.notes)


def test_folders_of_runs_are_read_and_called_as_in_their_study(tmp_path: Path) -> None:
    for width in sweeps.WIDTHS[:2]:
        sweeps.run(tmp_path / f"w{width}", sweeps.config(width), 300_000, 4.0)
    running = sweeps.run(tmp_path / "w64", sweeps.config(64), 300_000, 4.0)
    (running / "status.json").write_text('{"state": "running"}', encoding="utf-8")
    rows = [{"slug": "w32", "label": "thirty-two"}]
    (tmp_path / "study.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    sweep = read([tmp_path])
    assert [run.name for run in sweep.runs] == ["thirty-two", "w48"] and sweep.left_out == ("w64: running",)
    run = sweep.runs[0]
    matrices = 2 * (4 * 32 * 32 + 3 * 32 * 96)
    assert run.non_embedding == matrices + 5 * 32 and run.parameters == run.non_embedding + 2 * 512 * 32
    assert (run.tokens, run.loss, run.layers, run.width) == (300_000, 4.0, 2, 32)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"vocabulary": 600}, "another tokenizer than one: odd"),
        ({"text": "others"}, "another data than one: odd"),
        ({"document_tokens": 650}, "another held-out documents, or tokens of them than one: odd"),
        ({"steps": [{"train": {"tokens": 5}}, {"measure": {"context": 64}}]}, "another context"),
    ],
)
def test_runs_of_other_data_or_tokens_are_refused_by_name(tmp_path: Path, odd: dict[str, Any], words: str) -> None:
    for name in ("one", "two"):
        sweeps.run(tmp_path / name, sweeps.config(32), 300_000, 4.0)
    sweeps.run(tmp_path / "odd", sweeps.config(48), 300_000, 4.0, **odd)
    with pytest.raises(RequestError, match=words) as caught:
        read([tmp_path])
    assert "two" not in caught.value.message


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("loss", "more", "break_it", "words"),
    [
        (None, {}, None, "bad: its loss was not measured"),
        (float("nan"), {}, None, "bad: its loss is nan"),
        (float("inf"), {}, None, "bad: its loss is inf"),
        (4.0, {}, _without("measurements.json"), "bad: nothing was measured"),
        (4.0, {}, _without("documents.json"), "bad: it has no documents.json"),
        (4.0, {}, _without("checkpoints/step-0/metrics.jsonl"), "bad: its metrics name no trained tokens"),
        (4.0, {"model": {"path": "runs/x/model"}}, None, "bad: it starts from runs/x/model"),
        (
            4.0,
            {"steps": [{"apply": "lora"}, {"train": {"tokens": 5}}, {"measure": {}}]},
            None,
            r"bad: it changes the model \(lora\)",
        ),
    ],
)
def test_runs_that_tell_no_loss_are_refused_by_name(
    tmp_path: Path, loss: float | None, more: dict[str, Any], break_it: Callable[[Path], None] | None, words: str
) -> None:
    sweeps.run(tmp_path / "good", sweeps.config(32), 300_000, 4.0)
    folder = sweeps.run(tmp_path / "bad", sweeps.config(48), 300_000, loss, **more)
    if break_it:
        break_it(folder)
    with pytest.raises(RequestError, match=words) as caught:
        read([tmp_path])
    assert "good" not in caught.value.message


@pytest.mark.parametrize("name", ["measurements.json", "documents.json", "../study.json"])
@pytest.mark.parametrize("content", ["[1]", '{"rows": [{}]}', "{"])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    folder = sweeps.run(tmp_path / "study" / "run", sweeps.config(32), 300_000, 4.0)
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(FileDamaged, match=Path(name).name):
        read([tmp_path / "study"])


def test_where_there_are_no_runs_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no run"):
        read([tmp_path])
    with pytest.raises(RequestError, match="There is no folder"):
        read([tmp_path / "nowhere"])


@pytest.mark.slow
def test_a_real_run_is_read_and_too_few_are_refused(tmp_path: Path) -> None:
    train = TRAIN | {"steps": 2}
    wanted = recipe(tmp_path, {"train": train}, {"measure": {"decode": False, "heldout_tokens": 500}})
    done, _ = quietly(wanted, tmp_path / "study" / "tried")
    sweep = read([tmp_path / "study"])
    (run,) = sweep.runs
    assert run.loss == done.receipt.measured("loss") and run.parameters == done.receipt.measured("parameters")
    assert 0 < run.tokens <= 2 * 2 * 24
    with pytest.raises(RequestError, match="Too few runs for a fit: 0") as caught:
        findings.analyse(sweep)
    assert "at least 6 runs" in str(caught.value)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(1e5 * size, 1e6, 3.0) for size in range(1, 9)], "of 8 sizes and 1 numbers of tokens"),
        ([(n, d, 0.0) for n, d in GRID], r"loss = 0\.0"),
        ([(n, d, float("nan")) for n, d in GRID], "loss = nan"),
    ],
)
def test_fits_that_cannot_be_are_refused(points: list[fit.Point], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        fit.fit(points)


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtra, match=r"hayless\[fit\]"):
        fit.fit(noisy(sweeps.LAW, 0))
