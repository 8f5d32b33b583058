"""The committed specs, and the parts that they share."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch

from hayless.study.bench import inputs, runner, spec
from hayless.study.bench.gate import as_exact
from hayless.study.bench.spec import Contender, Prepared, Spec, Work
from tests import tiny

SPECS = Path(__file__).resolve().parents[2] / "benchmarks" / "specs"
if not SPECS.is_dir():
    pytest.skip("benchmarks are not part of this distribution", allow_module_level=True)


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.py")), ids=lambda path: path.stem)
def test_a_spec_is_called_like_its_file_and_its_names_differ(path):
    found = spec.load(path)
    assert found.name == path.stem
    assert len({work.name for work in found.works}) == len(found.works)
    for work in found.works:
        names = [contender.name for contender in work.contenders] + ([work.limit.name] if work.limit else [])
        assert len(set(names)) == len(names)
        goals = [
            goal for contender in work.contenders for metric in contender.goals for goal in contender.goals_of(metric)
        ]
        assert {goal.against for goal in goals} <= {None, *names}


@pytest.fixture
def decoding(monkeypatch):
    """`parts.decoding`, on a tiny model in 16 bits."""
    monkeypatch.syspath_prepend(str(SPECS))
    from parts.decoding import Decoding, random_prompts

    model = tiny.model("llama").to(torch.bfloat16)
    return Decoding(lambda: model, random_prompts(3, 5), 12, after_first=True, judged=True)


def test_sixteen_bit_decoding_is_judged_by_float32(decoding):
    right = decoding.hayless()

    def off_by(nats: float) -> Contender:
        def answer():
            return {name: numbers + nats for name, numbers in right.answer().items()}

        return Contender(f"off by {nats}", lambda: dataclasses.replace(right, answer=answer))

    contenders = [
        Contender("transformers.generate", decoding.transformers),
        Contender("hayless", lambda: right),
        off_by(0.1),
    ]
    work = Work("w", contenders, as_exact(), "token", pieces=12, repeats=1, warmup=0, peaks=False)
    rows = runner.run(Spec("test", [work]), Path(__file__), say=lambda line: None)
    assert [bool(row.spread) for row in rows] == [True, True, False]
    assert "off float32" in rows[2].reason


def test_losses_are_judged_by_float32(monkeypatch):
    monkeypatch.syspath_prepend(str(SPECS))
    from parts.losses import Head

    head = Head(tokens=320, width=32, entries=1000, device="cpu")
    contenders = [
        Contender("all logits", head.plain),
        Contender("chunks", partial(head.hayless, chunk=64)),
        Contender("other tokens", partial(dataclasses.replace(head, tokens=340).hayless, chunk=64)),
    ]
    work = Work("w", contenders, head.same, "loss", repeats=1, warmup=0, peaks=False)
    rows = runner.run(Spec("test", [work]), Path(__file__), say=lambda line: None)
    times = {row.contender: bool(row.spread) for row in rows if row.metric == spec.TIME}
    assert times == {"all logits": True, "chunks": True, "other tokens": False}


def test_works_of_a_gpu_say_that_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = SPECS / "decode_gpu.py"
    rows = runner.run(spec.load(path), path, say=lambda line: None)
    assert {row.reason for row in rows} == {"there is no CUDA device"}
    assert {row.contender for row in rows} >= {"limit of memory", "transformers.generate", "hayless"}


def test_an_input_that_was_not_given_is_a_reason(monkeypatch, tmp_path):
    def prepare() -> Prepared:
        return Prepared(lambda: None, lambda: {"found": [len(list(inputs.given("odd_thing", "a folder").iterdir()))]})

    work = Work("w", [Contender("one", prepare)], lambda one, other: "", "call", repeats=1, peaks=False)
    asked = Spec("test", [work])
    monkeypatch.setenv("HAYLESS_BENCH_ODD_THING", str(tmp_path / "gone"))
    (row,) = runner.run(asked, Path(__file__), say=lambda line: None)
    assert row.reason == "needs --input odd_thing=PATH: a folder"
    inputs.give(f"odd_thing={tmp_path}")
    (row,) = runner.run(asked, Path(__file__), say=lambda line: None)
    assert row.spread and not row.reason
