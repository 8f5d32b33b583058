"""Running studies: fresh processes, failures as rows, resuming, stopping, budgets."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from hayless.core.errors import RequestError
from hayless.recipe import yaml
from hayless.study import process, runner, schema
from hayless.study.results import Results, read_outcomes, read_study
from hayless.study.runner import run
from tests.study import folders

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(process, "COMMAND", STAND_IN)
    yield


def recipe(way: str, seed: int = 0) -> dict[str, Any]:
    return {**folders.recipe("any"), "model": {"path": way}, "seed": seed}


def study(folder: Path, *rows: tuple[str, dict[str, Any]], **more: Any) -> schema.Study:
    listed = [{"label": label, "recipe": content} for label, content in rows]
    return schema.load({"name": "tried", "folder": str(folder), "rows": listed, **more})


def quietly(found: schema.Study, **more: Any) -> Results:
    return run(found, console=Console(file=io.StringIO()), **more)


def starts(folder: Path) -> list[str]:
    return (folder / "starts.txt").read_text(encoding="utf-8").split("\n")[:-1]


def test_failures_are_rows_and_the_rest_goes_on(tmp_path: Path) -> None:
    rows = [(way, recipe(way)) for way in ("works", "refuses", "crashes", "killed", "silent")]
    results = quietly(study(tmp_path, *rows, parallel=4))
    found = {record.label: record for record in results.records}
    assert not found["works"].failed and found["works"].receipt.measured("bits_per_byte")
    assert found["refuses"].reason == "model.path = 'refuses' is not possible.\n  Give another."
    assert "exit code 1" in found["crashes"].reason and "RuntimeError: <b>boom</b>" in found["crashes"].reason
    assert "killed by SIGKILL" in found["killed"].reason and "memory runs out" in found["killed"].reason
    assert "without finishing" in found["silent"].reason and "silent begins" in found["silent"].reason
    assert [outcome.exit_code for outcome in read_outcomes(tmp_path).rows] == [0, 2, 1, -9, 0]
    assert results.baseline == "works" and results.table().rows[0].label == "works"


def test_what_is_done_is_kept_and_what_failed_is_tried_again(tmp_path: Path) -> None:
    rows = [("good", recipe("works")), ("after", recipe(str(tmp_path / "good" / "model"))), ("bad", recipe("refuses"))]
    quietly(study(tmp_path, *rows))
    quietly(study(tmp_path, *rows))
    assert starts(tmp_path) == ["good", "after", "bad", "bad"]
    quietly(study(tmp_path, *rows[:2]), fresh=True)
    assert starts(tmp_path)[4:] == ["good fresh", "after fresh"]
    changed = [("good", recipe("works", seed=1)), rows[1]]
    quietly(study(tmp_path, *changed))
    assert starts(tmp_path)[6:] == ["good fresh", "after fresh"]  # what it starts from is another model now


def test_a_row_that_a_peer_takes_over_is_done_anew(tmp_path: Path) -> None:
    found = study(tmp_path, ("row", recipe("works")))
    quietly(found)
    by_peer = found.model_copy(update={"rows": (found.rows[0].model_copy(update={"peer": "transformers"}),)})
    quietly(by_peer)
    quietly(by_peer)
    assert starts(tmp_path) == ["row", "row fresh"]
    (tmp_path / "study.json").unlink()
    quietly(found)
    assert starts(tmp_path)[2:] == ["row fresh"], "what a peer left is not taken for one's own"


def test_a_row_whose_start_failed_is_not_run(tmp_path: Path) -> None:
    rows = [("first", recipe("refuses")), ("second", recipe(str(tmp_path / "first" / "model")))]
    results = quietly(study(tmp_path, *rows))
    assert results.records[1].reason == "It needs 'first', which failed."
    assert starts(tmp_path) == ["first"]


def test_seconds_are_a_budget_over_all_attempts(tmp_path: Path) -> None:
    limited = study(tmp_path, ("slow", recipe("sleeps")), budget={"seconds": 2.5})
    results = quietly(limited)
    assert results.records[0].reason == "It was stopped at the budget of 2.5 s."
    assert _gone(_sleeper(tmp_path))
    quietly(limited)
    assert starts(tmp_path) == ["slow"]
    more = study(tmp_path, ("slow", recipe("sleeps")), budget={"seconds": 60})
    assert not quietly(more).records[0].failed


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_study_ends_its_rows_and_it_goes_on_later(tmp_path: Path, number: signal.Signals) -> None:
    found = study(tmp_path, ("quick", recipe("works")), ("slow", recipe("sleeps")))
    (tmp_path / "study.yaml").write_text(yaml.write(found.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    # What a shell starts in the background is deaf to SIGINT, and so would be what it starts.
    code = (
        "import signal; from pathlib import Path; from hayless.study import process, runner, schema;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"process.COMMAND = {STAND_IN!r};"
        f"runner.run(schema.load(Path({str(tmp_path / 'study.yaml')!r})))"
    )
    with (tmp_path / "err.txt").open("wb") as err:
        child = subprocess.Popen([sys.executable, "-c", code], stderr=err, stdout=err, start_new_session=True)
    deadline = time.monotonic() + 40
    while not (tmp_path / "sleeper.pid").exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(number)
    assert child.wait(20) != 0, (tmp_path / "err.txt").read_text()
    assert _gone(_sleeper(tmp_path))
    assert [outcome.state for outcome in read_outcomes(tmp_path).rows] == ["done", "stopped"]
    assert "running the study again" in read_study(tmp_path).records[1].reason
    assert not any(record.failed for record in quietly(found).records)
    assert starts(tmp_path) == ["quick", "slow", "slow"]


def _gone(pid: int) -> bool:
    """Whether a process has ended or ends within a few seconds (a kill does not wait for its effect)."""
    for _ in range(100):
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.05)
                continue
        return True
    return False


def _sleeper(folder: Path) -> int:
    return int((folder / "sleeper.pid").read_text(encoding="utf-8"))


def test_rows_run_at_once_only_where_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"row-{number}", {**recipe("works", number), "device": "cpu"}) for number in range(3)]
    monkeypatch.setattr(runner.machine, "free_memory_bytes", lambda: 10**12)
    quietly(study(tmp_path / "roomy", *rows, parallel=3))
    roomy = [outcome.at_once for outcome in read_outcomes(tmp_path / "roomy").rows]
    assert roomy == [1, 2, 2]  # the first shows what a row needs
    remark = read_study(tmp_path / "roomy").records[1].remark
    assert remark == "Times were disturbed: up to 2 rows ran at once."
    monkeypatch.setattr(runner.machine, "free_memory_bytes", lambda: 1)
    quietly(study(tmp_path / "tight", *rows, parallel=3))
    assert [outcome.at_once for outcome in read_outcomes(tmp_path / "tight").rows] == [1, 1, 1]


def test_memory_budget_and_published_figures(tmp_path: Path) -> None:
    found = study(tmp_path, ("row", recipe("works")), budget={"memory": "1MB"})
    row = found.rows[0].model_copy(update={"published": {"file_bytes": 3.0e6, "joules_per_token": 0.5}, "source": "X"})
    results = quietly(found.model_copy(update={"rows": (row,)}))
    record = results.records[0]
    assert record.over_budget and "allowed 1.00 MB" in record.remark and not record.failed
    size = record.receipt.figure("file_bytes")
    assert size is not None and size.published == 3.0e6 and size.value == 4_000_000
    assert [row.rank for row in results.table().rows] == [None]
    assert (tmp_path / "row" / "receipt.svg").exists() and '"published": 3000000.0' in (
        tmp_path / "row" / "receipt.json"
    ).read_text(encoding="utf-8")


def test_two_studies_do_not_share_a_folder(tmp_path: Path) -> None:
    from hayless.recipe.folder import RunFolder

    with RunFolder(tmp_path).lock(), pytest.raises(RequestError, match="in use by process"):
        quietly(study(tmp_path, ("row", recipe("works"))))


def test_damaged_files_of_an_earlier_session_are_no_obstacle(tmp_path: Path) -> None:
    found = study(tmp_path, ("row", recipe("works")))
    quietly(found)
    (tmp_path / "study.json").write_text("{", encoding="utf-8")
    (tmp_path / "row" / "status.json").write_text('{"state": "do', encoding="utf-8")
    assert not quietly(found).records[0].failed
    assert starts(tmp_path) == ["row", "row fresh"]


@pytest.mark.skipif(os.name != "posix", reason="ignores a POSIX signal")
def test_a_row_that_does_not_leave_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", stubborn))
    found = process.Process.start(tmp_path / "r.yaml", tmp_path / "row", tmp_path / "log", fresh=False)
    deadline = time.monotonic() + 20
    while not found.last_line() and time.monotonic() < deadline:
        time.sleep(0.02)
    child = int(found.last_line())
    assert found.poll() is None and found.peak_bytes > 1_000_000
    found.end(grace=0.1)
    assert found.poll() == -signal.SIGKILL
    assert _gone(child)
