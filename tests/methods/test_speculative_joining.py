"""Requests that join and leave a batch with drafts get what they get alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.running import Running
from hayless.methods.decoding.speculative.accept import accept
from hayless.methods.decoding.speculative.config import SpeculativeConfig
from hayless.methods.decoding.speculative.pace import Steady
from hayless.methods.decoding.speculative.part import Speculative
from hayless.methods.decoding.speculative.tally import Tally
from tests import tiny
from tests.decode.test_running import jobs, served


def drafting(model: Any, kind: str, *, preflight: bool = False) -> Speculative:
    name = {"LlamaForCausalLM": "llama", "GPT2LMHeadModel": "gpt2"}[type(model).__name__]
    config = SpeculativeConfig(
        draft="given" if kind == "model" else kind, tokens="auto" if preflight else 3, preflight=preflight
    )
    return Speculative(config, model, draft=tiny.model(name, seed=1) if kind == "model" else None)


@pytest.mark.parametrize(
    ("name", "backend", "kind"),
    [
        ("llama", "program", "lookup"),
        ("llama", "program", "self"),
        ("llama", "program", "model"),
        ("llama", "modules", "model"),
        ("gpt2", "modules", "lookup"),
    ],
)
def test_requests_get_what_they_get_alone(name, backend, kind):
    model = tiny.model(name)
    plain, wanted = Engine(model, backend=backend), jobs(7)
    greedy = [(prompt, options.model_copy(update={"temperature": 0.0})) for prompt, options in wanted]
    part = drafting(model, kind)
    engine = Engine(model, backend=backend, draft=part)
    assert served(engine, greedy, rows=3) == [plain.generate([prompt], own)[0].tokens for prompt, own in greedy]
    assert part.tally.kept > 0 or kind == "model"
    assert served(engine, wanted, rows=3) == [engine.generate([prompt], own)[0].tokens for prompt, own in wanted]


def test_drafts_that_rest_and_come_back_change_no_greedy_text(monkeypatch):
    model = tiny.model("llama")
    part = drafting(model, "model", preflight=True)
    engine, wanted = Engine(model, draft=part), jobs(12)
    greedy = [(prompt, options.model_copy(update={"temperature": 0.0})) for prompt, options in wanted]
    asked = iter([0, 0, 3, 2, 0, 0, 0, 4, 1] * 100)
    monkeypatch.setattr("hayless.methods.decoding.speculative.pace.Measured.count", lambda self, rows: next(asked))
    alone = Engine(model)
    assert served(engine, greedy, rows=3) == [alone.generate([prompt], own)[0].tokens for prompt, own in greedy]


def test_a_cache_does_not_grow_with_those_who_left():
    model = tiny.model("gpt2")
    engine = Engine(model, draft=drafting(model, "lookup"))
    running = engine.open(2)
    options = SamplingOptions(max_tokens=12, ignore_end=True)
    longest = 0
    for number in range(30):
        running.add(engine.request([5, 9, 5, 3 + number], options))
    while running.busy:
        running.step()
        longest = max(longest, running._batch._reader._held_bt.shape[1])
    assert longest <= 4 + 12 * 4


def test_in_graphs_too(monkeypatch):
    """What a GPU does, launched one by one in Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")
    from hayless.decode import kernel_pass
    from hayless.decode.program import plan
    from hayless.methods.decoding.speculative.captured import Sessions
    from hayless.methods.decoding.speculative.captured_drafts import Ngram

    monkeypatch.setattr(kernel_pass, "few", lambda width: False)  # interpreted, the other products are quicker
    model = tiny.model("llama")
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(10 if "layers" in path else 2)
    engine, tally = Engine(model), Tally()
    running = Running(Sessions(accept).open(plan(model), Ngram(3), 2, 20, Steady(2), tally), 2, 20)
    greedy = SamplingOptions(max_tokens=4, ignore_end=True)
    drawn = SamplingOptions(max_tokens=3, temperature=1.0, seed=3, ignore_end=True)
    prompts = [[0, 5, 9, 5, 9, 30, 5, 9], [17, 4, 17], [9, 5, 9, 5, 9, 5]]
    requests = [engine.request(prompt, own) for prompt, own in zip(prompts, (greedy, drawn, greedy), strict=True)]
    for request in requests:
        running.add(request)
    while running.busy:
        running.step()
    expected = [engine.generate([prompt], greedy)[0].tokens for prompt in prompts]
    assert [request.generation().tokens for request in requests[::2]] == expected[::2]
    host = Engine(model, draft=Speculative(SpeculativeConfig(tokens=2, preflight=False), model))
    assert requests[1].generation().tokens[:1] == host.generate([prompts[1]], drawn)[0].tokens[:1]
    assert tally.kept > 0
