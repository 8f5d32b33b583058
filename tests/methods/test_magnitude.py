"""Pruning by magnitude: exact numbers, the right weights, zeros that stay, and requests that cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hayless.core.errors import RequestError
from hayless.core.registry import configure, method_of
from hayless.methods.common.targets import matching
from hayless.methods.common.weights import Weight, plain_ledger, weights_of
from hayless.methods.prune.magnitude import reference
from hayless.methods.prune.magnitude.budget import in_proportion
from hayless.methods.prune.magnitude.selection import zero_smallest
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import batch, check_held, logits, losses, predicted

REQUESTS = [
    {"sparsity": 0.5},
    {"nonzero": 5000},
    {"sparsity": 0.9, "scope": "tensor"},
    {"nonzero": "4k", "scope": "tensor"},
    {"sparsity": 0.37, "targets": ("attention",)},
]

CASES = [(name, request) for name in ("llama", "gpt2", "mixtral") for request in REQUESTS]
CASES += [(name, REQUESTS[2]) for name in tiny.NAMES if name not in ("llama", "gpt2", "mixtral")]


def targets(model: nn.Module, names: tuple[str, ...] = ("blocks",)) -> list[Weight]:
    return weights_of(model, matching(plain_ledger(model), names, "test"))


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {weight.name: weight.parameter.detach() == 0 for weight in targets(model)}


@pytest.mark.parametrize(("name", "request_"), CASES, ids=str)
def test_the_number_that_is_left_is_the_predicted_one(name: str, request_: dict[str, object]) -> None:
    model = tiny.model(name)
    config = configure("magnitude", **request_)
    (change,) = apply(model, [config])
    ledger = predicted(model, [config])
    check_held(model, ledger)
    left = sum(int(torch.count_nonzero(weight.parameter)) for weight in targets(model, config.targets))
    assert left == change.figures["nonzero"] == sum(row.nonzero for row in ledger.rows if row.nonzero is not None)
    if config.nonzero:
        assert left == config.nonzero - 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_scope_tensor_is_exact_in_each_tensor(name: str) -> None:
    model = tiny.model(name)
    apply(model, [configure("magnitude", sparsity=0.7, scope="tensor")])
    for weight in targets(model):
        size = weight.parameter.numel()
        assert int(torch.count_nonzero(weight.parameter)) == size - round(0.7 * size), weight.name


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_are_kept(name: str, dtype: torch.dtype) -> None:
    model = tiny.model(name).to(dtype)
    before = [weight.parameter.detach().clone() for weight in targets(model)]
    apply(model, [configure("magnitude", sparsity=0.6)])
    after = [weight.parameter.detach() for weight in targets(model)]
    kept = sum(int(torch.count_nonzero(weight)) for weight in after)
    expected = reference.prune(before, kept)
    assert all(torch.equal(found, wanted) for found, wanted in zip(after, expected, strict=True))


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 1e-40, 3e38, 0.5]), max_size=9), min_size=1, max_size=4),
    st.integers(0, 36),
)
def test_ties_are_broken_to_the_exact_number(rows: list[list[float]], count: int) -> None:
    weights = [torch.tensor(row) for row in rows]
    count = min(count, sum(map(len, rows)))
    expected = reference.prune(weights, sum(map(len, rows)) - count)
    threshold = zero_smallest(weights, count)
    assert all(torch.equal(found, wanted) for found, wanted in zip(weights, expected, strict=True))
    assert all(abs(value) >= threshold or value == 0 for weight in weights for value in weight.tolist())


@given(st.integers(0, 1000), st.lists(st.integers(0, 99), min_size=1, max_size=9))
def test_dealing_out_is_exact(total: int, sizes: list[int]) -> None:
    total = min(total, sum(sizes))
    shares = in_proportion(total, sizes)
    assert sum(shares) == total
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "t5"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_zeros_stay_zeros_in_training_and_the_rest_moves(name: str, optimizer: str) -> None:
    model = tiny.model(name)
    apply(model, [configure("magnitude", sparsity=0.8)])
    before, weights = zeros(model), {w.name: w.parameter.detach().clone() for w in targets(model)}
    made = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.3),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    }[optimizer](model.parameters())
    inputs = batch(model)
    for _ in range(3):
        model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
        made.step()
        made.zero_grad()
    after = zeros(model)
    for weight in targets(model):
        assert torch.equal(before[weight.name], after[weight.name]), weight.name
        assert not torch.equal(weights[weight.name], weight.parameter), weight.name


def _moved_to_bfloat16(model: nn.Module) -> nn.Module:
    return model.to(torch.bfloat16)


def _copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def _restored_and_loaded(model: nn.Module) -> nn.Module:
    other = tiny.model("llama", seed=3)
    config = configure("magnitude", sparsity=0.8)
    method_of(config).load().restore(other, config)
    other.load_state_dict(model.state_dict())
    return other


def _restored_and_assigned(model: nn.Module) -> nn.Module:
    with torch.device("meta"):
        other = tiny.model("llama", seed=3)
    config = configure("magnitude", sparsity=0.8)
    method_of(config).load().restore(other, config)
    other.load_state_dict(model.state_dict(), assign=True)
    other.model.rotary_emb = model.model.rotary_emb
    return other


def _frozen_and_thawed(model: nn.Module) -> nn.Module:
    logits(model.requires_grad_(False))
    return model.requires_grad_(True)


@pytest.mark.parametrize(
    "change", [_moved_to_bfloat16, _copied, _restored_and_loaded, _restored_and_assigned, _frozen_and_thawed]
)
@pytest.mark.parametrize("trained_before", [False, True])
def test_the_mask_survives(change: object, trained_before: bool) -> None:
    model = tiny.model("llama")
    apply(model, [configure("magnitude", sparsity=0.8)])
    if trained_before:
        losses(model, steps=1)
    before = zeros(model)
    model = change(model)  # type: ignore[operator]
    losses(model, steps=2)
    after = zeros(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gradients_are_masked_once_and_only_there() -> None:
    model, plain = tiny.model("llama"), tiny.model("llama")
    apply(model, [configure("magnitude", sparsity=0.5)])
    plain.load_state_dict(model.state_dict())
    inputs = batch(model)
    for _ in range(2):
        for each in (model, plain):
            each.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    for weight, other in zip(targets(model), targets(plain), strict=True):
        assert torch.equal(weight.parameter.grad, other.parameter.grad.masked_fill(other.parameter == 0, 0))
    assert torch.equal(model.lm_head.weight.grad, plain.lm_head.weight.grad)


def test_pruning_again_removes_more() -> None:
    model = tiny.model("llama")
    steps = [configure("magnitude", sparsity=0.3), configure("magnitude", sparsity=0.6, scope="tensor")]
    for config in steps:
        apply(model, [config])
        losses(model, steps=1)
    ledger = predicted(model, steps)
    found = sum(int(torch.count_nonzero(weight.parameter)) for weight in targets(model))
    assert found == sum(row.nonzero for row in ledger.rows if row.nonzero is not None)
    less = predicted(model, [steps[1], configure("magnitude", sparsity=0.1)])
    assert less.nonzero == predicted(model, [steps[1]]).nonzero


def test_sparsity_zero_changes_nothing_and_tied_tables_are_pruned_once() -> None:
    model = tiny.model("gpt2")
    before = logits(model)
    apply(model, [configure("magnitude", sparsity=0)])
    assert torch.equal(logits(model), before)
    config = configure("magnitude", sparsity=0.5, targets=("embedding", "head"))
    apply(model, [config])
    assert model.lm_head.weight is model.transformer.wte.weight
    assert int(torch.count_nonzero(model.lm_head.weight)) == 96 * 32 // 2
    with pytest.raises(RequestError, match="tied"):
        predicted(model, [configure("magnitude", targets="head")])


SIZE = 15360


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nonzero": SIZE + 2}, str(SIZE)),
        ({"nonzero": 10**12}, str(SIZE)),
        ({"nonzero": 1}, "nonzero"),
        ({"nonzero": 4, "scope": "tensor"}, "each of"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"sparsity": 0.9999999}, "leaves one"),
        ({"sparsity": 0.5, "nonzero": 7}, "not both"),
        ({"scope": "row"}, "global"),
    ],
)
def test_requests_that_cannot_be_say_why(options: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        predicted(tiny.model("llama"), [configure("magnitude", **options)])


def test_weights_that_are_no_numbers_are_refused_by_name() -> None:
    model = tiny.model("llama")
    model.model.layers[0].self_attn.k_proj.weight.data[0, 0] = float("nan")
    before = model.state_dict()["model.layers.1.mlp.up_proj.weight"].clone()
    with pytest.raises(RequestError, match=r"model\.layers\.0\.self_attn\.k_proj\.weight"):
        apply(model, [configure("magnitude")])
    assert torch.equal(model.state_dict()["model.layers.1.mlp.up_proj.weight"], before)


def test_packed_weights_are_not_pruned() -> None:
    model = tiny.model("llama")
    apply(model, [configure("kmeans", bits=8)])
    with pytest.raises(RequestError, match="packed"):
        apply(model, [configure("magnitude")])
