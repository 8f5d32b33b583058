"""The loss by chunks: the plain one to rounding, for every family and kind of head, in every precision."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from hayless.core.errors import NotSupported
from hayless.core.registry import configure, method_of
from hayless.model.new_tokens import Added
from hayless.model.transform import apply
from hayless.model.vocabulary import training_alone
from tests import tiny
from tests.methods.test_objectives import reward_model
from tests.train import source
from tests.train.conftest import one_thread  # noqa: F401

CHUNKED = configure("chunked_loss", tokens=5)


def installed(model: Any) -> Any:
    return method_of(CHUNKED).load().install(model, CHUNKED)


def found(
    model: Any, objective: str = "sft", chunked: bool = False, autocast: bool = False
) -> tuple[Any, dict[str, Any]]:
    """The loss of packed and padded rows, and every gradient."""
    config = configure(objective)
    batch = source.batch([[12], [5, 4], [7]], 12, seed=4, answers=objective == "sft")
    model.zero_grad()
    torch.manual_seed(3)
    with installed(model) if chunked else nullcontext():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = method_of(config).load()(config).loss(model, batch)
        loss.total.backward()
    return loss, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def agree(one: Any, other: Any, tolerance: float) -> None:
    (plain, wanted), (chunked, gradients) = one, other
    assert chunked.total.dtype is plain.total.dtype
    torch.testing.assert_close(chunked.total, plain.total, rtol=tolerance, atol=0)
    assert {name: int(count) for name, count in plain.metrics.items()} == {
        name: int(count) for name, count in chunked.metrics.items()
    }
    assert wanted.keys() == gradients.keys()
    for name, gradient in wanted.items():
        assert gradients[name].dtype is gradient.dtype
        assert (gradients[name] - gradient).norm() <= 20 * tolerance * (gradient.norm() + 1e-3), name


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_every_family(name: str) -> None:
    # Grouped products of experts know no float64.
    model = tiny.model(name).to(torch.float32 if name in ("mixtral", "qwen3_moe") else torch.float64)
    assert name != "gemma2" or model.config.final_logit_softcapping
    agree(found(model), found(model, chunked=True), 1e-6)
    agree(found(model, "lm"), found(model, "lm", chunked=True), 1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
def test_precisions(name: str, dtype: torch.dtype, autocast: bool) -> None:
    model = tiny.model(name).to(dtype)
    tolerance = 2e-6 if dtype is torch.float32 and not autocast else 2e-3
    agree(found(model, "lm", autocast=autocast), found(model, "lm", chunked=True, autocast=autocast), tolerance)


@pytest.mark.parametrize("changes", [("lora",), ("kmeans", "lora")])
def test_heads_with_a_branch_or_packed_are_called(changes: tuple[str, ...]) -> None:
    model = tiny.model("llama")
    options: dict[str, Any] = {
        "lora": {"rank": 4, "targets": ("blocks", "head"), "dropout": 0.0},
        "kmeans": {"bits": 4, "group_size": 8, "targets": ("blocks", "head")},
    }
    apply(model, [configure(each, **options[each]) for each in changes])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    one, other = found(model), found(model, chunked=True)
    assert any(name.startswith("lm_head.lora") for name in other[1])
    agree(one, other, 2e-6)


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_rows_of_new_tokens_alone(name: str) -> None:
    model = tiny.model(name)
    with training_alone(model, Added(("one", "two"), 20, ((), ()))):
        agree(found(model, "lm"), found(model, "lm", chunked=True), 2e-6)


def test_no_logits_of_all_tokens_exist() -> None:
    model = tiny.model("llama")
    sizes: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                each.numel() for each in (out if isinstance(out, tuple) else (out,)) if isinstance(each, torch.Tensor)
            )
            return out

    with Sizes():
        found(model, chunked=True)
    weights = max(parameter.numel() for parameter in model.parameters())
    assert max(sizes) == weights < 36 * model.config.vocab_size


def test_training_with_it_ends_near_the_plain_run_and_resumes(tmp_path: Any) -> None:
    ends = []
    for folder, memory in (("plain", []), ("chunked", [CHUNKED, configure("checkpointing")])):
        run = source.trainer(
            tmp_path / folder, memory=memory, micro_batch_size=2, validation=[source.Random().whole(9)]
        )
        ends.append((run.run(), source.weights(run.model)))
    (plain, wanted), (chunked, weights) = ends
    assert chunked.loss == pytest.approx(plain.loss, rel=1e-5)
    assert chunked.validation_loss == pytest.approx(plain.validation_loss, rel=1e-5)
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-3)


def test_a_model_without_logits_is_refused() -> None:
    with pytest.raises(NotSupported, match="predicts no tokens"):
        installed(reward_model())
