"""What memory methods leave to be kept, by prediction, against PyTorch's saved tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from hayless.core.compose import predict
from hayless.core.cost import TrainShape, training_cost
from hayless.core.families import ledger_of
from hayless.core.flops import backward_flops
from hayless.core.forward import RunShape
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.core.new_rows import only_new_rows
from hayless.core.registry import configure, method_of
from hayless.core.replay import Replay, replay
from hayless.core.roles import Role
from hayless.core.tape import Kept
from hayless.core.work import backward_work, forward_work
from hayless.data.batches import Batch
from hayless.measure.activations import SavedActivations, saved_activations
from hayless.methods.memory import eight_bits, recompute
from hayless.model.new_tokens import Added
from hayless.model.transform import apply
from hayless.model.vocabulary import training_alone
from tests.core.test_activations import TOLERANCE, B, S, V, agree, built, predicted, record

CHUNK = 80
FUSED = configure("fused_kernels")


def of_loss(model: Any, config: MethodConfig, autocast: bool = False) -> SavedActivations:
    """What the objective's loss saves under a memory method."""
    ids, targets = torch.randint(0, V, (2, B, S))
    batch = Batch(ids, targets, torch.arange(S).expand(B, S), torch.zeros_like(ids), (("a",),) * B)
    objective = method_of(configure("lm")).load()(configure("lm"))

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return objective.loss(model, batch).total

    with method_of(config).load().install(model, config):
        return saved_activations(model, loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "opt-350m", "gpt_neox"])
def test_chunked_loss(name: str, dtype: torch.dtype) -> None:
    model, ledger = built(name, dtype)
    found = of_loss(model, configure("chunked_loss", tokens=CHUNK))
    agree(found, predicted(ledger, loss_chunk=CHUNK))
    assert found.outside() < B * S * V * 4


@pytest.mark.parametrize("frozen", [False, True])
def test_chunked_loss_under_autocast_and_with_a_frozen_head(frozen: bool) -> None:
    model, ledger = built("llama")
    model.lm_head.requires_grad_(not frozen)
    ledger = replace(
        ledger, rows=tuple(replace(row, trainable=row.role is not Role.HEAD or not frozen) for row in ledger.rows)
    )
    found = of_loss(model, configure("chunked_loss", tokens=CHUNK), autocast=True)
    agree(found, predicted(ledger, loss_chunk=CHUNK, arithmetic="bfloat16"))


def test_chunked_loss_of_heads_that_are_called() -> None:
    config = configure("chunked_loss", tokens=CHUNK)
    model, ledger = built("llama")
    lora = configure("lora", targets=("blocks", "head"))
    apply(model, [lora])
    adapted = of_loss(model.train(), config), predict(ledger, [lora])
    model, ledger = built("gpt2")
    with training_alone(model, Added(("one", "other", "third"), 20, ((), (), ()))):
        for found, rows in (adapted, (of_loss(model, config), only_new_rows(ledger, 3))):
            # Hidden states, which are all that the loss keeps, are the model's by prediction.
            saved = predicted(rows, loss_chunk=CHUNK).saved
            assert saved.activations + saved.loss == pytest.approx(found.bytes, rel=TOLERANCE)
            assert found.outside() < 1.1 * B * S * 64 * 4


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "gemma3_text", "mixtral"])
def test_fused_kernels(name: str, autocast: bool) -> None:
    model, ledger = built(name)
    found, plain = of_loss(model, FUSED, autocast), of_loss(model, configure("chunked_loss", tokens=B * S), autocast)
    agree(found, predicted(ledger, fused_kernels=True, arithmetic="bfloat16" if autocast else None))
    assert found.bytes - found.outside() < plain.bytes - plain.outside()


@pytest.mark.parametrize("autocast", [False, True])
def test_float8_linears_keep_what_plain_ones_keep(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bits, "check_device", lambda device: None)
    model, ledger = built("llama")
    found = of_loss(model, configure("float8_linears"), autocast)
    agree(found, predicted(ledger, float8=True, arithmetic="bfloat16" if autocast else None))
    plain, eight = (forward_work(record(ledger, RunShape(B, S, float8=one))) for one in (False, True))
    assert plain.flops == eight.flops and {kernel.dtype for kernel in eight.kernels} >= {"float8_e4m3fn"}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("keep", ["attention", "products"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_selective_checkpointing(name: str, keep: Any, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of blocks by autograd's hooks, and what PyTorch's policies hold, which hooks do not see."""
    model, ledger = built(name)
    policies: list[Any] = []

    def noted(operations: Any) -> Any:
        policies.append(create_selective_checkpoint_contexts(operations))
        return policies[-1]

    monkeypatch.setattr(recompute, "create_selective_checkpoint_contexts", noted)
    found = of_loss(model, configure("checkpointing", keep=keep), autocast)
    held: dict[int, int] = {}
    for tensor in (each for forward, _ in policies for calls in forward.storage.values() for each in _tensors(calls)):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    saved = predicted(ledger, checkpoint_every=1, checkpoint_keeps=keep, arithmetic="bfloat16" if autocast else None)
    # A checkpoint keeps its keyword arguments in a closure, where hooks do not see cosines and sines.
    unseen = 2 * S * ledger.dims.head_dim * 4 if name == "llama" else 0
    assert len(policies) == ledger.dims.num_layers and sum(held.values()) > 0
    expected = saved.saved.activations + saved.saved.loss - unseen
    assert expected == pytest.approx(found.bytes + sum(held.values()), rel=TOLERANCE)


def _tensors(calls: dict[int, Any]) -> list[torch.Tensor]:
    """What a policy holds of calls of one operation."""
    leaves = tree_flatten(list(calls.values()))[0]
    return [
        each.val for each in leaves if isinstance(getattr(each, "val", None), torch.Tensor) and each.val.numel() > 1
    ]


def test_what_is_kept_is_work_that_is_not_done_again() -> None:
    _, ledger = built("llama")

    def flops(keep: Any) -> tuple[float, float]:
        shape = TrainShape(B, S, checkpoint_every=1, checkpoint_keeps=keep, device="cpu")
        run = RunShape(B, S, checkpoint_every=1, checkpoint_keeps=keep, device="cpu")
        return backward_work(record(ledger, run)).flops, backward_flops(ledger, shape)

    (whole, whole_6n), (attention, attention_6n), (products, products_6n) = map(flops, get_args(Kept))
    plain = backward_work(record(ledger, RunShape(B, S, device="cpu"))).flops
    assert whole > attention > products and products == plain
    assert whole_6n > attention_6n > products_6n == backward_flops(ledger, TrainShape(B, S))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_two_inputs_of_offloaded_blocks_are_on_the_device(name: str, every: int) -> None:
    _, ledger = built(name, torch.bfloat16)
    # With few gradients the highest point is at one of the last blocks, where nearly all inputs are held.
    ledger = predict(ledger_of(replace(ledger.dims, num_layers=12)), [configure("lora")])

    def held(**options: Any) -> Replay:
        return replay(record(ledger, RunShape(B, S, loss_chunk=CHUNK, checkpoint_every=every, **options)))

    plain, moved = held(), held(offload=True)
    x, blocks = B * S * 64 * 2, 12 // every
    assert plain.saved.total - moved.saved.total == (blocks - 1) * x
    assert (blocks - 2) * x <= plain.backward.activations - moved.backward.activations <= (blocks - 1) * x
    assert moved.forward.total < plain.forward.total
    assert moved.backward.total < plain.backward.total
    twice = replay(record(ledger, RunShape(B, S, checkpoint_every=1, offload=True)), moving=lambda size: 0, twice=True)
    assert 0 < twice.second.activations <= twice.backward.activations


def test_offload_needs_a_gpu_to_move_from() -> None:
    ledger = predict(built("llama")[1], [configure("lora")])
    shape = TrainShape(B, S, checkpoint_every=1)
    for device, moves in (("cpu", False), ("cuda", True)):
        plain, moved = (training_cost(ledger, replace(shape, offload=one, device=device)) for one in (False, True))
        assert (moved.phases["backward"].total < plain.phases["backward"].total) is moves
        assert any("host's memory" in note for note in moved.notes) is moves


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_gradient_of_the_head_is_there_once(name: str, device: Any) -> None:
    """It is saved, and becomes the head's gradient: at most the embedding's stands beside it."""
    _, ledger = built(name)
    found = replay(record(ledger, RunShape(B, S, loss_chunk=CHUNK, device=device)))
    table = V * ledger.dims.hidden_size * 4
    whole = replay(record(ledger, RunShape(B, S, device=device)))
    assert found.saved.loss >= table and found.forward.total < whole.forward.total
    every_gradient = sum(row.bytes for row in ledger.rows if row.trainable)
    assert found.backward.gradients <= every_gradient
    again = replay(record(ledger, RunShape(B, S, loss_chunk=CHUNK, device=device)), gradients=every_gradient)
    assert again.backward.gradients == every_gradient


def test_the_work_of_a_chunked_loss_is_that_of_the_plain_one() -> None:
    def flops(ledger: Ledger, **options: Any) -> float:
        tape = record(ledger, RunShape(B, S, **options))
        return forward_work(tape).flops + backward_work(tape).flops

    _, ledger = built("llama")
    assert flops(ledger, loss_chunk=CHUNK) == pytest.approx(flops(ledger))


def test_a_long_vocabulary_is_where_it_pays() -> None:
    _, ledger = built("llama")
    dims = replace(ledger.dims, vocab_size=20_000)
    shape = TrainShape(8, 512, precision="bf16")
    plain, chunked = (training_cost(ledger_of(dims), replace(shape, loss_chunk=size)).peak.total for size in (0, 256))
    assert chunked < 0.5 * plain
