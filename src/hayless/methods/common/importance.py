"""How much each weight matters to what a model says of a text, in two ways; sums, so memory does not grow with it.

- inputs: an error e of the weight w_ij changes an output by e·x_j, so it counts by Σ x_j² over the text: the diagonal
  of the Hessian of the layer's output error.
- Fisher: it changes the loss L by ½·e²·∂²L/∂w² to second order, where the first is near zero; the second derivative is
  taken to be Σ (∂L_d/∂w)² over documents d (Kim and others 2023, *SqueezeLLM*, arXiv:2306.07629, section 4.1).

Both look at the model as it is, before any weight is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.core.ledger import Layout
from hayless.methods.common.calibration import check_batches, evaluating, expert_inputs
from hayless.methods.common.weights import Weight

By = Literal["inputs", "fisher"]


def importance(
    model: PreTrainedModel, weights: Sequence[Weight], batches: Sequence[Tensor], by: By, method: str
) -> dict[str, Tensor]:
    """The importance of each weight in float32, by its name: of matrices' columns (matrices, 1, columns) where it is by
    inputs, in the parameter's shape where it is by Fisher.

    RequestError for text that there is none of, or with unknown ids, for rows of a single token where a loss is asked
    for, and for sums that are not finite.
    """
    check_batches(batches, model.config.vocab_size, method)
    with evaluating(model):
        found = _inputs(model, weights, batches) if by == "inputs" else _fisher(model, weights, batches, method)
    bad = [name for name, sums in found.items() if not torch.isfinite(sums).all()]
    if bad:
        raise RequestError(
            f"The importance of {bad[0]} is not finite: the model overflows on this text.",
            hint="Load the model in bfloat16 or float32.",
        )
    return found


@torch.no_grad()
def _inputs(model: PreTrainedModel, weights: Sequence[Weight], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Σ x_j² of each column of each matrix."""
    found = {}
    with ExitStack() as stack:
        for weight in weights:
            experts = weight.row.layout is Layout.EXPERTS
            matrices = weight.parameter.shape[0] if experts else 1
            sums = torch.zeros(matrices, 1, weight.row.in_features, device=weight.parameter.device)
            found[weight.name] = sums
            hook: Callable[..., None] = partial(_routed, sums, weight) if experts else partial(_plain, sums)
            stack.callback(weight.module.register_forward_pre_hook(hook).remove)
        for batch in batches:
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
    return found


def _plain(sums: Tensor, _module: nn.Module, arguments: tuple[Any, ...]) -> None:
    sums[0, 0] += arguments[0].float().square().flatten(0, -2).sum(0)


def _routed(sums: Tensor, weight: Weight, module: nn.Module, arguments: tuple[Any, ...]) -> None:
    for expert, x in expert_inputs(module, arguments, weight.row.role):
        sums[expert, 0] += x.float().square().sum(0)


def _fisher(
    model: PreTrainedModel, weights: Sequence[Weight], batches: Sequence[Tensor], method: str
) -> dict[str, Tensor]:
    """Σ (∂L_d/∂w)² of each weight, where L_d is the mean loss of the tokens of a row of the text."""
    rows = [row for batch in batches for row in batch if len(row) > 1]
    if not rows:
        raise RequestError(
            f"{method} takes importance from the loss of next tokens, and no row of the text has two tokens.",
            hint="Give longer rows.",
        )
    found = {weight.name: torch.zeros_like(weight.parameter, dtype=torch.float32) for weight in weights}
    with _alone_trainable(model, [weight.parameter for weight in weights]), ExitStack() as stack:
        for weight in weights:
            hook = partial(_square, found[weight.name])
            stack.callback(weight.parameter.register_post_accumulate_grad_hook(hook).remove)
        with torch.enable_grad():
            for row in rows:
                ids = row.to(model.device)
                logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
                F.cross_entropy(logits, ids[1:]).backward()
    return found


def _square(sums: Tensor, parameter: Tensor) -> None:
    assert parameter.grad is not None
    sums += parameter.grad.float().square()
    parameter.grad = None


@contextmanager
def _alone_trainable(model: nn.Module, chosen: Sequence[nn.Parameter]) -> Iterator[None]:
    """Only these parameters get gradients; all are as they were afterwards."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    for parameter, _, _ in before:
        parameter.requires_grad_(False)
        parameter.grad = None
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, trainable, gradient in before:
            parameter.requires_grad_(trainable)
            parameter.grad = gradient
