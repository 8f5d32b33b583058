"""Contenders whose rows have adapters of their own compute the same, and who leaves adapters out is not timed."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
import torch

from hayless.study.bench import runner
from hayless.study.bench.gate import as_exact
from hayless.study.bench.spec import TIME, Contender, Spec, Work
from tests import tiny

SPECS = Path(__file__).resolve().parents[2] / "benchmarks" / "specs"
if not SPECS.is_dir():
    pytest.skip("benchmarks are not part of this distribution", allow_module_level=True)


def test_rows_of_hayless_and_of_peft_are_judged_by_float32(monkeypatch):
    pytest.importorskip("peft", reason="peft is not installed")
    monkeypatch.syspath_prepend(str(SPECS))
    from parts.adapters import Mixed

    model = tiny.model("llama").to(torch.bfloat16)
    mixed = Mixed(lambda: model, rows=5, context=20, rank=3, steps=2, repeats=2)

    class Without(Mixed):
        """Adapters are asked for, but not there."""

        def _judged(self, made, *, adapted):
            return super()._judged(made, adapted=True)

    without = Without(*(getattr(mixed, one.name) for one in fields(mixed)))
    contenders = [
        Contender("PEFT", mixed.peft),
        Contender("hayless", mixed.hayless),
        Contender("the base", partial(mixed.hayless, adapted=False)),
        Contender("without", partial(without.hayless, adapted=False)),
    ]
    work = Work("w", contenders, as_exact(), "step", pieces=2, tokens=5, repeats=2, warmup=0, peaks=False)
    rows = runner.run(Spec("test", [work]), Path(__file__), say=lambda line: None)
    found = {row.contender: row.reason for row in rows if row.metric == TIME}
    assert not any(found[name] for name in ("PEFT", "hayless", "the base"))
    assert "off float32" in found["without"]
