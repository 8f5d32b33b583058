"""Weights that count by a text: their importance against its definition, and models clustered by it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hayless.core.errors import NotSupported, RequestError
from hayless.core.method import Need
from hayless.core.registry import configure, method_of
from hayless.methods.common.importance import importance
from hayless.methods.common.packing import matrices_of, packable
from hayless.methods.quantize.kmeans.form import form_of
from hayless.model.streaming import packs_one_by_one
from hayless.model.transform import Context, apply
from tests import tiny
from tests.methods.running import check_held, logits, predicted

KINDS = ("inputs", "fisher")
IDS = torch.randint(3, 96, (6, 12), generator=torch.Generator().manual_seed(5))
TEXT = Context(calibration=list(IDS.split(2)))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_inputs_are_summed_as_they_are_read(name: str) -> None:
    model = tiny.model(name)
    weights = packable(model, configure("kmeans"))
    found = importance(model, weights, TEXT.calibration, "inputs", "kmeans")
    weight = next(weight for weight in weights if weight.path.endswith(("down_proj", "mlp.c_proj")))
    read: list[torch.Tensor] = []
    handle = weight.module.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    model(IDS)
    handle.remove()
    torch.testing.assert_close(found[weight.name][0, 0], read[0].detach().square().sum((0, 1)))


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_fisher_is_of_each_row_s_loss_and_leaves_the_model_as_it_was(name: str) -> None:
    model = tiny.model(name).train()
    model.requires_grad_(False)
    embedding = model.get_input_embeddings().weight.requires_grad_()
    embedding.grad = torch.ones_like(embedding)
    weights = packable(model, configure("kmeans"))
    found = importance(model, weights, TEXT.calibration, "fisher", "kmeans")
    assert model.training and embedding.requires_grad and (embedding.grad == 1).all()
    assert all(weight.parameter.grad is None and not weight.parameter.requires_grad for weight in weights)
    model.requires_grad_(True).eval()
    parameters = [weight.parameter for weight in weights]
    expected = [torch.zeros_like(parameter) for parameter in parameters]
    for row in IDS:
        loss = F.cross_entropy(model(row[None]).logits[0, :-1], row[1:])
        for total, gradient in zip(expected, torch.autograd.grad(loss, parameters), strict=True):
            total += gradient.square()
    for weight, total in zip(weights, expected, strict=True):
        torch.testing.assert_close(found[weight.name], total, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_less_is_lost_of_what_counts(name: str) -> None:
    """Than where all weights count alike; the structure is the predicted one either way."""
    by = KINDS[tiny.CAUSAL.index(name) % 2]
    model, other = tiny.model(name), tiny.model(name)
    config = configure("kmeans", bits=2, group_size=16, iterations=20, importance=by)
    original = {weight.name: weight.parameter.detach().clone() for weight in packable(model, config)}
    h = importance(model, packable(model, config), TEXT.calibration, by, "kmeans")
    (change,) = apply(model, [config], TEXT)
    apply(other, [configure("kmeans", bits=2, group_size=16, iterations=20)])
    check_held(model, predicted(model, [config]))

    def lost(packed: torch.nn.Module) -> float:
        total = 0.0
        for weight in packable(tiny.model(name), config):
            form, before = form_of(weight.row, config), original[weight.name]
            error = getattr(packed.get_submodule(weight.path), weight.row.parameter) - before
            counting = h[weight.name] if by == "inputs" else matrices_of(h[weight.name], form)
            total += float((counting * matrices_of(error, form).square()).sum())
        return total

    assert lost(model) < lost(other)
    assert 0 < change.figures["weighted_error"] < 1 and torch.isfinite(logits(model)).all()


def test_an_expert_that_no_text_reaches_is_said_and_clustered_all_the_same() -> None:
    model = tiny.model("mixtral")
    context = Context(calibration=[IDS[:1, :1]])
    (change,) = apply(model, [configure("kmeans", bits=2, iterations=3, importance="inputs")], context)
    assert any("no text reached" in reason for reason in change.skipped.values())
    assert torch.isfinite(logits(model)).all()


def test_text_is_needed_only_where_it_is_asked_for() -> None:
    plain, weighted = configure("kmeans"), configure("kmeans", importance="fisher")
    card = method_of(plain)
    assert card.needed(plain) == () and card.needed(weighted) == (Need.CALIBRATION,)
    assert packs_one_by_one(plain) and not packs_one_by_one(weighted)


@pytest.mark.parametrize(
    ("name", "options", "text", "error", "message"),
    [
        ("llama", {}, [], RequestError, "kmeans is calibrated on text"),
        ("llama", {"importance": "fisher"}, [IDS[:, :1]], RequestError, "no row of the text has two tokens"),
        ("llama", {"targets": "embedding"}, [IDS], NotSupported, "matrices inside blocks"),
        ("bert", {}, [IDS], NotSupported, "not through those of bert models"),
    ],
)
def test_what_cannot_be_weighted_is_refused(name, options, text, error, message) -> None:
    model = tiny.model(name)
    config = configure("kmeans", **{"importance": "inputs", **options})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        apply(model, [config], Context(calibration=text))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if error is NotSupported:
        with pytest.raises(NotSupported, match=message):
            predicted(model, [config])


def test_weights_that_overflow_are_named() -> None:
    model = tiny.model("llama").half()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(6e4)
    with pytest.raises(RequestError, match=r"importance of .* is not finite"):
        apply(model, [configure("kmeans", importance="fisher")], TEXT)
