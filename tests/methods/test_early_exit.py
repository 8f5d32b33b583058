"""Tokens that leave early: through modules and programs as in the reference, and at threshold 1 not at all."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hayless.core.errors import NotSupported, RequestError
from hayless.core.registry import configure
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.program import Program, plan
from hayless.decode.readers import ModuleReader, ProgramReader
from hayless.methods.decoding.early_exit import reference
from hayless.methods.decoding.early_exit.confidence import (
    ByClassifier,
    BySoftmax,
    ByState,
    Classifier,
    learn_classifier,
    softmax_gap,
    state_cosine,
)
from hayless.methods.decoding.early_exit.config import EarlyExitConfig
from hayless.methods.decoding.early_exit.heads import Learnt, learn_heads
from hayless.methods.decoding.early_exit.leaving import Confident
from hayless.methods.decoding.early_exit.part import EarlyExit
from hayless.methods.decoding.early_exit.picture import draw
from hayless.methods.decoding.early_exit.predict import exits, scheduled_layers
from hayless.methods.decoding.early_exit.readers import ModuleTail, ProgramTail, reader
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import lora_of

LAYERS, PROMPT, LENGTH = 5, 6, 12


class Sure:
    """Always as sure as can be."""

    logits = None

    def __call__(self, shown_bh: Tensor, x_bh: Tensor, before_bh: Tensor) -> Tensor:
        return torch.ones(len(x_bh))


def deep(name: str) -> Any:
    """Tiny model `name` with 5 layers, whose states differ from layer to layer."""
    config = tiny.config(name)
    config.num_hidden_layers = LAYERS
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = (kinds * LAYERS)[:LAYERS]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 4
    return model


def random_tokens(rows: int = 3) -> Tensor:
    return torch.randint(3, 96, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def moody(model: Any) -> Classifier:
    """A classifier that nobody trained: some tokens leave, behind one layer or another."""
    width = ModuleTail(model).normed(torch.zeros(1, model.config.hidden_size)).shape[1]
    return Classifier(torch.randn(width, generator=torch.Generator().manual_seed(2)) * 2, torch.tensor(-0.5))


def read(made: Any, tokens: Tensor, watch: Confident | None = None) -> tuple[Tensor, list[list[int]]]:
    """Logits (b, t, v) after each token behind the prompts, and layers by row."""
    made.join(tokens[:, :PROMPT].tolist())
    logits, layers = [], []
    for place in range(PROMPT, LENGTH):
        logits.append(made.read(tokens[:, place : place + 1])[:, 0])
        layers.append(list(watch.layers) if watch else [])
    return torch.stack(logits, 1), [list(row) for row in zip(*layers, strict=True)]


def programs(model: Any) -> list[Program | None]:
    """Ways to run a model: its modules, and a program where it has one."""
    found = plan(model)
    return [None, found] if isinstance(found, Program) else [None]


@pytest.mark.parametrize("name", tiny.CAUSAL)
@torch.inference_mode()
def test_every_anatomy_leaves_as_the_reference_says(name: str) -> None:
    model, tokens = deep(name), random_tokens()
    tail, classifier = ModuleTail(model), moody(model)

    def leaves(layer: int, x_h: Tensor, before_h: Tensor) -> bool:
        return layer >= 2 and bool(classifier(tail.normed(x_h[None])) >= 0.6)

    wanted = [reference.read(model, row.tolist(), PROMPT, leaves) for row in tokens]
    assert len({layer for _, layers in wanted for layer in layers}) >= 2, "tokens must differ"
    for program in programs(model):
        own = tail if program is None else ProgramTail(program)
        watch = Confident(ByClassifier(classifier, own), 0.6, range(2, LAYERS), LAYERS)
        logits, layers = read(reader(model, program, watch), tokens, watch)
        assert layers == [one for _, one in wanted]
        torch.testing.assert_close(logits, torch.stack([one for one, _ in wanted]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", tiny.CAUSAL)
@torch.inference_mode()
def test_at_threshold_1_nothing_but_the_whole_model(name: str) -> None:
    model, tokens = deep(name), random_tokens()
    for program in programs(model):
        watch = Confident(Sure(), 1.0, range(1, LAYERS), LAYERS)
        whole = ModuleReader(model) if program is None else ProgramReader(program)
        wanted, _ = read(whole, tokens)
        found, layers = read(reader(model, program, watch), tokens, watch)
        assert torch.equal(found, wanted) and layers == [[LAYERS] * (LENGTH - PROMPT)] * 3
        torch.testing.assert_close(found, model(tokens).logits[:, PROMPT:], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_16_bits_leave_as_the_reference_says() -> None:
    model, tokens = deep("llama").bfloat16(), random_tokens()
    for program in programs(model):
        watch = Confident(Sure(), 0.5, range(3, LAYERS), LAYERS)
        found, _ = read(reader(model, program, watch), tokens, watch)
        wanted = [reference.read(model, row.tolist(), PROMPT, lambda layer, *_: layer >= 3)[0] for row in tokens]
        off = (found - torch.stack(wanted)).abs().max()
        assert watch.layers == [3] * 3 and off < 0.05 * torch.stack(wanted).abs().max()


@pytest.mark.parametrize("kind", ["softmax", "state"])
@torch.inference_mode()
def test_what_the_head_said_where_all_had_left_is_what_it_says(kind: str) -> None:
    model, tokens = deep("llama"), random_tokens()
    tail, least = ModuleTail(model), 2
    threshold = 0.3 if kind == "softmax" else 0.9

    def leaves(layer: int, x_h: Tensor, before_h: Tensor) -> bool:
        sure = softmax_gap(tail.logits(x_h[None])) if kind == "softmax" else state_cosine(x_h[None], before_h[None])
        return layer >= least and bool(sure >= threshold)

    wanted = [reference.read(model, row.tolist(), PROMPT, leaves) for row in tokens]
    for program in programs(model):
        own = tail if program is None else ProgramTail(program)
        watch = Confident(BySoftmax(own) if kind == "softmax" else ByState(), threshold, range(least, LAYERS), LAYERS)
        logits, layers = read(reader(model, program, watch), tokens, watch)
        assert layers == [one for _, one in wanted]
        torch.testing.assert_close(logits, torch.stack([one for one, _ in wanted]), rtol=1e-4, atol=1e-5)
    alone = Confident(BySoftmax(tail), 0.0, range(least, LAYERS), LAYERS)
    read(reader(model, None, alone), tokens[:1], alone)
    assert alone.logits is not None and alone.layers == [least]


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "opt-350m", "gemma2"])
@torch.inference_mode()
def test_each_layer_may_have_a_head_of_its_own(name: str) -> None:
    """What the head is shown is mapped; keys and values of skipped layers are made from the state itself."""
    model, tokens = deep(name), random_tokens()
    tail, classifier = ModuleTail(model), moody(model)
    generator, width = torch.Generator().manual_seed(3), model.config.hidden_size
    heads = Learnt(
        {
            layer: (
                torch.randn(width, generator=generator),
                torch.randn(width, width, generator=generator),
                torch.ones(width),
            )
            for layer in range(2, LAYERS)
        }
    )

    def leaves(layer: int, x_h: Tensor, before_h: Tensor) -> bool:
        return layer >= 2 and bool(classifier(tail.normed(heads(layer, x_h[None]))) >= 0.8)

    wanted = [reference.read(model, row.tolist(), PROMPT, leaves, heads) for row in tokens]
    assert len({layer for _, layers in wanted for layer in layers}) >= 2
    for program in programs(model):
        own = tail if program is None else ProgramTail(program)
        watch = Confident(ByClassifier(classifier, own), 0.8, range(2, LAYERS), LAYERS, heads)
        logits, layers = read(reader(model, program, watch), tokens, watch)
        assert layers == [one for _, one in wanted]
        torch.testing.assert_close(logits, torch.stack([one for one, _ in wanted]), rtol=1e-4, atol=1e-4)


def test_heads_learn_what_is_missing_to_the_last_state() -> None:
    generator = torch.Generator().manual_seed(0)
    x, line = torch.randn(500, 6, generator=generator) * 3 + 1, torch.randn(6, 6, generator=generator)
    last = x @ line + 2
    off = (learn_heads({3: x}, last)(3, x) - last).square().mean().sqrt()
    assert off < 0.02 * last.std()
    assert learn_heads({3: x}, x)(3, x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(learn_heads({3: x}, x)(3, x), x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("exact_float32")
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@torch.inference_mode()
def test_on_a_gpu(name: str) -> None:
    model, tokens = deep(name).cuda(), random_tokens().cuda()
    wanted = [reference.read(model, row.tolist(), PROMPT, lambda layer, *_: layer >= 3)[0] for row in tokens]
    for program in programs(model):
        tail = ModuleTail(model) if program is None else ProgramTail(program)
        watch = Confident(BySoftmax(tail), 0.0, range(3, LAYERS), LAYERS)
        found, _ = read(reader(model, program, watch), tokens, watch)
        torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-3, atol=1e-4)


def test_methods_that_changed_the_model_are_computed_as_they_are() -> None:
    """A branch beside keys and values goes with them into the layers that are skipped."""
    model, tokens = deep("llama"), random_tokens(1)
    apply(model, [configure("kmeans", bits=4, group_size=8), lora_of("llama")])
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    watch = Confident(Sure(), 0.5, range(2, LAYERS), LAYERS)
    found, _ = read(reader(model, None, watch), tokens, watch)
    wanted, layers = reference.read(model, tokens[0].tolist(), PROMPT, lambda layer, *_: layer >= 2)
    assert set(layers) == {2}
    torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=1e-5)


def test_confidences_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 30.0, 0.0]])
    first, second = logits.softmax(-1).sort(descending=True).values[:, :2].T
    torch.testing.assert_close(softmax_gap(logits), first - second)
    assert softmax_gap(logits.bfloat16()).dtype == torch.float32
    states, before = (
        torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]]),
        torch.tensor([[4.0, 3.0], [-1.0, 0.0], [2.0, 2.0]]),
    )
    torch.testing.assert_close(state_cosine(states, before), torch.tensor([0.96, 0.0, 1.0]))


def test_a_classifier_learns_where_the_line_is() -> None:
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(8, generator=generator)
    states = [3 + 5 * torch.randn(400, 8, generator=generator) for _ in range(2)]
    agrees = [each @ line > 2 for each in states]
    classifier = learn_classifier([each[:300] for each in states], [each[:300] for each in agrees])
    right = [
        ((classifier(each[300:]) > 0.5) == wanted[300:]).float().mean()
        for each, wanted in zip(states, agrees, strict=True)
    ]
    assert min(right) > 0.95


@pytest.mark.parametrize("backend", ["program", "modules"])
def test_the_engine_notes_where_tokens_left(backend: Any) -> None:
    model, options = deep("llama"), SamplingOptions(max_tokens=8, ignore_end=True)
    prompts = [[0, 5, 9], [17], [44, 45, 46, 0, 7]]
    plain = Engine(model, backend=backend).generate(prompts, options)
    for threshold, confidence in ((0.0, "state"), (0.0, "softmax"), (1.0, "softmax")):
        part = EarlyExit(EarlyExitConfig(confidence=confidence, threshold=threshold, least=2), model)
        found = Engine(model, backend=backend, exit=part).generate(prompts, options, batch_size=2)
        layers = [LAYERS] + [2 if threshold == 0 else LAYERS] * 7
        assert part.traces == [layers] * 3 and part.mean_layer == sum(layers) / 8
        assert part.document()["layers"] == part.traces and f"of {LAYERS} layers" in str(part)
        alone = [
            Engine(model, backend=backend, exit=EarlyExit(part.config, model)).generate([one], options)[0]
            for one in prompts
        ]
        assert [one.tokens for one in alone] == [one.tokens for one in found]
        assert ([one.tokens for one in found] == [one.tokens for one in plain]) == (threshold == 1)
    running = Engine(model, backend=backend, exit=part).open(rows=2, tokens=32)
    for prompt in prompts:
        running.add(Engine(model).request(prompt, options))
    made = {}
    while running.busy:
        for request, piece in running.step():
            made.setdefault(tuple(request.prompt), []).append(piece.token)
    assert [tuple(made[tuple(prompt)]) for prompt in prompts] == [one.tokens for one in plain]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_schedule_only_goes_down_and_rows_leave_together(name: str) -> None:
    model = deep(name)
    config = EarlyExitConfig(confidence="schedule", least=2, over=7)
    wanted = [scheduled_layers(config, LAYERS, place) for place in range(12)]
    assert wanted[0] == LAYERS and wanted[6:] == [2] * 6 and wanted == sorted(wanted, reverse=True)
    prompts = [[0, 5, 9], [17], [44, 45, 46, 0, 7]]
    options = [SamplingOptions(max_tokens=count, ignore_end=True) for count in (12, 5, 12)]
    for backend in ("program", "modules") if name == "llama" else ("modules",):
        part = EarlyExit(config, model)
        found = Engine(model, backend=backend, exit=part).generate(prompts, options)
        assert part.traces == [wanted, wanted[:5], wanted]
        for prompt, one in zip(prompts, found, strict=True):
            places = iter(wanted[1:])
            depth = [next(places) for _ in one.tokens[1:]]
            logits, _ = reference.read(model, [*prompt, *one.tokens[:-1]], len(prompt), partial(_scheduled, depth, [0]))
            assert logits.argmax(-1).tolist() == list(one.tokens[1:])
    with pytest.raises(NotSupported, match="leave together"):
        Engine(model, exit=EarlyExit(config, model)).open(rows=2)


def _scheduled(depth: list[int], place: list[int], layer: int, x: Tensor, before: Tensor) -> bool:
    if layer == 1:
        place[0] += 1
    return layer == depth[place[0] - 1]


def test_where_tokens_may_leave() -> None:
    assert list(exits(EarlyExitConfig(), 8)) == [2, 3, 4, 5, 6, 7]
    assert list(exits(EarlyExitConfig(least=3, every=2), 8)) == [3, 5, 7]
    assert list(exits(EarlyExitConfig(confidence="state", least=1), 4)) == [2, 3]
    with pytest.raises(RequestError, match="fewer than the model's 4 layers"):
        exits(EarlyExitConfig(least=4), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"risk": 0.1}, "risk needs text"),
        ({"confidence": "classifier"}, "classifier needs text"),
        ({"confidence": "schedule", "risk": 0.1, "text": "x"}, "a schedule has none"),
        ({"heads": "learnt"}, "heads learnt needs text"),
        ({"text": "x"}, "text is for"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        configure("early_exit", **options)


def test_drafts_beside_exits_are_refused_and_packed_weights_leave_without_graphs() -> None:
    model = deep("llama")
    part: Any = EarlyExit(EarlyExitConfig(), model)
    with pytest.raises(NotSupported, match="exclude each other"):
        Engine(model, exit=part, draft=part)
    program = plan(model)
    assert isinstance(program, Program) and part.no_graphs(program) is None
    apply(model, [configure("kmeans", bits=4, group_size=8)])
    packed = plan(model)
    assert isinstance(packed, Program) and "packed weights" in str(part.no_graphs(packed))
    assert EarlyExit(EarlyExitConfig(confidence="schedule"), model).no_graphs(packed) is None


@pytest.mark.parametrize("form", ["svg", "png"])
def test_a_trace_is_a_picture(form: Any) -> None:
    words = ["def", " main", "\n", "\x00", "a very long token indeed"] * 9
    made = draw([4, 1, 2, 3, 4] * 9, words, 4, "softmax ≥ 0.9", form)
    assert made == draw([4, 1, 2, 3, 4] * 9, words, 4, "softmax ≥ 0.9", form)
    if form == "png":
        assert made[:4] == b"\x89PNG"
    else:
        text = made.decode()
        assert "softmax ≥ 0.9" in text and "·main" in text and "a·very·long·t…" in text and "�" in text
        assert text.count("↵") == 9
