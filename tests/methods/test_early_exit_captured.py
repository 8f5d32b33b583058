"""Exits in captured steps give what the plain path gives; without a GPU in Triton's interpreter, step by step."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.methods.decoding.early_exit.calibrate import sample
from hayless.methods.decoding.early_exit.confidence import Classifier
from hayless.methods.decoding.early_exit.config import EarlyExitConfig
from hayless.methods.decoding.early_exit.heads import Learnt, shared
from hayless.methods.decoding.early_exit.part import EarlyExit
from hayless.methods.decoding.early_exit.readers import ModuleTail
from tests.methods import test_early_exit as plain

pytest.importorskip("triton", reason="triton is not installed")

from tests.decode import captured

CUDA = torch.cuda.is_available()
PROMPTS = [[0, 5, 9], [17], [44, 45, 46, 0, 7]]
gpu = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
TOKENS = 24 if CUDA else 3
pytestmark = pytest.mark.usefixtures("exact_float32")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    if not CUDA:
        captured.at_once(monkeypatch)


def nothing_to_learn(part):
    part._windows = None


def two(model, config, prompts, options, rows, fill=nothing_to_learn):
    """(tokens, layers) by captured steps and by the plain program."""
    found = []
    for backend in ("graphs", "program"):
        part = EarlyExit(config, model, windows=torch.zeros(8, 64, dtype=torch.long))
        fill(part)
        made = Engine(model, exit=part, backend=backend).generate(prompts, options, batch_size=rows)
        found.append(([one.tokens for one in made], part.traces, part.mean_layer))
    return found


@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("llama", {"confidence": "state", "threshold": 0.7, "least": 2}, 2),
        ("qwen3", {"confidence": "softmax", "threshold": 0.004, "least": 2}, 1),
        pytest.param("qwen2", {"confidence": "softmax", "threshold": 1.0}, 1, marks=[gpu, pytest.mark.gpu]),
        ("llama", {"confidence": "schedule", "least": 2, "over": 3}, 2),
    ],
)
def test_captured_steps_leave_as_the_plain_path_does(name, options, rows):
    model = plain.deep(name).to("cuda" if CUDA else "cpu")
    prompts = PROMPTS if CUDA else PROMPTS[:rows]
    settings = SamplingOptions(max_tokens=TOKENS, ignore_end=True)
    found, wanted = two(model, EarlyExitConfig(**options), prompts, settings, rows)
    assert found == wanted
    layers = {layer for trace in found[1] for layer in trace[1:]}
    assert layers == {plain.LAYERS} if options.get("threshold") == 1 else min(layers) < plain.LAYERS


def test_requests_join_and_leave_a_running_batch():
    model = plain.deep("llama").to("cuda" if CUDA else "cpu")
    config = EarlyExitConfig(confidence="state", threshold=0.7, least=2, every=2)
    made = []
    for backend in ("graphs", "program"):
        engine = Engine(model, exit=EarlyExit(config, model), backend=backend)
        running, texts = engine.open(rows=2, tokens=10), {}
        for prompt, count in zip(PROMPTS, (1, 3, 2), strict=True):
            running.add(engine.request(prompt, SamplingOptions(max_tokens=count, ignore_end=True)))
        while running.busy:
            for request, piece in running.step():
                texts.setdefault(tuple(request.prompt), []).append(piece.token)
        made.append((texts, engine.exit.mean_layer))
    assert made[0] == made[1] and made[0][1] < plain.LAYERS


def halving(model, heads, layer, threshold):
    """A classifier by which half of the states behind `layer` would leave, of texts by the model itself."""
    settings = SamplingOptions(max_tokens=24, ignore_end=True)
    texts = torch.tensor([one.tokens for one in Engine(model, backend="program").generate(PROMPTS, settings)])
    tail, weight_h = ModuleTail(model), plain.moody(model).weight_h
    states = sample(model, range(layer, layer + 1), texts).states[layer]
    with torch.inference_mode():
        scores = tail.normed(heads(layer, states)) @ weight_h
    return Classifier(weight_h, torch.tensor(threshold).logit() - scores.median())


def random_maps(width):
    torch.manual_seed(0)
    maps = (torch.randn(width), torch.randn(width, width) / 9, torch.randn(width))
    return Learnt(dict.fromkeys(range(1, plain.LAYERS), maps))


@pytest.mark.parametrize(
    ("heads", "kind", "dtype"),
    [
        case if case == ("learnt", "classifier", torch.float32) else pytest.param(*case, marks=[gpu, pytest.mark.gpu])
        for case in product(
            ("shared", "learnt"), ("softmax", "state", "classifier", "schedule"), (torch.float32, torch.bfloat16)
        )
    ],
)
def test_rows_leave_by_themselves(heads, kind, dtype):
    device = "cuda" if CUDA else "cpu"
    model = plain.deep("llama-tied")
    threshold = {"softmax": 0.005, "state": 0.8, "classifier": 0.6, "schedule": 0.5}[kind]
    needs = {"text": "given"} if kind == "classifier" or heads == "learnt" else {}
    config = EarlyExitConfig(confidence=kind, threshold=threshold, heads=heads, least=2, over=5, **needs)
    found = random_maps(model.config.hidden_size) if heads == "learnt" else shared
    classifier = halving(model, found, 2, threshold)
    model = model.to(device, dtype)

    def fill(part):
        nothing_to_learn(part)
        part._classifier = Classifier(classifier.weight_h.to(device), classifier.bias.to(device))
        if heads == "learnt":
            part._heads = Learnt({layer: tuple(each.to(device) for each in maps) for layer, maps in found.maps.items()})

    settings = SamplingOptions(max_tokens=TOKENS, ignore_end=True)
    for rows in (1, 3) if CUDA else (1,):
        (tokens, layers, _), wanted = two(model, config, PROMPTS if CUDA else PROMPTS[2:], settings, rows, fill)
        if dtype is torch.float32:
            assert (tokens, layers) == wanted[:2]
            assert kind == "schedule" or len({layer for trace in layers for layer in trace[1:]}) > 1
        else:  # a near tie may fall otherwise; until then all is the same
            pairs = [list(zip(*one, strict=True)) for one in zip(tokens, wanted[0], strict=True)]
            same = [next((at for at, (a, b) in enumerate(pair) if a != b), TOKENS) for pair in pairs]
            assert sum(same) >= TOKENS
