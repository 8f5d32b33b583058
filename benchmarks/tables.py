"""Write the tables of README and docs from results: `make tables`, or

    python benchmarks/tables.py [--check]

A block `<!-- table NAME -->` … `<!-- /table NAME -->` gets the table of `benchmarks/results/NAME.json`; `demo` that of
`docs/demo/results.json`; `missed` the goals that are missed; `rest` the results that no block of its page names. A
block whose results are not there is left empty.
`--check` writes nothing and fails where a block is not what it should be.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from hayless.core import atomic
from hayless.core.errors import HaylessError, WorkError
from hayless.core.measurement import Measurement
from hayless.core.units import format_bytes
from hayless.measure.interval import Interval
from hayless.recipe.figures import number, title, written
from hayless.study.table import QUALITY, difference_text

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- /table (?P=name) -->)", re.DOTALL)
_MARK = re.compile(r"<!-- /?table ")
_DEMO = ("train_peak_bytes", "file_bytes", "ms_per_token")


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check every block; 1 where one is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a block is stale")
    chosen = parser.parse_args(arguments)
    stale = []
    try:
        for page in pages(root):
            before = page.read_text(encoding="utf-8")
            after = filled(before, root, page.name)
            if after != before:
                stale.append(page)
                if not chosen.check:
                    atomic.write_text(page, after)
        lines = missed(root)
    except HaylessError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for page in stale:
        print(f"{page.relative_to(root)} {'is stale: run make tables' if chosen.check else 'written'}")
    print(f"{len(lines)} goals missed", *lines, sep="\n")
    return int(chosen.check and bool(stale))


def pages(root: Path) -> Iterator[Path]:
    """Files that may hold blocks: README, docs, and the READMEs of rooms."""
    yield root / "README.md"
    yield from sorted((root / "docs").rglob("*.md"))
    yield from sorted((root / "src").rglob("README.md"))


def filled(text: str, root: Path, page: str) -> str:
    """A page with its blocks written anew. WorkError for a mark without its partner."""

    named = {found["name"] for found in _BLOCK.finditer(text)}

    def block(found: re.Match[str]) -> str:
        if found["name"] == "rest":
            rest = sorted(path.stem for path in _results(root).glob("*.json") if path.stem not in named)
            content = "\n".join(f"### {name}\n\n{table(name, root)}" for name in rest)
        else:
            content = table(found["name"], root)
        return f"{found[1]}{content}{found[3]}"

    if 2 * len(_BLOCK.findall(text)) != len(_MARK.findall(text)):
        raise WorkError(f"{page} has a mark of a table without its partner.", hint="Each block has one of each.")
    return _BLOCK.sub(block, text)


def table(name: str, root: Path) -> str:
    """The content of the block `name`."""
    if name == "missed":
        return "".join(f"{line}\n" for line in missed(root)) or "None.\n"
    path = root / "docs/demo/results.json" if name == "demo" else _results(root) / f"{name}.json"
    if not path.is_file():
        return ""
    content = atomic.read_json(path)
    return demo_table(content) if name == "demo" else bench_table(content)


def missed(root: Path) -> list[str]:
    """Every goal of every result that is missed, a line each."""
    rows = [row for path in sorted(_results(root).glob("*.json")) for row in atomic.read_json(path)["rows"]]
    return [
        f"- {row['work']}: {row['contender']}, {row['metric']} {goal_words(row)}"
        for row in rows
        if not row.get("met", 1)
    ]


def bench_table(content: dict[str, Any]) -> str:
    """The rows of a benchmark, a table for each work, and the machine they hold for."""
    lines: list[str] = []
    for work, group in groupby(content["rows"], key=lambda row: row["work"]):
        rows = list(group)
        lines += [f"**{_cell(work)}**", "", "| contender | figure | median (p20 to p80) | times better | goal |"]
        lines += ["|---|---|---:|---|---|"]
        for row in rows:
            cells = (row["contender"], row["metric"], value_words(row), ratio_words(row), goal_words(row))
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
        # What peaks are of is said once, on top of the page.
        notes = {f"{row['contender']}: {row['note']}" for row in rows if "note" in row and row["unit"] != "B"}
        lines += ["", *(f"{_cell(note)}." for note in sorted(notes)), ""] if notes else [""]
    machine, versions = content["machine"], content["versions"]
    names = ("torch", "triton", "transformers", "python")
    where = ", ".join(filter(None, [machine.get("accelerator"), machine["processor"], f"{machine['cores']} cores"]))
    what = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    return "\n".join([*lines, f"{where}; {what}; {content['date']}.", ""])


def value_words(row: dict[str, Any]) -> str:
    """A figure with its spread and unit, or why there is none."""
    if row["value"] is None:
        return row.get("reason", "not measured")
    write = format_bytes if row["unit"] == "B" else number
    spread = f" ({write(row['p20'])} to {write(row['p80'])})" if row["p20"] != row["p80"] else ""
    unit = "" if row["unit"] == "B" else f" {row['unit']}"
    return f"{write(row['value'])}{spread}{unit}"


def ratio_words(row: dict[str, Any]) -> str:
    """How many times better than whom, with the 95% interval."""
    if "ratio" not in row:
        return ""
    noise = f" ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})" if "ratio_low" in row else ""
    return f"{row['ratio']:.2f}{noise} × {row.get('against') or row['goal']['against']}"


def goal_words(row: dict[str, Any]) -> str:
    """A goal and whether it is met."""
    if "goal" not in row:
        return ""
    goal = row["goal"]
    sign = {">=": "≥", "<=": "≤"}[goal["op"]]
    if goal.get("against"):
        wanted, found = f"{goal['ratio']:g} × {goal['against']}", row.get("ratio")
    else:
        wanted, found = f"{goal['value']:g} {row['unit']}", row["value"]
    reached = "" if row["met"] else f": {f'{found:.3g}' if found is not None else 'no figure'}"
    return f"{sign} {wanted}, {'met' if row['met'] else 'missed'}{reached}"


def demo_table(content: dict[str, Any]) -> str:
    """The demo's rows in the order of their ranks."""
    heads = ["rank", "run", "bits/byte", f"to {content['baseline']}", *map(title, _DEMO)]
    lines = ["| " + " | ".join(heads) + " |", "|---:|---|" + "---:|" * (len(heads) - 2)]
    for row in content["rows"]:
        figures = {one["name"]: Measurement.model_validate(_declared(one)) for one in row["measurements"]}
        difference = row["difference_bits_per_byte"]
        cells = [str(row["rank"] or ""), row["label"], _quality(figures.get(QUALITY)) or row["reason"]]
        cells.append(difference_text(Interval.model_validate(difference) if difference else None))
        cells += [written(name, figures[name].value) if name in figures else "" for name in _DEMO]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join([*lines, ""])


def _quality(found: Measurement | None) -> str:
    """Bits per byte ± half the interval, without the unit, which the head has."""
    if found is None or found.value is None:
        return ""
    half = f" ± {(found.high - found.low) / 2:.2f}" if found.low is not None and found.high is not None else ""
    return written(QUALITY, found.value).partition(" ")[0] + half


def _declared(one: dict[str, Any]) -> dict[str, Any]:
    """A measurement without what is computed from the rest."""
    return {name: value for name, value in one.items() if name in Measurement.model_fields}


def _results(root: Path) -> Path:
    return root / "benchmarks" / "results"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
