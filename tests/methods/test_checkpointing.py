"""Activation checkpointing: the same bits of every gradient, fewer activations kept, the model handed back."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hayless.core.errors import RequestError
from hayless.core.registry import configure, method_of
from tests import tiny
from tests.train import source
from tests.train.conftest import one_thread  # noqa: F401


def gradients(model, config=None, autocast=False):
    batch = source.batch([[12], [5, 4], [7]], 12, seed=4)
    objective = method_of(configure("lm")).load()(configure("lm"))
    model.train()
    model.zero_grad()
    torch.manual_seed(7)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with method_of(config).load().install(model, config) if config else torch.enable_grad():
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            total = objective.loss(model, batch).total
        size = sum(count for pointer, count in kept.items() if pointer not in own)
        total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, size


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("autocast", [False, True])
def test_changes_no_bit_of_the_gradients_dropout_included(name, autocast):
    model = tiny.model(name)
    plain, whole = gradients(model, autocast=autocast)
    for every in (1, 2):
        recomputed, kept = gradients(model, configure("checkpointing", every=every), autocast=autocast)
        assert source.same(plain, recomputed)
        assert kept < whole
        whole = kept if every == 2 else whole


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("keep", ["attention", "products"])
def test_what_is_kept_is_not_computed_again_and_changes_no_bit(name, autocast, keep):
    model = tiny.model(name)
    plain, _ = gradients(model, autocast=autocast)
    kept, _ = gradients(model, configure("checkpointing", keep=keep), autocast=autocast)
    assert source.same(plain, kept)


def test_products_run_once_where_they_are_kept():
    model = tiny.model("llama")
    counts = []
    for keep in ("nothing", "attention", "products"):
        with Counting() as counting:
            gradients(model, configure("checkpointing", keep=keep))
        counts.append((counting.calls["aten::mm"], counting.calls["aten::_scaled_dot_product_flash_attention_for_cpu"]))
    blocks = model.config.num_hidden_layers
    assert counts[0][1] == 2 * blocks and counts[1] == (counts[0][0], blocks)
    # Of seven products a block the last one is not needed again: recomputation stops before it.
    assert counts[2] == (counts[0][0] - 6 * blocks, blocks)


class Counting(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def test_fewer_blocks_keep_more():
    model = tiny.model("gpt2")
    plain, whole = gradients(model)
    kept = [whole]
    for options in ({"every": 2}, {}):
        kept.append(gradients(model, configure("checkpointing", **options))[1])
    assert kept[2] < kept[1] < kept[0]
    first, partly = gradients(model, configure("checkpointing", blocks=1))
    assert source.same(plain, first) and kept[2] < partly < whole


def test_dropout_draws_are_those_of_the_plain_run():
    """With other dropout masks gradients would differ: the test above can fail."""
    model = tiny.model("gpt2")
    plain, _ = gradients(model)
    other, _ = gradients(model.apply(lambda m: setattr(m, "p", 0.5) if isinstance(m, torch.nn.Dropout) else None))
    assert not source.same(plain, other)


def test_training_with_it_ends_with_the_same_bits(tmp_path):
    found = []
    for folder, memory in (("plain", []), ("recomputed", [configure("checkpointing")])):
        run = source.trainer(tmp_path / folder, model=tiny.model("gpt2"), memory=memory, micro_batch_size=2)
        run.run()
        found.append(source.weights(run.model))
        assert all("forward" not in vars(module) for module in run.model.modules())
    assert source.same(*found)


def test_blocks_in_evaluation_run_once():
    model = tiny.model("llama")
    calls = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    config = configure("checkpointing")
    with method_of(config).load().install(model, config):
        model(torch.arange(3, 9)[None], use_cache=False).logits.sum().backward()
        assert len(calls) == 1
        model.train()(torch.arange(3, 9)[None], use_cache=False).logits.sum().backward()
        assert len(calls) == 3


def test_every_must_be_positive():
    with pytest.raises(RequestError, match="every"):
        configure("checkpointing", every=0)
