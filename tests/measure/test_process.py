"""Fresh processes answer, fail with their reason, and never stay behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from hayless.core.errors import NotSupported, RequestError, WorkError
from hayless.measure.process import FreshProcess, in_fresh_process

WORKER = "tests.measure.worker"
posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and process groups are POSIX")


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch):
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def _gone(pids: list[int]) -> bool:
    for _ in range(100):
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_the_answer_comes_back_whatever_is_printed():
    request = {"do": "echo", "text": "größer\n\u2028", "numbers": [1, 2.5, None]}
    found = in_fresh_process(WORKER, request, timeout=60)
    assert found["request"] == request and found["pid"] != os.getpid()


def test_errors_of_ours_cross_over_as_they_are():
    with pytest.raises(NotSupported) as caught:
        in_fresh_process(WORKER, {"do": "refuse"})
    assert (caught.value.message, caught.value.hint) == ("no such thing", "do another")
    with pytest.raises(RequestError, match="pynvml") as caught:
        in_fresh_process(WORKER, {"do": "missing extra"})
    assert caught.value.exit_code == 2


def test_other_failures_carry_the_end_of_what_was_printed():
    with pytest.raises(WorkError, match=r"(?s)exit code 1.*a first line.*ValueError: it broke"):
        in_fresh_process(WORKER, {"do": "fail"})
    with pytest.raises(WorkError, match="No module named"):
        in_fresh_process("tests.measure.no_such_module", {})
    with pytest.raises(WorkError, match="JSON compliant"):
        in_fresh_process(WORKER, {"do": "not a number"})
    with pytest.raises(WorkError, match="ended without an answer"):
        in_fresh_process(WORKER, {"do": "leave"})


def test_a_request_must_be_plain_data():
    with pytest.raises(ValueError, match="JSON compliant"):
        in_fresh_process(WORKER, {"value": float("inf")})
    with pytest.raises(RequestError, match="timeout = 0"):
        in_fresh_process(WORKER, {"do": "echo"}, timeout=0)


@posix_only
def test_a_killed_worker_is_said_to_be_killed():
    with pytest.raises(WorkError, match="SIGKILL") as caught:
        in_fresh_process(WORKER, {"do": "die"})
    assert "memory" in caught.value.hint


@posix_only
def test_a_timeout_ends_the_worker_and_its_children(tmp_path):
    pids = tmp_path / "pids"
    with pytest.raises(WorkError, match="more than 4 s"):
        in_fresh_process(WORKER, {"do": "hang", "pids": str(pids)}, timeout=4)
    assert _gone([int(pid) for pid in pids.read_text().split()])


@posix_only
def test_a_worker_leaves_when_its_parent_is_killed(tmp_path):
    pids = tmp_path / "pids"
    code = (
        f"from hayless.measure.process import *; in_fresh_process({WORKER!r}, {{'do': 'hang', 'pids': {str(pids)!r}}})"
    )
    with psutil.Popen([sys.executable, "-c", code]) as parent:
        while not (pids.exists() and pids.read_text()):
            time.sleep(0.02)
        worker, child = map(int, pids.read_text().split())
        parent.kill()
    try:
        assert _gone([worker])
    finally:
        psutil.Process(child).kill()


def test_a_worker_that_is_never_asked_leaves():
    with FreshProcess(WORKER) as idle, FreshProcess(WORKER, {"HAYLESS_TEST": "yes"}) as busy:
        idle.wait_until_ready()
        answer = busy.ask({"do": "echo"})
        assert answer["pid"] != os.getpid() and answer["there"] == "yes"
        pid = idle._process.pid
    assert _gone([pid])


def test_files_of_the_current_folder_do_not_stand_in_for_modules(tmp_path, monkeypatch):
    (tmp_path / "psutil.py").write_text("raise SystemExit('the wrong psutil')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert in_fresh_process(WORKER, {"do": "echo"})["request"] == {"do": "echo"}
