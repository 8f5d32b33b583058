"""Speculative sampling loses nothing: greedy texts are the model's own, and samples are distributed as its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hayless.core.errors import NotSupported, RequestError
from hayless.core.registry import configure, find
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.request import Request
from hayless.decode.sampling import distribution, invert
from hayless.methods.decoding.speculative import preflight
from hayless.methods.decoding.speculative.accept import accept
from hayless.methods.decoding.speculative.config import SpeculativeConfig
from hayless.methods.decoding.speculative.drafts import lookup
from hayless.methods.decoding.speculative.part import Speculative
from hayless.methods.decoding.speculative.predict import acceptances, best_drafted, speedup, tokens_of
from hayless.methods.decoding.speculative.preflight import Preflight
from hayless.methods.decoding.speculative.reference import speculate
from hayless.methods.decoding.speculative.tally import Tally
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests import asset, tiny

DRAWS = 100_000


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _distributions(count: int, options: SamplingOptions, seed: int, vocabulary: int = 12) -> tuple[Tensor, Tensor]:
    """A target's (count + 1, v) and a draft's (count, v), related as a model's and a smaller one's are."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(count + 1, vocabulary, generator=generator) * 1.5
    draft = target[:-1] + torch.randn(count, vocabulary, generator=generator)
    return distribution(target, options), distribution(draft, options)


def _passes(target: Tensor, draft: Tensor, rows: int, rule: Any = accept) -> tuple[Tensor, Tensor, Tensor]:
    """Many passes: drafted tokens (b, k), how many are kept (b,), and the token behind them (b,)."""
    count = len(draft)
    drawn = _random(rows, count, seed=1)
    tokens = torch.stack([invert(draft[k].expand(rows, -1), drawn[:, k]) for k in range(count)], 1)
    kept, last = rule(
        target.expand(rows, -1, -1),
        draft.expand(rows, -1, -1),
        tokens,
        _random(rows, count, seed=2),
        _random(rows, count + 1, seed=3),
    )
    return tokens, kept, last


def _p_value(tokens: Tensor, expected: Tensor) -> float:
    """Of Pearson's chi-square test that tokens were drawn from `expected`; tokens of probability 0 must not occur."""
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    possible = expected > 0
    if counts[~possible].sum() > 0:
        return 0.0
    wanted = expected[possible].double() / expected.double().sum() * len(tokens)
    chi = ((counts[possible] - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor((len(wanted) - 1) / 2).double(), chi / 2))


def _p_values(target: Tensor, draft: Tensor, rule: Any = accept) -> list[float]:
    """Of each place: the token there, over the passes that reach it."""
    tokens, kept, last = _passes(target, draft, DRAWS, rule)
    made = torch.cat([tokens, tokens[:, :1]], 1).scatter(1, kept[:, None], last[:, None])
    return [_p_value(made[kept >= place, place], target[place]) for place in range(len(target))]


@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 6, "min_p": 0.05}], ids=str)
def test_samples_are_distributed_as_the_target(temperature, filters):
    target, draft = _distributions(3, SamplingOptions(temperature=temperature, **filters), seed=4)
    assert (target[:-1] - draft).abs().sum(-1).mean() > 0.2, "the draft must differ from the target"
    assert min(_p_values(target, draft)) > 1e-3


def test_resampling_from_the_whole_target_is_caught():
    def wrong(target: Tensor, draft: Tensor, tokens: Tensor, keep: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        kept, _ = accept(target, draft, tokens, keep, last)
        rows = torch.arange(len(kept))
        return kept, invert(target[rows, kept], last[rows, kept])

    for temperature in (0.7, 1.3):
        target, draft = _distributions(3, SamplingOptions(temperature=temperature, top_p=0.9), seed=4)
        assert min(_p_values(target, draft, wrong)) < 1e-9 < min(_p_values(target, draft))


def test_a_batch_is_the_reference_row_by_row():
    for seed in range(40):
        count, rows = seed % 5, 4
        target, draft = _distributions(count, SamplingOptions(temperature=1.0, min_p=0.05 * (seed % 3)), seed, 6)
        tokens, kept, last = _passes(target, draft, rows) if count else (torch.zeros(rows, 0).long(), None, None)
        keep, after = _random(rows, count, seed=2), _random(rows, count + 1, seed=3)
        if kept is None:
            kept, last = accept(target.expand(rows, -1, -1), draft.expand(rows, -1, -1), tokens, keep, after)
        for row in range(rows):
            expected = speculate(target, draft, tokens[row].tolist(), keep[row].tolist(), after[row].tolist())
            assert expected == [*tokens[row, : kept[row]].tolist(), int(last[row])]


def test_where_rounding_leaves_no_residual_the_target_is_drawn_from():
    target = torch.tensor([[[0.25, 0.25, 0.5 - 1e-7], [0.2, 0.3, 0.5]]])
    draft = torch.tensor([[[0.25, 0.25, 0.5]]])
    almost = torch.tensor([[1 - 1e-9]], dtype=torch.float64)
    kept, last = accept(target, draft, torch.tensor([[2]]), almost, torch.tensor([[0.3, 0.3]]))
    assert (kept.item(), last.item()) == (0, 1)


def test_the_worked_example():
    draft, target = (0.8, 0.7, 0.9, 0.8, 0.7), (0.9, 0.8, 0.8, 0.3, 0.8)
    assert [round(chance, 3) for chance in acceptances(draft, target)] == [1, 1, 0.889, 0.375, 1]
    expected = tokens_of(acceptances(draft, target))
    assert round(expected, 3) == 4.556
    p, q = (torch.tensor([[one, 1 - one] for one in each]) for each in (draft, target))
    rows = (DRAWS, -1, -1)
    drafted = torch.zeros(DRAWS, 5, dtype=torch.long)
    q = torch.cat([q, q[-1:]])
    kept, last = accept(q.expand(rows), p.expand(rows), drafted, _random(DRAWS, 5), _random(DRAWS, 6, seed=1))
    assert 1 + kept.double().mean() == pytest.approx(expected, abs=0.02)
    assert set(kept.tolist()) == {2, 3, 5} and set(last[kept < 5].tolist()) == {1}
    worst, _ = accept(
        q.flip(-1).expand(rows)[:8] * 0 + torch.tensor([0.0, 1.0]), p.expand(rows)[:8], drafted[:8], *_few()
    )
    best, _ = accept(p[[0, 1, 2, 3, 4, 4]].expand(8, -1, -1), p.expand(8, -1, -1), drafted[:8], *_few())
    assert set(worst.tolist()) == {0} and set(best.tolist()) == {5}, "at worst 1 token, at best K + 1"


def _few() -> tuple[Tensor, Tensor]:
    return _random(8, 5), _random(8, 6)


def test_drafts_pay_where_the_formula_says_so():
    assert speedup(0.8, 4, 0.1, 1.2) == pytest.approx(sum(0.8**k for k in range(5)) / 1.6)
    assert best_drafted(0.8, 0.1, lambda drafted: 1 + 0.05 * drafted, most=8) == 5
    assert best_drafted(0.1, 0.5) == 0


# The trained asset, with every kind of draft.


def _prompts() -> list[list[int]]:
    return [document.tokens[:n].tolist() for document, n in zip(asset.text(), (40, 9, 1, 90), strict=False)]


def _small(vocabulary: int = 2048) -> torch.nn.Module:
    """A tiny random model with the asset's vocabulary."""
    config = tiny.config("llama")
    config.vocab_size, config.max_position_embeddings = vocabulary, 256
    torch.manual_seed(0)
    return tiny.transformers.LlamaForCausalLM(config).eval()


def _part(model: Any, draft: str = "lookup", tokens: int = 3, given: Any = None, **options: Any) -> Speculative:
    config = SpeculativeConfig(draft=draft, tokens=tokens, preflight=False, **options)
    return Speculative(config, model, asset.tokenizer(), draft=given)


def _tokens(engine: Engine, prompts: Sequence[list[int]], options: SamplingOptions) -> list[tuple[int, ...]]:
    return [found.tokens for found in engine.generate(prompts, options)]


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
    given = {"random": _small, "twin": lambda: model, "packed": _packed}.get(kind, lambda: None)()
    options = SamplingOptions(max_tokens=14, ignore_end=True)
    plain = Engine(model, asset.tokenizer()).generate(_prompts(), options)
    for count, backend in itertools.product(counts, backends):
        part = _part(model, kind if kind in ("lookup", "self") else "given", count, given)
        engine = Engine(model, asset.tokenizer(), backend=backend, draft=part)
        for one, expected in zip(engine.generate(_prompts(), options), plain, strict=True):
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
    text = plain.generate(_prompts()[:1], SamplingOptions(max_tokens=20))[0].text
    options = [
        SamplingOptions(max_tokens=40, stop=(text[9:12],)),
        SamplingOptions(max_tokens=1),
        SamplingOptions(max_tokens=40),
        SamplingOptions(max_tokens=6),
        SamplingOptions(max_tokens=99),
    ]
    prompts = [*_prompts(), (_prompts()[0] * 9)[:250]]
    ends = plain.generate(prompts[2:3], SamplingOptions(max_tokens=20))[0].tokens[7]
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, [ends]
    try:
        expected = Engine(model, tokenizer).generate(prompts, options)
        for backend in ("program", "modules"):
            engine = Engine(model, tokenizer, backend=backend, draft=_part(model, tokens=5))
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
    plain = Engine(model).generate(_prompts(), options)
    drafted = Engine(model, draft=_part(model, tokens=4)).generate(_prompts(), options)
    judge = asset.model()
    for prompt, one, other in zip(_prompts(), plain, drafted, strict=True):
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
    engine = Engine(model, draft=_part(model, "given", given=_small()))
    together = _tokens(engine, _prompts(), options)
    assert together == _tokens(engine, _prompts(), options)
    alone = [_tokens(engine, [prompt], one)[0] for prompt, one in zip(_prompts(), options, strict=True)]
    assert alone == together
    assert _tokens(engine, _prompts()[:1], options[1]) != together[:1], "another seed"
    greedy = Engine(model).generate(_prompts()[:1], SamplingOptions(max_tokens=12, ignore_end=True))[0].tokens
    mixed = engine.generate(_prompts()[:2], [SamplingOptions(max_tokens=12, ignore_end=True), options[1]])
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
    assert _p_value(tokens[:, 0], first) > 1e-3
    assert _p_value(tokens[tokens[:, 0] == likeliest, 1], second) > 1e-3


def test_other_tokens_are_refused_with_what_differs(model, tmp_path):
    other = asset.tokenizer().__class__.from_pretrained(asset.FOLDER)
    other.add_tokens(["<new>"])
    config = SpeculativeConfig(draft="given")
    with pytest.raises(RequestError, match=r"2048 is missing in the target and '<new>' in the draft"):
        Speculative(config, model, asset.tokenizer(), draft=_small(2049), draft_tokenizer=other)
    with pytest.raises(RequestError, match="The draft has 96 tokens, the target 2048"):
        Speculative(config, model, draft=tiny.model("llama"))


def test_a_table_that_is_padded_to_another_size_does_not_matter(model):
    options = SamplingOptions(temperature=0.8, seed=1, max_tokens=8, ignore_end=True)
    for size in (2050, 200):
        part = Speculative(
            SpeculativeConfig(draft="given", tokens=3, preflight=False),
            model,
            asset.tokenizer(),
            draft=_small(size),
            draft_tokenizer=asset.tokenizer(),
        )
        assert len(_tokens(Engine(model, draft=part), _prompts(), options)[0]) == 8


def test_a_packed_folder_drafts(model, tmp_path: Path):
    save_model(_packed(), tmp_path / "packed", tokenizer=asset.tokenizer())
    config = SpeculativeConfig(draft=str(tmp_path / "packed"), tokens=2, preflight=False)
    engine = Engine(model, asset.tokenizer(), draft=find("speculative").load()(config, model, asset.tokenizer()))
    options = SamplingOptions(max_tokens=10, ignore_end=True)
    assert _tokens(engine, _prompts()[:1], options) == _tokens(Engine(model), _prompts()[:1], options)


def test_what_cannot_be_done_is_refused(model):
    with pytest.raises(RequestError, match="layers = 4"):
        Engine(model, draft=_part(model, "self", layers=4)).generate(_prompts()[:1])
    gemma = tiny.model("gemma3")
    part = Speculative(SpeculativeConfig(preflight=False), gemma)
    with pytest.raises(NotSupported, match="does not keep the keys"):
        Engine(gemma, draft=part).generate([[1, 2]])
    gpt2 = tiny.model("gpt2")
    with pytest.raises(NotSupported, match="first layers"):
        Engine(gpt2, draft=Speculative(SpeculativeConfig(draft="self", preflight=False), gpt2)).generate([[1, 2]])
    with pytest.raises(NotSupported, match="join"):
        Engine(model, draft=_part(model)).open(4)


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


# The preflight, by a clock that the batches set.


class _Batch:
    """Takes `seconds` for a pass that gives `made` tokens."""

    def __init__(
        self, requests: Sequence[Request], seconds: float, made: int, tally: Tally | None, clock: list[float]
    ) -> None:
        self.active, self._seconds, self._made, self._tally, self._clock = list(requests), seconds, made, tally, clock

    def next(self) -> list[list[tuple[int, float]]]:
        self._clock[0] += self._seconds
        return [[(3, -1.0)] * self._made for _ in self.active]

    def drop_ended(self) -> None:
        self.active = [one for one in self.active if one.finish is None]


@pytest.mark.parametrize(
    ("cost", "verify", "kept", "wish", "expected"),
    [
        (0.1, 0.02, 0.8, None, "on"),
        (0.6, 0.05, 0.5, None, "off"),
        (0.1, 0.4, 0.3, None, "off"),
        (0.1, 0.02, 0.8, 2, "on"),
        (0.5, 0.2, 0.5, 8, "off"),
    ],
)
def test_the_preflight_decides_by_what_it_measures(monkeypatch, cost, verify, kept, wish, expected):
    """`cost` of a draft and `verify` of each token checked beyond the first, in steps; `kept` of drafted tokens."""
    clock = [0.0]
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: clock[0])
    requests = [Request([1], SamplingOptions(max_tokens=400, stop=("x",)), None, frozenset({3}), None)]

    def speculative(copies: Sequence[Request], count: int, tally: Tally) -> _Batch:
        tally.drafting.append(cost)
        batch = _Batch(copies, count * cost + 1 + count * verify, 1, tally, clock)
        take, passes = batch.next, iter(range(10_000))

        def following() -> list[list[tuple[int, float]]]:
            tally.drafted += count
            tally.tested += 100
            tally.kept += round(100 * kept)
            next(passes)
            return take()

        batch.next = following  # type: ignore[method-assign]
        return batch

    found = preflight.measure(requests, lambda copies: _Batch(copies, 1.0, 1, None, clock), speculative, wish)
    assert found.cost == pytest.approx(cost) and found.acceptance == pytest.approx(kept)
    assert found.verify == pytest.approx(1 + found.measured * verify)
    assert bool(found.drafted) == (expected == "on") and str(found).startswith(expected)
    if wish is not None and found.drafted:
        assert found.drafted == wish
    if wish is None and found.drafted:
        assert found.drafted == best_drafted(kept, cost, lambda drafted: 1 + verify * drafted, preflight.MOST)
    assert requests[0].finish is None and requests[0].made == 0


def test_a_draft_that_is_never_right_is_turned_off(model):
    said: list[str] = []
    config = SpeculativeConfig(draft="given", tokens="auto")
    part = Speculative(config, model, asset.tokenizer(), draft=_small(), say=said.append)
    options = SamplingOptions(max_tokens=preflight.TOKENS, ignore_end=True)
    assert _tokens(Engine(model, draft=part), _prompts()[:1], options) == _tokens(
        Engine(model), _prompts()[:1], options
    )
    assert len(said) == 1 and "off, it would not pay" in said[0] and part.tally.passes == 0
    assert str(part) == "given: not used" and part.document()["preflights"][0]["drafted"] == 0
    few = SamplingOptions(max_tokens=4, ignore_end=True)
    Engine(model, draft=part).generate(_prompts()[:2], few)
    assert len(said) == 1, "a few tokens are not worth a measurement"


def test_verify_costs_are_read_off_a_line():
    found = Preflight(cost=0.1, verify=1.4, tested=100, kept=80, measured=4)
    assert [found.verify_of(count) for count in (0, 2, 4)] == pytest.approx([1, 1.2, 1.4])
    assert found.best() == best_drafted(0.8, 0.1, found.verify_of, preflight.MOST)
    assert Preflight(cost=0.1, verify=0.5, tested=100, kept=10, measured=4).best() == 0, (
        "no pass is cheaper than a step"
    )


def test_what_is_drafted_follows_what_is_kept():
    found = Preflight(cost=0.1, verify=1.2, tested=10, kept=7, measured=4, drafted=4)
    assert found.adapted(Tally(tested=200, kept=140)).drafted == 4, "another would hardly be faster"
    assert found.adapted(Tally(tested=200, kept=190)).drafted == preflight.MOST
    assert found.adapted(Tally(tested=200, kept=20)).drafted == 0


def test_drafts_that_stop_paying_are_turned_off(model):
    said: list[str] = []
    part = Speculative(SpeculativeConfig(draft="given"), model, asset.tokenizer(), draft=_small(), say=said.append)
    key = (1, True)
    part.preflights[key] = Preflight(cost=0.1, verify=1.1, tested=20, kept=8, measured=4, drafted=4)
    options = SamplingOptions(max_tokens=40, ignore_end=True)
    engine = Engine(model, draft=part)
    assert (
        engine.generate(_prompts()[:1], options)[0].tokens == Engine(model).generate(_prompts()[:1], options)[0].tokens
    )
    passes = part.tally.passes
    assert passes == 40 and not said
    engine.generate(_prompts()[:1], options)
    assert part.tally.passes == passes and "off" in said[0] and part.preflights[key].drafted == 0


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
    requests = [engine.request(prompt, options) for prompt in prompts]
    batch = captured.Sessions(accept).begin(plan(model), source, requests, count, tally)
    while batch.active:
        preflight._take(batch)
    # The host drafts fewer where a text is about to end, so its last tokens may be drawn in another way.
    same = 5 if temperature == 0 else 5 - count
    for request, wanted in zip(requests, expected, strict=True):
        assert request.generation().tokens[:same] == wanted[:same]
    assert tally.passes > 0 and tally.kept > 0
