"""The engine gives transformers' tokens for every causal family, alone and in uneven batches."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import transformers

from hayless.core.errors import NotSupported, RequestError, WorkError
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from tests import tiny

PROMPTS = [[0, 5, 9, 30, 31, 32, 60, 7, 8], [0, 17], [44, 45, 46, 47, 0]]


def _lively(name: str, **changes: object) -> torch.nn.Module:
    """A tiny model whose blocks outweigh its embeddings, so that it does not repeat one token."""
    found = tiny.config(name)
    for field, value in changes.items():
        setattr(found, field, value)
    model = tiny.model(name)
    if changes:
        torch.manual_seed(0)
        model = type(model)(found).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(10 if "layers" in path or ".h." in path else 2)
    return model


def _transformers(model: torch.nn.Module, prompt: list[int], tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=2
    )
    return found[0, len(prompt) :].tolist()


def _check_against_transformers(model: torch.nn.Module, prompts: list[list[int]], tokens: int = 14) -> None:
    engine, options = Engine(model), SamplingOptions(max_tokens=tokens)
    together = engine.generate(prompts, options)
    for prompt, found in zip(prompts, together, strict=True):
        assert list(found.tokens) == _transformers(model, prompt, tokens)
        assert engine.generate([prompt], options)[0].tokens == found.tokens
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *found.tokens]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(found.tokens)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(found.logprobs), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_greedy_tokens_equal_transformers(name):
    model = _lively(name)
    _check_against_transformers(model, PROMPTS)
    assert len(set(Engine(model).generate(PROMPTS[:1])[0].tokens)) > 2, "the model must not just repeat itself"


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_greedy_tokens_equal_transformers_beyond_the_sliding_window(name):
    _check_against_transformers(_lively(name, sliding_window=6), PROMPTS)


@pytest.mark.parametrize("backend", ["modules", "program"])
def test_the_likeliest_tokens_are_those_of_transformers(backend):
    model, prompts = tiny.model("llama"), [[5, 6, 7], [9]]
    options = [
        SamplingOptions(max_tokens=3, top_logprobs=count, temperature=temperature, top_k=2, seed=1, ignore_end=True)
        for count, temperature in ((4, 0.0), (2, 1.5))
    ]
    found = Engine(model, backend=backend).generate(prompts, options)
    for prompt, one, own in zip(prompts, found, options, strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prompt, *one.tokens]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        for place, top in enumerate(one.tops):
            values, tokens = logprobs[place].topk(own.top_logprobs)
            assert [token for token, _ in top] == tokens.tolist()
            assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-4)
            assert one.logprobs[place] == pytest.approx(float(logprobs[place, one.tokens[place]]), abs=1e-4)
    [one] = Engine(model, backend=backend).generate(prompts[:1], SamplingOptions(max_tokens=2, ignore_end=True))
    assert one.tops == ((), ())


def test_a_row_that_ends_leaves_the_others_as_they_were():
    model = _lively("llama")
    ends = Engine(model).generate([PROMPTS[1]], SamplingOptions(max_tokens=12))[0].tokens[3]
    model.generation_config.eos_token_id = [ends, 95]
    engine, options = Engine(model), SamplingOptions(max_tokens=12)
    together = engine.generate(PROMPTS, options)
    assert together[1].finish == "end" and together[1].tokens[-1] == ends and len(together[1].tokens) <= 4
    for prompt, found in zip(PROMPTS, together, strict=True):
        assert engine.generate([prompt], options)[0].tokens == found.tokens
    ignoring = engine.generate(PROMPTS, SamplingOptions(max_tokens=12, ignore_end=True))
    assert [len(found.tokens) for found in ignoring] == [12, 12, 12]
    assert {found.finish for found in ignoring} == {"length"}


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_the_context_ends_each_row_where_it_is_full(name):
    model = _lively(name)
    prompts = [[3] * 60, [4] * 5, [5] * 63]
    options = SamplingOptions(max_tokens=30, ignore_end=True)
    found = Engine(model).generate(prompts, options)
    assert [(len(one.tokens), one.finish) for one in found] == [(4, "context"), (30, "length"), (1, "context")]
    assert found[1].tokens == Engine(model).generate(prompts[1:2], options)[0].tokens


def test_samples_depend_on_their_own_seed_only():
    engine = Engine(_lively("llama"))
    options = [SamplingOptions(temperature=1.5, seed=seed, max_tokens=10, ignore_end=True) for seed in range(6)]
    prompts = [PROMPTS[seed % 3] for seed in range(6)]
    together = engine.generate(prompts, options)
    for batch_size in (1, 4):
        again = engine.generate(prompts, options, batch_size=batch_size)
        assert [one.tokens for one in again] == [one.tokens for one in together]
    assert together[0].tokens != together[3].tokens, "another seed, the same prompt"
    mixed = engine.generate([prompts[0], prompts[1]], [options[0], SamplingOptions(max_tokens=10)])
    assert mixed[0].tokens == together[0].tokens
    assert list(mixed[1].tokens) == _transformers(engine.model, prompts[1], 10)


def test_stream_gives_the_pieces_of_generate():
    engine = Engine(_lively("qwen2"))
    options = SamplingOptions(temperature=0.9, seed=4, max_tokens=9)
    pieces = list(engine.stream(PROMPTS[0], options))
    whole = engine.generate([PROMPTS[0]], options)[0]
    assert tuple(piece.token for piece in pieces) == whole.tokens
    assert tuple(piece.logprob for piece in pieces) == whole.logprobs
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish == whole.finish
    assert whole.text == "" and whole.prompt_tokens == len(PROMPTS[0])


def test_timings_are_of_every_token():
    found = Engine(_lively("llama")).generate([PROMPTS[0]], SamplingOptions(max_tokens=6, ignore_end=True))[0]
    assert len(found.times) == 6 and all(a < b for a, b in itertools.pairwise(found.times))
    assert found.first_token_seconds == found.times[0] > 0
    assert found.seconds_per_token == pytest.approx((found.times[-1] - found.times[0]) / 5)


def test_dropout_is_off_and_modes_come_back():
    config = tiny.config("gpt2")
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.5
    torch.manual_seed(0)
    model = tiny.transformers.GPT2LMHeadModel(config).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    engine = Engine(model)
    assert engine.generate([PROMPTS[0]])[0].tokens == engine.generate([PROMPTS[0]])[0].tokens
    assert [module.training for module in model.modules()] == modes
    stream = engine.stream(PROMPTS[0])
    next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    stream.close()
    assert [module.training for module in model.modules()] == modes


def test_an_empty_prompt_starts_from_the_begin_token():
    engine = Engine(_lively("llama"))
    assert engine.generate([[]])[0].tokens == engine.generate([[0]])[0].tokens
    engine.model.config.bos_token_id = None
    assert engine.generate([[]])[0].tokens == engine.generate([[1]])[0].tokens
    engine.model.config.eos_token_id = None
    with pytest.raises(RequestError, match="no begin or end token"):
        engine.generate([[]])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[3] * 64], "64 tokens.*holds 64"),
        ([[3] * 500], "500 tokens"),
        ([[3, 96]], "Token 96"),
        ([[-1]], "Token -1"),
        ([[1.5]], "Token 1.5"),
        (["text"], "needs a tokenizer"),
        ("text", "list of prompts"),
    ],
)
def test_impossible_prompts_are_refused(prompts, message):
    with pytest.raises(RequestError, match=message):
        Engine(_lively("gpt2")).generate(prompts)


def test_other_impossible_requests_are_refused():
    engine = Engine(_lively("gpt2"))
    with pytest.raises(RequestError, match="3 prompts"):
        engine.generate(PROMPTS, [SamplingOptions()])
    with pytest.raises(RequestError, match="batch_size"):
        engine.generate(PROMPTS, batch_size=0)
    with pytest.raises(RequestError, match="Stop strings need a tokenizer"):
        engine.stream([1], SamplingOptions(stop=("x",)))
    for name in ("bert", "t5"):
        with pytest.raises(NotSupported, match="causal"):
            Engine(tiny.model(name))
    assert engine.generate([]) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_model_is_an_error_not_a_text(temperature):
    model = _lively("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(WorkError, match="not finite"):
        Engine(model).generate(PROMPTS, SamplingOptions(temperature=temperature, top_p=0.9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models_generate(dtype):
    engine = Engine(_lively("llama").to(dtype))
    found = engine.generate(PROMPTS, SamplingOptions(temperature=1.0, top_p=0.9, max_tokens=5, ignore_end=True))
    assert [len(one.tokens) for one in found] == [5, 5, 5]


DRAFT = Path(__file__).parents[3] / "shared" / "models" / "draft"


@pytest.mark.skipif(not DRAFT.is_dir(), reason=f"the trained pair is not at {DRAFT}")
def test_a_trained_model_continues_text_as_transformers_does():
    model = transformers.AutoModelForCausalLM.from_pretrained(DRAFT, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DRAFT)
    prompts = ["def main(", "import os\n\n\nclass Reader:\n    def", "# naïve"]
    for prompt, found in zip(
        prompts, Engine(model, tokenizer).generate(prompts, SamplingOptions(max_tokens=24)), strict=True
    ):
        expected = _transformers(model, tokenizer(prompt)["input_ids"], 24)
        assert list(found.tokens) == expected
        assert found.text == tokenizer.decode(expected, skip_special_tokens=True)
