"""Rows with adapters of their own in captured steps, on a GPU: the tokens of each adapter alone, and nothing captured
again when adapters come and go."""

from __future__ import annotations

import pytest
import torch

from hayless.core.registry import configure
from hayless.decode.bank import AdapterBank
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from tests.decode.adapters import adapters, alone, base

pytest.importorskip("triton", reason="triton is not installed")

pytestmark = [
    pytest.mark.usefixtures("exact_float32"),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPTS = [[5, 9, 30, 31], [17], [44, 45, 46, 47, 50], [5, 9], [17, 3], [5, 9, 30, 31]]
WANTED = ["legal", "", "code", "medical", "legal", ""]


def filled(model, found, slots):
    bank = AdapterBank.for_adapters(model, found.values(), slots)
    for name, one in found.items():
        bank.add(name, one)
    return bank


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3"])
def test_rows_have_their_own(name, deterministic):
    model, found = base(name, device="cuda"), adapters(name)
    options = [SamplingOptions(max_tokens=8 + n, temperature=n % 2, seed=n, ignore_end=True) for n in range(6)]
    expected = [alone(model, found.get(w), p, o).tokens for w, p, o in zip(WANTED, PROMPTS, options, strict=True)]
    engine = Engine(model, adapters=filled(model, found, 3), deterministic=deterministic)
    assert engine.path.backend == "graphs"
    together = engine.generate(PROMPTS, options, adapters=WANTED)
    assert [one.tokens for one in together] == expected
    by_itself = [engine.generate([p], o, adapters=w)[0] for p, o, w in zip(PROMPTS, options, WANTED, strict=True)]
    assert [one.tokens for one in by_itself] == expected
    if deterministic:
        assert [one.logprobs for one in together] == [one.logprobs for one in by_itself]


def test_packed_weights_have_branches_beside_them():
    model, found = base("llama", [configure("nf4")], "cuda"), adapters("llama")
    options = SamplingOptions(max_tokens=8, ignore_end=True)
    bank = filled(model, found, 3)
    engine, plain = (Engine(model, adapters=bank, backend=way) for way in ("graphs", "program"))
    for one, other in zip(*(each.generate(PROMPTS, options, adapters=WANTED) for each in (engine, plain)), strict=True):
        # A near tie may fall otherwise: one token and several are multiplied by other kernels.
        same = next((n for n, pair in enumerate(zip(one.tokens, other.tokens, strict=True)) if len(set(pair)) > 1), 8)
        assert same >= 2
        torch.testing.assert_close(
            torch.tensor(one.logprobs[:same]), torch.tensor(other.logprobs[:same]), rtol=5e-2, atol=5e-2
        )


def test_adapters_come_and_go_and_nothing_is_captured_again(monkeypatch):
    model, found = base("llama", device="cuda"), adapters("llama")
    options = SamplingOptions(max_tokens=30, ignore_end=True)
    expected = {name: alone(model, found.get(name), PROMPTS[0], options).tokens for name in (*found, "")}
    bank = AdapterBank.for_adapters(model, found.values(), 2)
    engine = Engine(model, adapters=bank)
    bank.add("legal", found["legal"])
    running = engine.open(4, 64)
    captured = []
    monkeypatch.setattr("hayless.decode.graphs.captured", lambda *_: captured.append(1))
    requests = {name: engine.request(PROMPTS[0], options, name) for name in ("legal", "")}
    for request in requests.values():
        running.add(request)
    running.step()
    bank.add("medical", found["medical"])
    requests["medical"] = engine.request(PROMPTS[0], options, "medical")
    running.add(requests["medical"])
    while requests["legal"].finish is None:
        running.step()
    bank.remove("legal")
    bank.add("code", found["code"])
    requests["code"] = engine.request(PROMPTS[0], options, "code")
    running.add(requests["code"])
    while running.busy:
        running.step()
    assert not captured
    assert {name: request.generation().tokens for name, request in requests.items()} == expected


def test_bf16_is_as_near_to_float32_as_the_program():
    model, found = base("llama", device="cuda"), adapters("llama")
    exact = _seconds(Engine(model, adapters=filled(model, found, 3), backend="program"))
    model.bfloat16()
    bank = filled(model, found, 3)
    program, graphs = (_seconds(Engine(model, adapters=bank, backend=way)) for way in ("program", "graphs"))
    rows = [row for row in zip(exact, program, graphs, strict=True) if len({first for first, _ in row}) == 1]
    assert len(rows) >= 3
    errors = []
    for number in (1, 2):
        pairs = [(row[number][1], row[0][1]) for row in rows]
        off = [one[token] - other[token] for one, other in pairs for token in one.keys() & other.keys()]
        errors.append(torch.tensor(off).square().mean().sqrt().item())
    assert errors[1] <= 3 * errors[0] + 1e-3


def _seconds(engine):
    """Of each prompt the first token, and what a step says of the likeliest behind it."""
    options = SamplingOptions(max_tokens=2, top_logprobs=20, ignore_end=True)
    return [(one.tokens[0], dict(one.tops[1])) for one in engine.generate(PROMPTS, options, adapters=WANTED)]
