"""Captured passes give the model's own tokens, on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.methods.decoding.speculative.config import SpeculativeConfig
from hayless.methods.decoding.speculative.part import Speculative
from tests import tiny
from tests.decode.test_running import jobs, served

pytest.importorskip("triton", reason="triton is not installed")

pytestmark = [
    pytest.mark.usefixtures("exact_float32"),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPTS = [[0, 5, 9, 5, 9, 30, 5, 9], [17], [44, 45, 46, 0], [3] * 20]


def _lively(name: str, noise: float = 0.0) -> Any:
    model = tiny.model(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(10 if "layers" in path else 2)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
    return model.cuda()


def _part(model: Any, name: str, kind: str, count: int) -> Speculative:
    config = SpeculativeConfig(draft=kind, tokens=count, preflight=False)
    return Speculative(config, model, draft=_lively(name, 0.02) if kind == "given" else None)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3"])
@pytest.mark.parametrize(("kind", "count"), [("given", 1), ("given", 4), ("self", 3), ("lookup", 8)])
def test_greedy_texts_alone_and_together(name, kind, count):
    model, options = _lively(name), SamplingOptions(max_tokens=40, ignore_end=True)
    expected = [one.tokens for one in Engine(model, backend="program").generate(PROMPTS, options)]
    part = _part(model, name, kind, count)
    engine = Engine(model, draft=part)
    assert engine.path.backend == "graphs"
    assert [one.tokens for one in engine.generate(PROMPTS, options)] == expected
    assert [engine.generate([prompt], options)[0].tokens for prompt in PROMPTS] == expected
    assert part.tally.kept > 0
    if kind == "given":
        assert part.tally.drafting[-1] > 0


@pytest.mark.parametrize(("kind", "count"), [("given", 3), ("self", 2)])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9, "min_p": 0.01}], ids=str)
def test_samples_are_those_of_the_host(kind, count, filters):
    model = _lively("llama")
    options = [
        SamplingOptions(temperature=temperature, seed=seed, max_tokens=12, ignore_end=True, **filters)
        for seed, temperature in enumerate((0.8, 1.2, 0.0))
    ]
    prompts = PROMPTS[:3]
    host = Engine(model, backend="program", draft=_part(model, "llama", kind, count)).generate(prompts, options)
    engine = Engine(model, draft=_part(model, "llama", kind, count))
    found = engine.generate(prompts, options)
    for one, other, prompt, own in zip(found, host, prompts, options, strict=True):
        assert one.tokens == other.tokens
        assert engine.generate([prompt], own)[0].tokens == one.tokens


@pytest.mark.parametrize("kind", ["given", "self", "lookup"])
def test_requests_join_and_get_what_they_get_alone(kind):
    model = _lively("llama")
    wanted = jobs(30)
    greedy = [(prompt, own.model_copy(update={"temperature": 0.0, "top_logprobs": 2})) for prompt, own in wanted]
    plain = Engine(model, backend="program")
    expected = [plain.generate([prompt], own)[0].tokens for prompt, own in greedy]
    part = _part(model, "llama", kind, 3)
    engine = Engine(model, draft=part)
    for rows in (1, 4, 16):
        assert served(engine, greedy, rows) == expected
        assert served(engine, wanted, rows) == [engine.generate([prompt], own)[0].tokens for prompt, own in wanted]
    assert part.tally.kept > 0


def test_a_preflight_measures_the_device():
    model = _lively("llama")
    part = Speculative(SpeculativeConfig(draft="given"), model, draft=_lively("llama", 0.02))
    options = SamplingOptions(max_tokens=60, ignore_end=True)
    expected = Engine(model, backend="program").generate([[0, 5, 9]], options)[0].tokens
    assert Engine(model, draft=part).generate([[0, 5, 9]], options)[0].tokens == expected
    (found,) = part.preflights.values()
    assert found.cost > 0 and found.verify > 0
