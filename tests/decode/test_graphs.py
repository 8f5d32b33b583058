"""Captured steps give the tokens of the plain program, on a GPU."""

from __future__ import annotations

import pytest
import torch

from hayless.core.registry import configure
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.program import plan
from hayless.model.transform import apply
from tests import tiny

pytest.importorskip("triton", reason="triton is not installed")

from hayless.decode.graphs import Session

pytestmark = [
    pytest.mark.usefixtures("exact_float32"),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPTS = [[0, 5, 9, 30, 31, 32, 60, 7, 8], [0, 17], [44, 45, 46, 47, 0]]
NAMES = ["llama", "llama-tied", "mistral", "qwen2", "qwen3"]


def _lively(name, dtype=torch.float32):
    model = tiny.model(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(10 if "layers" in path else 2)
    return model.to("cuda", dtype)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_alone_and_together(name):
    model = _lively(name)
    plain, graphs = Engine(model, backend="program"), Engine(model)
    assert graphs.path.backend == "graphs"
    options = SamplingOptions(max_tokens=40, ignore_end=True)
    expected = plain.generate(PROMPTS, options)
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[1:2], PROMPTS * 3):
        for prompt, found in zip(prompts, graphs.generate(prompts, options), strict=True):
            wanted = expected[PROMPTS.index(prompt)]
            assert found.tokens == wanted.tokens and found.finish == wanted.finish
            torch.testing.assert_close(
                torch.tensor(found.logprobs), torch.tensor(wanted.logprobs), rtol=1e-3, atol=1e-3
            )


@pytest.mark.parametrize("method", ["kmeans", "nf4", "uniform", "int8"])
def test_packed_weights_are_captured_with_their_methods_products(method):
    model = _lively("llama")
    apply(model, [configure(method)])
    plain, graphs = Engine(model, backend="program"), Engine(model)
    assert graphs.path.backend == "graphs" and plan(model).packed
    options = SamplingOptions(max_tokens=20, ignore_end=True)
    for prompts in (PROMPTS[:1], PROMPTS):
        for found, wanted in zip(graphs.generate(prompts, options), plain.generate(prompts, options), strict=True):
            # One token and several are multiplied by other kernels: a near tie may fall otherwise.
            pairs = zip(found.tokens, wanted.tokens, strict=True)
            same = next((place for place, (one, other) in enumerate(pairs) if one != other), 20)
            assert same >= 5
            torch.testing.assert_close(
                torch.tensor(found.logprobs[:same]), torch.tensor(wanted.logprobs[:same]), rtol=2e-2, atol=2e-2
            )


def test_ends_contexts_and_lengths_of_rows():
    model = _lively("llama")
    ends = Engine(model, backend="program").generate([PROMPTS[1]], SamplingOptions(max_tokens=12))[0].tokens[3]
    model.generation_config.eos_token_id = [ends, 95]
    plain, graphs = Engine(model, backend="program"), Engine(model)
    prompts = [*PROMPTS, [3] * 60, [5] * 63]
    options = [SamplingOptions(max_tokens=n) for n in (12, 12, 1, 30, 30)]
    found, expected = graphs.generate(prompts, options), plain.generate(prompts, options)
    assert [(one.tokens, one.finish) for one in found] == [(one.tokens, one.finish) for one in expected]
    assert {one.finish for one in found} >= {"end", "length", "context"}


def test_samples_are_those_of_the_plain_program_whatever_the_batch():
    model = _lively("llama")
    plain, graphs = Engine(model, backend="program"), Engine(model)
    options = [
        SamplingOptions(temperature=1.3, seed=1, max_tokens=20, ignore_end=True),
        SamplingOptions(temperature=0.8, seed=2, top_k=9, max_tokens=20, ignore_end=True),
        SamplingOptions(temperature=1.1, seed=3, top_p=0.8, min_p=0.02, max_tokens=11, ignore_end=True),
        SamplingOptions(max_tokens=20, ignore_end=True),
    ]
    prompts = [*PROMPTS, PROMPTS[0]]
    expected = [one.tokens for one in plain.generate(prompts, options)]
    assert [one.tokens for one in graphs.generate(prompts, options)] == expected
    assert [graphs.generate([p], o)[0].tokens for p, o in zip(prompts, options, strict=True)] == expected


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_bits_are_the_same_in_any_batch_where_that_is_asked_for(name):
    engine = Engine(_lively(name, torch.bfloat16), deterministic=True)
    assert engine.path.backend == "graphs"
    prompts = [*PROMPTS, *([number, 7] for number in range(9))]
    options = [
        SamplingOptions(max_tokens=12 + 4 * number, temperature=number % 2, seed=number, ignore_end=True)
        for number in range(len(prompts))
    ]
    alone = [engine.generate([prompt], own)[0] for prompt, own in zip(prompts, options, strict=True)]
    for size in (2, 5, 12):
        found = engine.generate(prompts, options, batch_size=size)
        assert [(one.tokens, one.logprobs) for one in found] == [(one.tokens, one.logprobs) for one in alone]


def test_the_likeliest_tokens_are_those_of_the_plain_program():
    model = _lively("llama")
    options = [
        SamplingOptions(max_tokens=9, top_logprobs=count, temperature=temperature, seed=1, ignore_end=True)
        for count, temperature in ((3, 0.0), (20, 1.0), (0, 0.0))
    ]
    found, expected = (Engine(model, backend=way).generate(PROMPTS, options) for way in ("auto", "program"))
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        for mine, theirs in zip(one.tops, other.tops, strict=True):
            assert [token for token, _ in mine] == [token for token, _ in theirs]
            assert [value for _, value in mine] == pytest.approx([value for _, value in theirs], abs=1e-3)


def test_a_session_used_again_shows_nothing_of_its_past():
    model = _lively("llama")
    graphs, options = Engine(model), SamplingOptions(max_tokens=30, ignore_end=True)
    first = graphs.generate([PROMPTS[0]], options)[0].tokens
    session = graphs._graphs._sessions[0]
    with torch.inference_mode():
        run = session.forward
        for tensor in (session.cache.k, session.cache.v, run.logits_nv, run.x, run._qkv, run._mixed):
            tensor.fill_(torch.nan)
    assert graphs.generate([PROMPTS[0]], options)[0].tokens == first
    stream = graphs.stream(PROMPTS[1], options)
    next(stream)
    stream.close()
    assert graphs.generate([PROMPTS[0]], options)[0].tokens == first
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    changed = graphs.generate([PROMPTS[0]], options)[0].tokens
    assert changed == Engine(model, backend="program").generate([PROMPTS[0]], options)[0].tokens != first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3])
def test_16_bit_steps_stay_near_float32(dtype, rows):
    model = _lively("qwen3")
    prompts, options = PROMPTS[:rows], SamplingOptions(max_tokens=1)

    @torch.inference_mode()
    def logits(dtype: torch.dtype) -> torch.Tensor:
        session = Session(plan(model.to(dtype)), rows, 256)
        session.capture("greedy")
        session.cache.lengths = [0] * rows
        session.program.prefill(prompts, session.cache, 64)
        session.lengths_b.copy_(torch.tensor([len(prompt) for prompt in prompts]))
        session.active_b.fill_(1)
        session.tokens_b.copy_(torch.tensor([11, 12, 13][:rows]))
        session.replay("greedy")
        return session.logits_bv.clone()

    low = logits(dtype)
    model = _lively("qwen3").to(dtype)
    high = logits(torch.float32)
    assert (low - high).norm() / high.norm() < (3e-2 if dtype is torch.bfloat16 else 5e-3)
    assert len(Engine(model).generate(prompts, options)) == rows
