"""Exits in captured steps give what the plain path gives; without a GPU in Triton's interpreter, step by step."""

from __future__ import annotations

import pytest
import torch

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.methods.decoding.early_exit.config import EarlyExitConfig
from hayless.methods.decoding.early_exit.heads import Learnt
from hayless.methods.decoding.early_exit.part import EarlyExit
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


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["softmax", "state", "classifier", "schedule"])
@pytest.mark.parametrize("heads", ["shared", "learnt"])
def test_on_a_gpu_rows_leave_by_themselves(kind, dtype, heads):
    model = plain.deep("llama-tied").to("cuda", dtype)
    threshold = {"softmax": 0.005, "state": 0.8, "classifier": 0.6, "schedule": 0.5}[kind]
    needs = {"text": "given"} if kind == "classifier" or heads == "learnt" else {}
    config = EarlyExitConfig(confidence=kind, threshold=threshold, heads=heads, least=2, over=5, **needs)

    def fill(part):
        nothing_to_learn(part)
        classifier = plain.moody(model.cpu())
        model.cuda()
        part._classifier = type(classifier)(classifier.weight_h.cuda(), classifier.bias.cuda())
        if heads == "learnt":
            torch.manual_seed(0)
            width = model.config.hidden_size
            maps = (torch.randn(width).cuda(), torch.randn(width, width).cuda() / 9, torch.randn(width).cuda())
            part._heads = Learnt(dict.fromkeys(range(1, plain.LAYERS), maps))

    settings = SamplingOptions(max_tokens=TOKENS, ignore_end=True)
    for rows in (1, 3):
        (tokens, layers, _), wanted = two(model, config, PROMPTS, settings, rows, fill)
        if dtype is torch.float32:
            assert (tokens, layers) == wanted[:2]
            assert kind == "schedule" or len({layer for trace in layers for layer in trace[1:]}) > 1
        else:  # a near tie may fall otherwise; until then all is the same
            pairs = [list(zip(*one, strict=True)) for one in zip(tokens, wanted[0], strict=True)]
            same = [next((at for at, (a, b) in enumerate(pair) if a != b), TOKENS) for pair in pairs]
            assert sum(same) >= TOKENS
