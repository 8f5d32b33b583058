"""`benchmarks/adapting`: which runs are wanted, what one does, and what results say of them."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hayless.core.errors import RequestError
from hayless.core.families import ledger_of
from hayless.data.config import Source
from hayless.model.anatomy import dims_of_model
from tests import asset

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks are not part of this distribution", allow_module_level=True)

from benchmarks.adapting import composing, finding, pieces, rows, runs, tasks  # noqa: E402
from benchmarks.adapting.__main__ import main  # noqa: E402
from benchmarks.adapting.rows import ACCURACY, ADAPTERS, BITS, OPTIMIZERS, Results  # noqa: E402
from benchmarks.adapting.runs import Kept, Place, all_of, do  # noqa: E402
from benchmarks.adapting.search import SEARCHED, SEEDS, Run, wanted  # noqa: E402
from benchmarks.adapting.ways import FULL, LOMO, LORA, MODULE, UNTRAINED, trained, ways  # noqa: E402


def _searched(bits: dict[int, float]) -> list[int]:
    """Rates that are tried where `bits` is what each gives, in their order; then the one that is taken."""
    found: dict[Run, float] = {}
    tried = []
    while True:
        asked = wanted("t", "w", found)
        if all(not run.searching for run in asked):
            assert [run.seed for run in asked] == list(SEEDS) and len({run.halves for run in asked}) == 1
            return [*tried, asked[0].halves]
        for run in asked:
            assert run.seed == SEARCHED and run not in found
            found[run] = bits[run.halves]
            tried.append(run.halves)


def test_a_rate_is_searched_until_a_worse_one_lies_on_both_sides_or_five_were_tried() -> None:
    assert _searched({-1: 2.0, 0: 1.0, 1: 3.0}) == [0, -1, 1, 0]
    assert _searched({-1: 2.0, 0: 1.0, 1: 0.9, 2: 0.95}) == [0, -1, 1, 2, 1]
    assert _searched({-3: 1.0, -2: 2.0, -1: 3.0, 0: 4.0, 1: float("inf")}) == [0, -1, 1, -2, -3, -3]


def test_what_is_done_is_not_wanted_again() -> None:
    done = {Run("t", "w", halves, SEARCHED): abs(halves) + 1.0 for halves in (-1, 0, 1)}
    assert wanted("t", "w", {**done, Run("t", "w", 0, 1): 1.0}) == [Run("t", "w", 0, 0), Run("t", "w", 0, 2)]
    assert wanted("t", UNTRAINED, {Run("t", UNTRAINED, 0, 0): 1.0}) == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A task of few words, and two steps."""
    path = tmp_path / "words.jsonl"
    lines = ({"prompt": f"{number} is ", "completion": "odd" if number % 2 else "even"} for number in range(60))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    task = tasks.Task("words", "few words", "sft", lambda _: Source(path=str(path)), choice=True)
    monkeypatch.setattr(tasks, "TASKS", (task,))
    monkeypatch.setattr(runs, "BATCH", 2)
    monkeypatch.setattr(runs, "LENGTH", 64)
    return Place(asset.FOLDER, tmp_path, tmp_path / "data", "cpu", 2)


def test_runs_train_from_the_base_each_time_and_repeat(place: Place) -> None:
    found = {way: do(Run("words", way, 0, 0), place) for way in (UNTRAINED, FULL, LOMO, LORA)}
    data = tasks.data("words", place.model, place.data)
    assert not {each.id for each in data.test} & {each.id for each in data.validation}
    for way, each in found.items():
        assert len(each["nats"]) == len(data.test) and 0 <= each["right"] <= 1
        assert way == UNTRAINED or each["bits"] < found[UNTRAINED]["bits"]
    assert do(Run("words", LORA, 0, 0), place)["nats"] == found[LORA]["nats"]


def test_what_a_model_cannot_have_fails_with_the_reason(place: Place) -> None:
    assert "has no biases" in do(Run("words", "bitfit", 0, 0), place)["failed"]


def test_adapters_are_about_as_large_as_lora() -> None:
    ledger = ledger_of(dims_of_model(asset.model()))
    found = ways(asset.FOLDER)
    lora = found[LORA].transform
    assert lora is not None
    for name in ("lora+", "dora", "pissa", "lora_moe", "bottleneck", "prefix", "prompt"):
        config = found[name].transform
        assert config is not None
        assert trained(ledger, config) == pytest.approx(trained(ledger, lora), rel=0.2), name


def _kept(folder: Path, lomo: float) -> Kept:
    """Runs in which LoRA is a tenth worse than full training in each of 8 documents, and LOMO is `lomo` worse."""
    bits = {FULL: 1.0, LORA: 1.1, LOMO: 1.0 + lomo}
    done: list[dict[str, Any]] = []
    for way, value in bits.items():
        for seed in SEEDS:
            nats = [value * 10 * 0.6931471805599453 * (1 + document / 8) for document in range(8)]
            done.append({"task": "c", "way": way, "halves": 0, "seed": seed, "rate": 1e-3, "trained": 5, "bits": value})
            done[-1]["nats"] = nats
    done.append({"task": "c", "way": "bitfit", "halves": 0, "seed": SEARCHED, "failed": "no biases"})
    missing = {task.name: "needs --input" for task in tasks.TASKS if task.name != "c"}
    held_out = {"c": [(str(document), 10) for document in range(8)]}
    machine = {"processor": "one", "cores": 1, "memory_bytes": 1, "python": "3.12", "versions": {}}
    content = {"shared": {"model": "target", "device": "cuda", "steps": 9}, "machine": machine, "missing": missing}
    (folder / "runs.json").write_text(json.dumps({**content, "held_out": held_out, "runs": done}), encoding="utf-8")
    return Kept(folder)


def test_results_say_how_far_lora_is_from_full_training(tmp_path: Path) -> None:
    found = Results(_kept(tmp_path, 0.2)).adapters()
    (goal,) = [row for row in found if row.goal]
    assert goal.contender == LORA and goal.spread is not None and goal.spread.median > 0.1
    of_c = {(row.contender, row.metric): row for row in found if "headers in C" in row.work}
    beyond = of_c[LORA, f"beyond {FULL}, and its 95% interval"].spread
    assert beyond is not None and beyond.median == pytest.approx(0.14375) and beyond.p20 < 0.14 < beyond.p80
    assert of_c["bitfit", BITS].reason == "no biases"
    assert of_c["ia3", BITS].reason == "there was no time for it"
    assert [row.reason for row in found if "headers in C" not in row.work] == ["needs --input"] * (len(tasks.TASKS) - 1)
    assert {row.contender for row in found} == {UNTRAINED, *ADAPTERS}


@pytest.mark.parametrize(("lomo", "better"), [(0.05, True), (0.2, False)])
def test_the_mean_says_whether_lomo_is_as_good_as_lora(tmp_path: Path, lomo: float, better: bool) -> None:
    found = Results(_kept(tmp_path, lomo)).optimizers()
    (goal,) = [row for row in found if row.goal]
    assert goal.contender == LOMO and goal.spread is not None and (goal.spread.median <= 0) is better
    assert {row.contender for row in found} == {UNTRAINED, *OPTIMIZERS}


def test_all_runs_are_done_once_and_their_results_written(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))
    asked = [("words", way) for way in (UNTRAINED, LORA)]
    said: list[str] = []
    ask = {"at_once": 1, "say": said.append}
    assert not all_of(asked, place, Kept(tmp_path, place), until=-1.0, **ask)  # type: ignore[arg-type]
    assert all_of(asked, place, Kept(tmp_path, place), until=float("inf"), **ask)  # type: ignore[arg-type]
    assert 7 <= len(said) <= 9 and said[0].startswith("1: words, as it was")
    assert all_of(asked, place, Kept(tmp_path, place), until=-1.0, **ask)  # type: ignore[arg-type]
    assert len(said) == len(Kept(tmp_path).rows)
    monkeypatch.setattr(rows, "TASKS", tasks.TASKS)
    lora = {row.metric: row for row in Results(Kept(tmp_path)).adapters() if row.contender == LORA}
    assert lora[BITS].spread is not None and "learning rate" in lora[BITS].note
    assert 0 <= lora[ACCURACY].spread.median <= 100  # type: ignore[union-attr]


def test_results_are_written_and_other_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _kept(tmp_path, 0.1)
    assert main(["write", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "adapters_quality.json").exists() and (tmp_path / "memory_quality.json").exists()
    with pytest.raises(RequestError, match="has runs of"):
        Kept(tmp_path, Place(asset.FOLDER, tmp_path, tmp_path, "cpu", 9))
    assert main(["write", str(tmp_path / "none")]) == 2
    assert "Do the runs first" in capsys.readouterr().err


@pytest.fixture
def modules(place: Place, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Modules of two kinds of tasks in two domains, trained for two steps."""
    made = []
    for kind in ("up", "down"):
        for domain, step in (("tens", 10), ("odds", 7)):
            path = place.folder / f"{kind}-{domain}.jsonl"
            rows = ({"prompt": f"{kind} {n * step} ", "completion": f"{n * step + len(kind)}"} for n in range(70))
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            source = partial(lambda path, _: Source(path=str(path)), path)
            made.append(tasks.Task(path.stem, path.stem, "sft", source))
    monkeypatch.setattr(tasks, "MODULES", tuple(made))
    for task in made:
        assert "bits" in do(Run(task.name, MODULE, 0, 0), place)
    return tuple(sorted(task.name for task in made))


def test_modules_are_found_and_serve_a_domain_that_none_has_learnt(
    place: Place, modules: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composing, "_TRIES", 2)
    ranks = finding.ranks("up-odds", place)
    asked = len(tasks.data("up-odds", place.model, place.data).validation)
    assert {way: len(found) for way, found in ranks["1"].items()} == dict.fromkeys(
        (finding.OURS, finding.PLAIN, finding.ARROW), asked
    )
    assert all(0 <= rank < len(modules) for found in ranks["5"].values() for rank in found)
    assert sum(ranks["5"][finding.OURS]) < len(ranks["5"][finding.OURS])
    found = composing.losses("up-odds", place)
    assert {len(nats) for nats in found["nats"].values()} == {len(found["sizes"])}
    zero, tuned = (sum(found["nats"][who]) for who in (composing.ZERO, composing.TUNED))
    assert tuned < zero and found["nats"][composing.HUB] != found["nats"][composing.SINGLE]


def test_shares_of_modules_that_are_found_and_what_others_are_worth() -> None:
    each = {"5": [0, 0, 2, 9], "1": [1, 0, 0, 0]}
    one = {count: dict.fromkeys((finding.OURS, finding.PLAIN, finding.ARROW), ranks) for count, ranks in each.items()}
    found = {(row.work, row.contender, row.metric): row for row in finding.rows({"a": one, "b": one}, "target")}
    work = next(work for work, *_ in found if "5 examples" in work)
    first, third = (found[work, finding.OURS, f"right among the first {top}"] for top in (1, 3))
    assert first.spread is not None and third.spread is not None and first.goal and third.goal
    assert (first.spread.median, third.spread.median) == (50, 75)
    chance = found[work, "chance", "right among the first 1"].spread
    assert chance is not None and chance.median == 50
    nats = {who: [math.log(2) * bits] * 4 for who, bits in ((composing.SINGLE, 8.0), (composing.HUB, 7.0))}
    nats |= {who: nats[composing.SINGLE] for who in composing.AGAINST if who not in nats}
    rows = list(composing.rows({"a": {"nats": nats, "sizes": [8.0] * 4}}, "target"))
    hub = {row.metric: row for row in rows if row.contender == composing.HUB}
    assert [row.spread and row.spread.median for row in hub.values()] == pytest.approx([7 / 8, -1 / 8])
    assert [row.goal is None for row in hub.values()] == [True, False]


def test_no_piece_of_a_domain_is_in_two_kinds_of_tasks() -> None:
    learnt = {kind: {row["completion"] for row in pieces.rows(kind, "unittest")} for kind in ("spaces", "case")}
    assert not learnt["spaces"] & learnt["case"]
    assert all(len(each) > 20 for each in learnt.values())
    first = next(pieces.rows("spaces", "unittest"))
    assert "".join(first["completion"].split()) in first["prompt"]
