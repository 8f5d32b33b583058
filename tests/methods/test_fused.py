"""LOMO and AdaLomo: SGD's bits, the paper's formulas, and what fusing cannot do is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hayless.core.errors import NotSupported, RequestError, WorkError
from hayless.core.registry import configure
from hayless.kernels import adalomo as adalomo_moves
from hayless.methods.memory.adalomo import optimizer as adalomo_optimizer
from hayless.methods.memory.adalomo.reference import adalomo
from hayless.methods.memory.lomo.reference import lomo
from hayless.train.update import make_updater
from tests import tiny
from tests.train import source


@pytest.mark.parametrize(
    ("name", "precision", "clip_norm"),
    [
        *((name, "fp32", clip) for name in ("llama", "gpt2", "llama-tied", "mixtral") for clip in (None, 0.05)),
        *(("gpt2", precision, clip) for precision in ("autocast", "bf16", "master", "fp16") for clip in (None, 0.05)),
    ],
)
def test_lomo_has_sgds_bits(tmp_path, name, clip_norm, precision):
    """gpt2 has dropout, whose masks a second pass shares; llama-tied uses its embedding twice."""
    found = []
    for optimizer in ("sgd", "lomo"):
        config = configure(optimizer, learning_rate=0.2, weight_decay=0.1)
        run = source.trainer(
            tmp_path / optimizer,
            model=tiny.model(name),
            optimizer=config,
            precision=precision,
            clip_norm=clip_norm,
            steps=3,
            log_every=1,
        )
        run.run()
        said = any("goes backward twice" in line["message"] for line in source.lines(tmp_path / optimizer, "event"))
        assert said == (optimizer == "lomo" and (clip_norm is not None or precision == "fp16"))
        figures = [(line["loss"], line["gradient_norm"]) for line in source.lines(tmp_path / optimizer, "train")]
        found.append((source.weights(run.model), figures))
        assert not any(parameter._post_accumulate_grad_hooks for parameter in run.model.parameters())
    assert source.same(found[0][0], found[1][0]) and found[0][1] == found[1][1]


@pytest.mark.parametrize(
    "clips", [{}, {"clip_norm": 0.3}, {"clip_value": 0.02}, {"clip_norm": 0.3, "clip_value": 0.02}]
)
def test_lomo_by_hand(clips):
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    gradients = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    layer, updater = started(layer, "lomo", learning_rate=0.1, clip_value=clips.get("clip_value"))
    updater.begin(0.5, clips.get("clip_norm"))
    updater.backward(layer(x.float()).square().sum())
    assert updater.step(updater.norm())
    wanted = lomo(before, list(gradients), learning_rate=0.05, **clips)
    for weight, expected in zip(layer.parameters(), wanted, strict=True):
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [2**24, 8])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_adalomo_by_hand(monkeypatch, chunk, dtype):
    """Three updates; in one piece, and in pieces of one row with a last one alone."""
    monkeypatch.setattr(adalomo_moves, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    layer, updater = started(nn.Linear(8, 5), "adalomo", dtype, learning_rate=0.1)
    weights = [parameter.detach().float() for parameter in layer.parameters()]
    states = [(torch.zeros(5), torch.zeros(8)), (torch.zeros(5),)]
    for step in (1, 2, 3):
        x = torch.randn(7, 8, dtype=layer.weight.dtype)
        gradients = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
        for place, gradient in enumerate(gradients):
            weights[place], states[place] = adalomo(
                weights[place], gradient.float(), states[place], step, learning_rate=0.1
            )
            weights[place] = weights[place].to(gradient.dtype).float()
        updater.begin(1.0, None)
        updater.backward(layer(x).square().sum())
        assert updater.step(updater.norm())
        for weight, expected in zip(layer.parameters(), weights, strict=True):
            torch.testing.assert_close(
                weight.detach().float(), expected, rtol=1e-2 if dtype == "bf16" else 1e-5, atol=1e-6
            )


def test_adalomo_moves_each_expert_as_a_matrix():
    torch.manual_seed(0)
    stack = nn.Module()
    stack.weight = nn.Parameter(torch.randn(3, 4, 5))
    alone = [nn.Module() for _ in range(3)]
    for place, module in enumerate(alone):
        module.weight = nn.Parameter(stack.weight[place].detach().clone())
    factors = torch.randn(3, 4, 5)
    for module, factor in ((stack, factors), *zip(alone, factors, strict=True)):
        _, updater = started(module, "adalomo")
        updater.begin(1.0, None)
        updater.backward((module.weight.square() * factor).sum())
    assert torch.equal(stack.weight, torch.stack([module.weight for module in alone]))


@pytest.mark.parametrize("optimizer", ["lomo", "adalomo"])
@pytest.mark.parametrize("precision", ["fp32", "master", "fp16"])
def test_learns(tmp_path, optimizer, precision):
    config = configure(optimizer, learning_rate=0.5 if optimizer == "lomo" else 0.02)
    run = source.trainer(
        tmp_path, optimizer=config, precision=precision, steps=60, batches=source.Random(period=1), log_every=1
    )
    assert run.run().loss < 0.5 * source.lines(tmp_path, "train")[0]["loss"]


@pytest.mark.parametrize("memory", [[], ["checkpointing"]])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_one_gradient_at_a_time(tmp_path, monkeypatch, memory, clip_norm):
    """Whenever a weight is moved, no other weight has a gradient."""
    model, seen = tiny.model("llama"), []
    move = adalomo_optimizer.AdaLomoOptimizer.move

    def watched(self, parameter, gradient):
        seen.append(sum(weight.grad is not None for weight in model.parameters()))
        move(self, parameter, gradient)

    monkeypatch.setattr(adalomo_optimizer.AdaLomoOptimizer, "move", watched)
    run = source.trainer(
        tmp_path,
        model=model,
        optimizer=configure("adalomo"),
        memory=[configure(name) for name in memory],
        clip_norm=clip_norm,
        steps=2,
    )
    run.run()
    assert seen == [0] * 2 * len(list(model.parameters()))


def test_frozen_weights_and_weights_without_gradients_stay():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2), "frozen": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    before = source.weights(model)
    _, updater = started(model, "lomo")
    for clip_norm in (None, 1.0):
        updater.begin(1.0, clip_norm)
        updater.backward(model["frozen"](model["used"](torch.ones(1, 3))).sum())
        assert updater.step(updater.norm())
    after = source.weights(model)
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"used"}
    updater.begin(1.0, None)
    updater.backward(torch.ones((), requires_grad=True) * 2)
    with pytest.raises(WorkError, match="reaches no trainable parameter"):
        updater.norm()


def test_accumulation_is_refused_before_anything_is_moved(tmp_path):
    run = source.trainer(tmp_path, batches=source.Random(micro=2), optimizer=configure("lomo"))
    before = source.weights(run.model)
    with pytest.raises(RequestError, match=r"2 micro-batches an update are not possible(.|\n)*micro_batch_size"):
        run.run()
    assert source.same(before, source.weights(run.model))


def test_two_passes_through_a_compiled_model_are_refused(tmp_path):
    for options in ({"clip_norm": 1.0}, {"clip_norm": None, "precision": "fp16"}):
        with pytest.raises(NotSupported, match="lomo goes backward twice"):
            source.trainer(tmp_path, optimizer=configure("lomo"), compile=True, **options)


@pytest.mark.parametrize("optimizer", ["sgd", "lomo"])
def test_fp16_gradients_that_are_not_finite_move_nothing_and_halve_the_scale(optimizer):
    layer, updater = started(nn.Linear(4, 4), optimizer, "fp16")
    before, scale = source.weights(layer), updater.scale()
    for bad in (1e36, math.nan):
        updater.begin(1.0, None)
        updater.backward((layer.weight * bad).sum())
        assert not updater.step(updater.norm())
    assert updater.scale() == scale / 4 and source.same(before, source.weights(layer))
    updater.begin(1.0, None)
    updater.backward(layer.weight.sum())
    assert updater.step(updater.norm()) and not torch.equal(before["weight"], layer.weight)


def test_the_scale_grows_and_comes_back():
    layer, updater = started(nn.Linear(2, 2), "lomo", "fp16", learning_rate=1e-6)
    updater._scaler.set_growth_interval(3)
    scale = updater.scale()
    for wanted in (scale, scale, 2 * scale, 2 * scale):
        updater.begin(1.0, 1.0)
        updater.backward(layer.weight.sum())
        assert updater.step(updater.norm()) and updater.scale() == wanted
    tensors, plain = updater.optimizer_state()
    _, again = started(nn.Linear(2, 2), "lomo", "fp16")
    again.load_optimizer_state(tensors, plain)
    assert again.scale() == 2 * scale and again.optimizer_state()[1] == plain


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_what_is_not_finite_stops_and_says_what_became_of_the_weights(tmp_path, clip_norm):
    model = tiny.model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = math.nan

    class Poisoned(source.Random):
        def whole(self, step):
            batch = super().whole(step)
            batch.input_ids[1, 0] = 0
            return batch

    before = source.weights(model)
    said = "were not moved" if clip_norm else "were moved by it: the last checkpoint has good ones"
    with pytest.raises(WorkError, match=f"loss of step 1 is not finite.*The weights {said}"):
        source.trainer(
            tmp_path, model=model, batches=Poisoned(), optimizer=configure("lomo"), clip_norm=clip_norm
        ).run()
    moved = not torch.equal(before["lm_head.weight"], model.lm_head.weight)
    assert moved == (clip_norm is None)


def test_an_optimizer_that_is_fused_is_an_ordinary_one_too():
    """Its `step` gives the bits that moving one by one gives."""
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        layer, updater = started(nn.Linear(6, 4), "adalomo")
        loss = layer(torch.ones(2, 6)).square().sum()
        if fused:
            updater.begin(1.0, None)
            updater.backward(loss)
        else:
            loss.backward()
            updater._optimizer.step()
        found.append(source.weights(layer))
    assert source.same(*found)


def started(module, optimizer, precision="fp32", **options):
    """A module cast to a precision, and what moves it."""
    return module, make_updater(module, precision, configure(optimizer, **options))
