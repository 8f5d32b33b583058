"""With drafts of every kind, greedy texts are the model's own, and samples are distributed as its own."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from hayless.core.errors import NotSupported, RequestError
from hayless.core.registry import configure, find
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.sampling import distribution
from hayless.methods.decoding.speculative import preflight
from hayless.methods.decoding.speculative.accept import accept
from hayless.methods.decoding.speculative.config import SpeculativeConfig
from hayless.methods.decoding.speculative.drafts import lookup
from hayless.methods.decoding.speculative.pace import Steady
from hayless.methods.decoding.speculative.part import Speculative
from hayless.methods.decoding.speculative.tally import Tally
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests import asset, tiny
from tests.methods.speculation import asset_prompts, drafting, made_by, p_value, random_draft


@pytest.fixture(scope="module")
def model() -> Any:
    return asset.model()


@pytest.mark.parametrize(
    ("kind", "counts", "backends", "least"),
    [
        ("lookup", range(1, 9), ["program"], 0.3),
        ("lookup", [3], ["modules"], 0.3),
        ("self", [1, 4, 8], ["program"], 0.05),
        ("random", [3], ["program"], 0.0),
        ("twin", [7], ["program"], 0.95),
        ("twin", [2], ["modules"], 0.95),
        ("packed", [4], ["program"], 0.5),
    ],
)
def test_greedy_texts_are_the_models_own(model, kind, counts, backends, least):
    given = {"random": random_draft, "twin": lambda: model, "packed": _packed}.get(kind, lambda: None)()
    options = SamplingOptions(max_tokens=14, ignore_end=True)
    plain = Engine(model, asset.tokenizer()).generate(asset_prompts(), options)
    for count, backend in itertools.product(counts, backends):
        part = drafting(model, kind if kind in ("lookup", "self") else "given", count, given)
        engine = Engine(model, asset.tokenizer(), backend=backend, draft=part)
        for one, expected in zip(engine.generate(asset_prompts(), options), plain, strict=True):
            assert (one.tokens, one.text, one.finish) == (expected.tokens, expected.text, expected.finish)
            assert one.logprobs == pytest.approx(expected.logprobs, rel=1e-3, abs=1e-3)
        assert least <= part.tally.acceptance <= (0.1 if kind == "random" else 1)
        assert 1 <= part.tally.tokens_a_pass <= count + 1


_PACKED: list[Any] = []


def _packed() -> Any:
    """The asset with 3-bit weights."""
    if not _PACKED:
        packed = asset.model()
        apply(packed, [configure("kmeans", bits=3, group_size=None, iterations=3)])
        _PACKED.append(packed)
    return _PACKED[0]


def test_each_row_ends_where_it_ends_alone(model):
    """Stop strings, end tokens inside a draft, budgets and the context's end, side by side."""
    tokenizer = asset.tokenizer()
    plain = Engine(model, tokenizer)
    text = plain.generate(asset_prompts()[:1], SamplingOptions(max_tokens=20))[0].text
    options = [
        SamplingOptions(max_tokens=40, stop=(text[9:12],)),
        SamplingOptions(max_tokens=1),
        SamplingOptions(max_tokens=40),
        SamplingOptions(max_tokens=6),
        SamplingOptions(max_tokens=99),
    ]
    prompts = [*asset_prompts(), (asset_prompts()[0] * 9)[:250]]
    ends = plain.generate(prompts[2:3], SamplingOptions(max_tokens=20))[0].tokens[7]
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, [ends]
    try:
        expected = Engine(model, tokenizer).generate(prompts, options)
        for backend in ("program", "modules"):
            engine = Engine(model, tokenizer, backend=backend, draft=drafting(model, tokens=5))
            found = engine.generate(prompts, options)
            assert [(one.text, one.tokens, one.finish) for one in found] == [
                (one.text, one.tokens, one.finish) for one in expected
            ]
        assert {one.finish for one in expected} == {"stop", "length", "end", "context"}
        streamed = list(engine.stream(prompts[0], options[0]))
        assert "".join(piece.text for piece in streamed) == expected[0].text
    finally:
        model.generation_config.eos_token_id = before


def test_in_16_bits_a_text_differs_only_where_two_tokens_are_as_likely():
    model = asset.model("bfloat16")
    options = SamplingOptions(max_tokens=30, ignore_end=True)
    plain = Engine(model).generate(asset_prompts(), options)
    drafted = Engine(model, draft=drafting(model, tokens=4)).generate(asset_prompts(), options)
    judge = asset.model()
    for prompt, one, other in zip(asset_prompts(), plain, drafted, strict=True):
        first = next(
            (at for at, pair in enumerate(zip(one.tokens, other.tokens, strict=True)) if len(set(pair)) > 1), None
        )
        if first is not None:
            with torch.no_grad():
                logits = judge(torch.tensor([[*prompt, *one.tokens[:first]]])).logits[0, -1]
            assert abs(logits[one.tokens[first]] - logits[other.tokens[first]]) < 0.1


def test_samples_depend_on_their_own_seed_only(model):
    options = [
        SamplingOptions(temperature=1.0, top_p=0.95, seed=seed, max_tokens=12, ignore_end=True) for seed in range(4)
    ]
    engine = Engine(model, draft=drafting(model, "given", given=random_draft()))
    together = made_by(engine, asset_prompts(), options)
    assert together == made_by(engine, asset_prompts(), options)
    alone = [made_by(engine, [prompt], one)[0] for prompt, one in zip(asset_prompts(), options, strict=True)]
    assert alone == together
    assert made_by(engine, asset_prompts()[:1], options[1]) != together[:1], "another seed"
    greedy = Engine(model).generate(asset_prompts()[:1], SamplingOptions(max_tokens=12, ignore_end=True))[0].tokens
    mixed = engine.generate(asset_prompts()[:2], [SamplingOptions(max_tokens=12, ignore_end=True), options[1]])
    assert [one.tokens for one in mixed] == [greedy, together[1]]


def test_sampled_tokens_of_the_engine_are_distributed_as_the_models():
    model = tiny.model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    part = Speculative(SpeculativeConfig(draft="self", layers=1, tokens=2, preflight=False), model)
    rows, prompt = 600, [5, 9, 31]
    options = [
        SamplingOptions(temperature=0.8, top_k=5, seed=seed, max_tokens=2, ignore_end=True) for seed in range(rows)
    ]
    found = Engine(model, draft=part).generate([prompt] * rows, options, batch_size=rows)
    with torch.no_grad():
        first = distribution(model(torch.tensor([prompt])).logits[:, -1], options[0])[0]
        likeliest = int(first.argmax())
        second = distribution(model(torch.tensor([[*prompt, likeliest]])).logits[:, -1], options[0])[0]
    tokens = torch.tensor([one.tokens for one in found])
    assert 0.1 < part.tally.acceptance < 0.95
    assert p_value(tokens[:, 0], first) > 1e-3
    assert p_value(tokens[tokens[:, 0] == likeliest, 1], second) > 1e-3


def test_other_tokens_are_refused_with_what_differs(model, tmp_path):
    other = asset.tokenizer().__class__.from_pretrained(asset.FOLDER)
    other.add_tokens(["<new>"])
    config = SpeculativeConfig(draft="given")
    with pytest.raises(RequestError, match=r"2048 is missing in the target and '<new>' in the draft"):
        Speculative(config, model, asset.tokenizer(), draft=random_draft(2049), draft_tokenizer=other)
    with pytest.raises(RequestError, match="The draft has 96 tokens, the target 2048"):
        Speculative(config, model, draft=tiny.model("llama"))


def test_a_table_that_is_padded_to_another_size_does_not_matter(model):
    options = SamplingOptions(temperature=0.8, seed=1, max_tokens=8, ignore_end=True)
    for size in (2050, 200):
        part = Speculative(
            SpeculativeConfig(draft="given", tokens=3, preflight=False),
            model,
            asset.tokenizer(),
            draft=random_draft(size),
            draft_tokenizer=asset.tokenizer(),
        )
        assert len(made_by(Engine(model, draft=part), asset_prompts(), options)[0]) == 8


def test_a_packed_folder_drafts(model, tmp_path: Path):
    save_model(_packed(), tmp_path / "packed", tokenizer=asset.tokenizer())
    config = SpeculativeConfig(draft=str(tmp_path / "packed"), tokens=2, preflight=False)
    engine = Engine(model, asset.tokenizer(), draft=find("speculative").load()(config, model, asset.tokenizer()))
    options = SamplingOptions(max_tokens=10, ignore_end=True)
    assert made_by(engine, asset_prompts()[:1], options) == made_by(Engine(model), asset_prompts()[:1], options)


def test_what_cannot_be_done_is_refused(model):
    with pytest.raises(RequestError, match="layers = 4"):
        Engine(model, draft=drafting(model, "self", layers=4)).generate(asset_prompts()[:1])
    gemma = tiny.model("gemma3")
    part = Speculative(SpeculativeConfig(preflight=False), gemma)
    with pytest.raises(NotSupported, match="does not keep the keys"):
        Engine(gemma, draft=part).generate([[1, 2]])
    gpt2 = tiny.model("gpt2")
    with pytest.raises(NotSupported, match="first layers"):
        Engine(gpt2, draft=Speculative(SpeculativeConfig(draft="self", preflight=False), gpt2)).generate([[1, 2]])


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox"])
def test_models_without_a_program_are_checked_through_their_modules(name):
    model, prompts = tiny.model(name), [[7, 8, 9, 7, 8], [5], [3] * 61]
    options = SamplingOptions(max_tokens=10, ignore_end=True)
    part = Speculative(
        SpeculativeConfig(draft="given", tokens=4, preflight=False), model, draft=tiny.model(name, seed=1)
    )
    expected = Engine(model).generate(prompts, options)
    found = Engine(model, draft=part).generate(prompts, options)
    assert [(one.tokens, one.finish) for one in found] == [(one.tokens, one.finish) for one in expected]


def test_lookup():
    assert lookup([1, 2, 3, 9, 1, 2, 3], 2, 3) == [9, 1]
    assert lookup([1, 2, 3, 2, 3, 4, 2, 3], 1, 3) == [4], "the latest of equals"
    assert lookup([1, 2, 3, 8, 2, 3, 4, 1, 2, 3], 1, 3) == [8], "the longest before the latest"
    assert lookup([1, 2, 1], 5, 3) == [2, 1, 2, 1, 2], "what followed is repeated"
    assert lookup([1, 2, 3], 4, 3) == []


# What a GPU does in graphs, launched one by one in Triton's interpreter.


@pytest.mark.parametrize(("kind", "temperature"), [("lookup", 0.0), ("program", 0.0), ("self", 1.2)])
def test_passes_on_the_device_are_those_of_the_host(monkeypatch, kind, temperature):
    pytest.importorskip("triton", reason="triton is not installed")
    from hayless.decode import kernel_pass
    from hayless.decode.program import plan
    from hayless.methods.decoding.speculative import captured, captured_drafts

    monkeypatch.setattr(kernel_pass, "few", lambda width: False)  # interpreted, the other products are quicker
    model, other = tiny.model("llama"), tiny.model("llama")
    with torch.no_grad():
        for path, parameter in [*model.named_parameters(), *other.named_parameters()]:
            if parameter.dim() > 1:
                parameter.mul_(10 if "layers" in path else 2)
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.02)
    prompts, count = [[0, 5, 9, 5, 9, 30, 5, 9], [17]], 2
    options = SamplingOptions(temperature=temperature, seed=3, max_tokens=5, ignore_end=True)
    host = Speculative(
        SpeculativeConfig(draft="given" if kind == "program" else kind, tokens=count, preflight=False, layers=None),
        model,
        draft=other,
    )
    expected = [one.tokens for one in Engine(model, draft=host).generate(prompts, options)]
    source = {"lookup": captured_drafts.Ngram(3), "program": plan(other), "self": captured_drafts.FirstLayers(1)}[kind]
    engine, tally = Engine(model), Tally()
    requests = [engine.request(prompt, options.model_copy(update={"top_logprobs": 2})) for prompt in prompts]
    batch = captured.Sessions(accept).begin(plan(model), source, requests, Steady(count), tally)
    while any(request.finish is None for request in requests):
        preflight._take(batch)
    assert [request.generation().tokens for request in requests] == expected
    assert batch._launched == batch._read, "no pass is queued behind the one that ends the last text"
    for request in requests if temperature == 0 else ():
        for (first, second), logprob in zip(request.generation().tops, request.generation().logprobs, strict=True):
            assert first[1] == pytest.approx(logprob, abs=1e-5) and second[1] <= first[1]
    assert tally.passes > 0 and tally.kept > 0
