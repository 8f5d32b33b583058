"""Tables in README and docs are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks are not part of this distribution", allow_module_level=True)

from benchmarks import tables  # noqa: E402

MACHINE = {"processor": "a CPU", "cores": 2, "memory_bytes": 1}
PAGE = "# Title\n\n<!-- table NAME -->\nold\n<!-- /table NAME -->\nafter\n"


def project(tmp_path: Path, name: str) -> Path:
    """A project with one result and one page with a block called `name`."""
    common = {"work": "w | x", "metric": "time", "unit": "ms/step"}
    rows = [
        {**common, "contender": "peer", "value": 2.0, "p20": 1.9, "p80": 2.2, "note": "3 GB at 1.5 TB/s"},
        {
            **common,
            "contender": "ours",
            **{"value": 1.0, "p20": 1.0, "p80": 1.0, "against": "peer", "ratio": 2.0},
            **{
                "ratio_low": 1.9,
                "ratio_high": 2.1,
                "goal": {"op": ">=", "against": "peer", "ratio": 3.0},
                "met": False,
            },
        },
        {**common, "contender": "absent", "value": None, "p20": None, "p80": None, "reason": "not installed"},
    ]
    content = {"spec": "s", "machine": MACHINE, "versions": {"torch": "2"}, "date": "2026-01-01", "rows": rows}
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/s.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "README.md").write_text(PAGE.replace("NAME", name), encoding="utf-8")
    return tmp_path


def test_the_committed_tables_are_not_stale(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_block_fails_the_check_and_is_rewritten(tmp_path, capsys):
    root = project(tmp_path, "s")
    assert tables.main(["--check"], root) == 1
    assert "README.md is stale" in capsys.readouterr().out
    assert (root / "README.md").read_text(encoding="utf-8") == PAGE.replace("NAME", "s")
    assert tables.main([], root) == 0
    assert tables.main(["--check"], root) == 0
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Title\n") and text.endswith("<!-- /table s -->\nafter\n") and "old" not in text
    assert "| peer | time | 2.000 (1.900 to 2.200) ms/step |  |  |" in text
    assert "2.00 (1.90 to 2.10) × peer | ≥ 3 × peer, missed: 2 |" in text
    assert "| absent | time | not installed |  |  |" in text and "**w \\| x**" in text
    assert "\n\npeer: 3 GB at 1.5 TB/s.\n\na CPU" in text


@pytest.mark.parametrize("name", ["missed", "rest"])
def test_goals_missed_and_results_without_a_block_are_listed(tmp_path, capsys, name):
    root = project(tmp_path, name)
    assert tables.main([], root) == 0
    line = "- w | x: ours, time ≥ 3 × peer, missed: 2"
    assert f"1 goals missed\n{line}\n" in capsys.readouterr().out
    text = (root / "README.md").read_text(encoding="utf-8")
    assert line in text if name == "missed" else "### s" in text and "a CPU, 2 cores; torch 2; 2026-01-01." in text


def test_blocks_without_results_are_emptied_and_broken_marks_refused(tmp_path, capsys):
    root = project(tmp_path, "unknown")
    assert tables.main([], root) == 0
    assert "table unknown -->\n<!-- /table" in (root / "README.md").read_text(encoding="utf-8")
    (root / "README.md").write_text("<!-- table s -->\nno end\n", encoding="utf-8")
    assert tables.main([], root) == 1
    assert "without its partner" in capsys.readouterr().err


def test_the_demo_s_table_is_made_from_its_results():
    figures = [
        {"name": "bits_per_byte", "unit": "bits/byte", "value": 2.0, "low": 1.9, "high": 2.1, "error": None},
        {"name": "file_bytes", "unit": "B", "value": 4.2e6, "error": 0.1},
    ]
    row = {"label": "one", "rank": 1, "reason": "", "measurements": figures}
    rows = [
        {**row, "difference_bits_per_byte": {"value": -0.5, "low": -0.6, "high": -0.4}},
        {
            **row,
            "label": "bad",
            "rank": None,
            "reason": "it failed",
            "measurements": [],
            "difference_bits_per_byte": None,
        },
    ]
    lines = tables.demo_table({"baseline": "target", "rows": rows}).splitlines()
    assert lines[2] == "| 1 | one | 2.000 ± 0.10 | −0.500 ± 0.100 |  | 4.20 MB |  |"
    assert lines[3] == "|  | bad | it failed |  |  |  |  |"
