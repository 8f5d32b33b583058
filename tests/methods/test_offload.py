"""Offload of what enters checkpointed blocks: the same bits, the order that it needs; on a GPU, what is predicted."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from hayless.core.cost import TrainShape
from hayless.core.errors import RequestError
from hayless.core.registry import configure, method_of
from hayless.methods.memory import host
from tests import tiny
from tests.train import source
from tests.train.conftest import one_thread  # noqa: F401

BOTH = [configure("checkpointing"), configure("offload")]


def gradients(model: Any, memory: list[Any], passes: int = 1, autocast: bool = False) -> dict[str, torch.Tensor]:
    batch = source.batch([[12], [5, 4], [7]], 12, seed=4).to(model.device)
    objective = method_of(configure("lm")).load()(configure("lm"))
    model.train()
    torch.manual_seed(7)
    with ExitStack() as stack:
        for config in memory:
            stack.enter_context(method_of(config).load().install(model, config))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            total = objective.loss(model, batch).total
        for left in reversed(range(passes)):
            model.zero_grad()
            total.backward(retain_graph=left > 0)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("autocast", [False, True])
def test_changes_no_bit(name: str, autocast: bool) -> None:
    model = tiny.model(name)
    plain = gradients(model, [], autocast=autocast)
    for memory in (BOTH, [configure("checkpointing", keep="products"), BOTH[1]]):
        assert source.same(plain, gradients(model, memory, autocast=autocast))
    assert source.same(plain, gradients(model, BOTH, passes=2, autocast=autocast))


def test_inputs_and_nothing_else_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    moved, back = [], []
    put, get = host.Traffic.put, host.Traffic.get
    monkeypatch.setattr(host.Traffic, "put", lambda self, x, first: moved.append(x.shape) or put(self, x, first=first))
    monkeypatch.setattr(host.Traffic, "get", lambda self, stored: back.append(stored) or get(self, stored))
    for name in ("llama", "gpt2"):
        moved.clear(), back.clear()
        gradients(tiny.model(name), BOTH)
        assert moved == [torch.Size([3, 12, 32])] * 2 and len(back) == 2
        assert back[0].before is back[1] and back[1].before is None


def test_what_was_moved_is_let_go_where_the_next_block_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    storages, there = [], []
    put = host.Traffic.put

    def watched(self: host.Traffic, x: torch.Tensor, first: bool) -> host.Stored:
        storages.append(StorageWeakRef(x.untyped_storage()))
        stored = put(self, x, first=first)
        there.append(sum(not storage.expired() for storage in storages))
        return stored

    monkeypatch.setattr(host.Traffic, "put", watched)
    config = tiny.config("llama")
    config.num_hidden_layers = 5
    gradients(type(tiny.model("llama"))(config), BOTH)
    # The caller holds the input before until the block has it, too.
    assert len(there) == 5 and max(there) <= 2


def test_training_with_it_ends_with_the_same_bits(tmp_path: Any) -> None:
    found = []
    for folder, memory in (("plain", []), ("moved", BOTH)):
        run = source.trainer(tmp_path / folder, model=tiny.model("gpt2"), memory=memory, micro_batch_size=2)
        run.run()
        found.append(source.weights(run.model))
        assert all("forward" not in vars(module) for module in run.model.modules())
    assert source.same(*found)


def test_around_compiled_blocks(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks stay outside the graphs; code generation, which takes a minute on a CPU, is left out."""
    moved = []
    put = host.Traffic.put
    monkeypatch.setattr(host.Traffic, "put", lambda self, x, first: moved.append(first) or put(self, x, first=first))
    losses = [source.trainer(tmp_path / "plain", steps=2).run().loss]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    losses.append(source.trainer(tmp_path / "compiled", steps=2, compile=True, memory=BOTH).run().loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert moved == [True, False] * 2


def test_checkpointing_must_come_before() -> None:
    model = tiny.model("llama")
    offload = configure("offload")
    with pytest.raises(RequestError, match="none is checkpointed before it"):
        method_of(offload).predict_training(TrainShape(1, 8), offload)
    for memory in ([offload], [offload, configure("checkpointing")]):
        with pytest.raises(RequestError, match="none is checkpointed before it"):
            gradients(model, memory)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory", [BOTH, [configure("checkpointing", every=2), BOTH[1]]])
def test_bits_on_a_gpu(memory: list[Any]) -> None:
    model = tiny.model("llama").cuda()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN: what has not arrived would show
    try:
        plain = gradients(model, [])
        for passes in (1, 2):
            assert source.same(plain, gradients(model, memory, passes))
    finally:
        torch.use_deterministic_algorithms(False)
