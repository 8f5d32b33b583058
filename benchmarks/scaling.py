"""Write the results of a sweep, and draw it, once its runs are there:

    hayless compare recipes/scaling.yaml
    python benchmarks/scaling.py runs/scaling

The spread of a coefficient is that of fits to resamples of the runs (20th and 80th percentile).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hayless.core import atomic
from hayless.core.errors import HaylessError
from hayless.core.measurement import Goal
from hayless.core.units import format_count
from hayless.measure.speed import Spread
from hayless.plan.scaling import Parametric
from hayless.plan.sweep import findings, picture, runs
from hayless.study.bench.results import Row, write

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = ROOT / "benchmarks/results/scaling.json", ROOT / "docs/scaling.png"
FITTED = "fitted law"


def main(arguments: list[str] | None = None) -> int:
    """Read, fit, write and draw; the exit code of what the runs do not allow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the study's folder")
    chosen = parser.parse_args(arguments)
    try:
        found = findings.analyse(runs.read([chosen.runs]))
    except HaylessError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    write(RESULTS, "scaling", rows(found))
    atomic.write_bytes(PICTURE, picture.draw(found, chosen.runs.name, "png"))
    return 0


def rows(found: findings.Findings) -> list[Row]:
    """The held-out run and the shapes with their goals, the law, and the loss of every run."""
    every = [*found.runs, *filter(None, [found.held_out])]
    work = f"{len(every)} tiny Llamas on text of Python's own library (recipes/scaling.yaml), fp32, one thread"
    figures: dict[str, tuple[str, Callable[[Parametric], float]]] = {
        "E": ("nats/token", lambda law: law.irreducible),
        "alpha": ("", lambda law: law.alpha),
        "beta": ("", lambda law: law.beta),
        "a of N_opt ∝ C^a": ("", lambda law: law.size_exponent),
    }
    content = []
    if found.held_out is not None:
        miss = 100 * abs(found.predicted(found.held_out) / found.held_out.loss - 1)
        note = f"predicted {found.predicted(found.held_out):.4f}, measured {found.held_out.loss:.4f} nats a token"
        content.append(Row.single(work, FITTED, "miss of the held-out run", "%", miss, Goal(op="<=", value=2), note))
    for group in found.shapes:
        note = ", ".join(f"{run.layers} × {run.width}: {run.loss:.4f}" for run in group)
        difference = 100 * findings.spread(group)
        content.append(
            Row.single(work, "layers × width", "difference in loss", "%", difference, Goal(op="<=", value=3), note)
        )
    for name, (unit, figure) in figures.items():
        low, high = found.interval(figure)
        p20, p80 = np.percentile([figure(law) for law in found.laws], [20, 80])
        spread = Spread(figure(found.law), float(p20), float(p80))
        content.append(Row(work, FITTED, f"{name}, 95% {low:.3g} to {high:.3g}", unit, spread))
    for run in sorted(every, key=lambda run: (run.parameters, run.tokens)):
        shape = f"N {format_count(run.parameters)} ({run.layers} × {run.width}), D {format_count(run.tokens)}"
        content.append(Row.single(work, shape, "loss", "nats/token", run.loss))
    return content


if __name__ == "__main__":
    sys.exit(main())
