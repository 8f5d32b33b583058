"""`make bench`: a spec by its name becomes a file of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from hayless.core import atomic

if not (Path(__file__).resolve().parents[2] / "benchmarks").is_dir():
    pytest.skip("benchmarks are not part of this distribution", allow_module_level=True)

from benchmarks import run

SPEC = """
from hayless.study.bench.gate import close
from hayless.study.bench.spec import Contender, Prepared, Spec, Work

def prepare():
    if BROKEN:
        raise ValueError("it broke")
    return Prepared(lambda: None, lambda: {"answer": [1.0]})

SPEC = Spec("a_spec", [Work("nothing", [Contender("one", prepare)], close(), "call", peaks=False)])
"""


@pytest.fixture(autouse=True)
def _specs(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SPECS", tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (tmp_path / "a_spec.py").write_text(SPEC.replace("BROKEN", "False"), encoding="utf-8")


def test_a_spec_s_rows_are_written_under_its_name(tmp_path):
    assert run.main(["a-spec", "--out", str(tmp_path / "out")]) == 0
    content = atomic.read_json(tmp_path / "out" / "a_spec.json")
    (row,) = content["rows"]
    assert content["spec"] == "a_spec" and (row["work"], row["contender"], row["metric"]) == ("nothing", "one", "time")
    assert row["p20"] <= row["value"] <= row["p80"]


def test_a_spec_without_any_figure_fails_but_says_why(tmp_path):
    (tmp_path / "a_spec.py").write_text(SPEC.replace("BROKEN", "True"), encoding="utf-8")
    assert run.main(["a_spec", "--out", str(tmp_path)]) == 1
    (row,) = atomic.read_json(tmp_path / "a_spec.json")["rows"]
    assert row["value"] is None and row["reason"] == "ValueError: it broke"


def test_an_unknown_spec_is_a_wrong_request(capsys):
    assert run.main(["other"]) == 2
    assert "There are: a_spec." in capsys.readouterr().err


@pytest.mark.parametrize("given", ["nothing", "a=/no/such/place", "=x"])
def test_an_input_that_is_not_there_is_a_wrong_request(tmp_path, capsys, given):
    assert run.main(["a_spec", "--out", str(tmp_path / "out"), "--input", given]) == 2
    assert "allowed: NAME=PATH" in capsys.readouterr().err and not (tmp_path / "out").exists()
