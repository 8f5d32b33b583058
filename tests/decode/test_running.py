"""Continuous batching: what a request gets does not depend on who joins and leaves beside it."""

from __future__ import annotations

import random

import pytest
import torch

from hayless.core.errors import NotSupported, RequestError, WorkError
from hayless.decode.engine import Backend, Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.request import Request
from tests import tiny

FAMILIES = ["llama", "gpt2", "opt", "gpt_neox", "mixtral"]


def jobs(count: int) -> list[tuple[list[int], SamplingOptions]]:
    """Prompts and options of all kinds."""
    drawn = random.Random(0)
    return [
        (
            [drawn.randrange(3, 60) for _ in range(drawn.randint(1, 9))],
            SamplingOptions(
                max_tokens=drawn.randint(1, 16), temperature=drawn.choice([0, 1]), seed=number, ignore_end=True
            ),
        )
        for number in range(count)
    ]


def served(engine: Engine, wanted: list[tuple[list[int], SamplingOptions]], rows: int) -> list[tuple[int, ...]]:
    """The tokens of each request; they arrive one after the other while others run."""
    running = engine.open(rows)
    requests = [engine.request(prompt, options) for prompt, options in wanted]
    found: dict[Request, list[int]] = {request: [] for request in requests}
    coming = list(requests)
    for _ in range(rows + 1):
        running.add(coming.pop(0))
    steps = 0
    while running.busy or coming:
        for request, piece in running.step():
            assert not isinstance(piece, WorkError)
            found[request].append(piece.token)
        assert len(running.running) <= rows
        steps += 1
        if coming and steps % 3 == 0:
            running.add(coming.pop(0))
    assert all(request.finish == "length" for request in requests)
    return [tuple(tokens) for tokens in found.values()]


@pytest.mark.parametrize("name", FAMILIES)
def test_requests_get_what_they_get_alone(name: str) -> None:
    model = tiny.model(name)
    for backend in ("modules", "program") if name == "llama" else ("modules",):
        engine = Engine(model, backend=backend)
        wanted = jobs(7)
        alone = [engine.generate([prompt], options)[0].tokens for prompt, options in wanted]
        assert served(engine, wanted, rows=3) == alone


@pytest.mark.parametrize(("name", "backend"), [("llama", "modules"), ("llama", "program"), ("gemma3", "modules")])
def test_bits_are_the_same_in_any_batch_where_that_is_asked_for(name: str, backend: Backend) -> None:
    engine = Engine(tiny.model(name).to(torch.bfloat16), backend=backend, deterministic=True)
    wanted = [(prompt, own.model_copy(update={"max_tokens": 3 + own.seed})) for prompt, own in jobs(4)]
    alone = [engine.generate([prompt], options)[0] for prompt, options in wanted]
    found = engine.generate([prompt for prompt, _ in wanted], [own for _, own in wanted])
    assert [(one.tokens, one.logprobs) for one in found] == [(one.tokens, one.logprobs) for one in alone]
    assert served(engine, wanted, rows=2) == [one.tokens for one in alone]


def test_what_takes_rows_side_by_side_is_refused_beside_it() -> None:
    from hayless.core.registry import configure, find

    model = tiny.model("llama")
    draft = find("speculative").load()(configure("speculative"), model)
    with pytest.raises(NotSupported, match="deterministic excludes drafts"):
        Engine(model, draft=draft, deterministic=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_captured_steps_too(name: str) -> None:
    model = tiny.model(name).to("cuda")
    engine = Engine(model)
    assert engine.path.backend == "graphs"
    wanted = jobs(30)
    plain = Engine(model, backend="program")
    alone = [plain.generate([prompt], options)[0].tokens for prompt, options in wanted]
    for rows in (1, 4, 16):
        assert served(engine, wanted, rows) == alone


def test_where_layers_keep_a_window_requests_wait_for_the_batch() -> None:
    config = tiny.config("mistral")
    config.sliding_window = 4
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    engine = Engine(model)
    assert engine.path.backend == "modules" and not engine.open(2)._batch.joinable
    wanted = jobs(6)
    alone = [engine.generate([prompt], options)[0].tokens for prompt, options in wanted]
    assert served(engine, wanted, rows=2) == alone


def test_who_leaves_disturbs_nobody() -> None:
    engine = Engine(tiny.model("llama"))
    options = SamplingOptions(max_tokens=10, ignore_end=True)
    stays, leaves, waits = (engine.request([token, 7], options) for token in (3, 4, 5))
    running = engine.open(2)
    for request in (stays, leaves, waits):
        running.add(request)
    made: list[int] = []
    for step in range(30):
        made += [piece.token for request, piece in running.step() if request is stays]
        if step == 3:
            running.cancel(leaves)
            running.cancel(waits)
    assert tuple(made) == engine.generate([[3, 7]], options)[0].tokens
    assert leaves.finish == waits.finish == "cancelled" and waits.made == 0 and not running.busy


def test_an_output_that_is_no_number_ends_its_request_alone() -> None:
    model = tiny.model("llama")
    model.model.embed_tokens.weight.data[50] = float("nan")
    engine = Engine(model)
    running = engine.open(2)
    broken, sound = (engine.request([token], SamplingOptions(max_tokens=3, ignore_end=True)) for token in (50, 5))
    running.add(broken)
    running.add(sound)
    found = [(request, piece) for _ in range(5) for request, piece in running.step()]
    assert [isinstance(piece, WorkError) for request, piece in found if request is broken] == [True]
    assert not any(isinstance(piece, WorkError) for request, piece in found if request is sound)
    assert sound.finish == "length"


def test_a_request_longer_than_a_row_is_refused() -> None:
    engine = Engine(tiny.model("llama"))
    running = engine.open(1, tokens=8)
    with pytest.raises(RequestError, match="10 tokens"):
        running.add(engine.request([3, 4], SamplingOptions(max_tokens=8)))
    with pytest.raises(RequestError, match="rows = 0"):
        engine.open(0)
