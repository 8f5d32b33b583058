"""Searching weights of modules on a loaded model, and leaving their composition on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import RequestError, WorkError
from hayless.core.registry import method_of
from hayless.methods.adapters.lorahub.config import Example, LoraHubConfig, composition
from hayless.methods.adapters.lorahub.search import search
from hayless.model.transform import Change, Context, forget


class LoraHub:
    """Fills the transform slot. What it leaves on a model is an adapter like any other, and is recorded as that."""

    @staticmethod
    def apply(model: PreTrainedModel, config: LoraHubConfig, context: Context) -> Change:
        """Search, and put the modules on the model with the weights found.

        Figures: `weight/NAME` of each module, `loss` with them and `loss_without` on the bare base, in nats a token of
        the answers.
        """
        if context.tokenizer is None:
            raise RequestError("lorahub needs a tokenizer, and none was given.", hint="Give the context the model's.")
        if not config.examples:
            raise RequestError("lorahub has no examples.", hint="Give a few: examples: [{prompt: ..., answer: ...}].")
        rows = [_row(example, context.tokenizer) for example in config.examples]
        part = method_of(composition(config)).load()
        without = _loss(model, rows)
        tried = 0

        def loss(weights: Sequence[float]) -> float:
            nonlocal tried
            context.progress(config.method, tried, config.steps)
            tried += 1
            (adapter,) = _put_on(part, model, composition(config, weights), context).leaves or ()
            try:
                return _loss(model, rows)
            finally:
                method_of(adapter).load().remove(model, adapter)
                forget(model, adapter)

        limits = {"steps": config.steps, "bound": config.bound, "penalty": config.penalty}
        weights, least = search(loss, len(config.modules), seed=context.seed, **limits)  # type: ignore[arg-type]
        context.progress(config.method, config.steps, config.steps)
        change = _put_on(part, model, composition(config, weights), context)
        found = {f"weight/{Path(name).name}": weight for name, weight in zip(config.modules, weights, strict=True)}
        return replace(
            change,
            method=config.method,
            figures={**change.figures, "loss": least, "loss_without": without, **found},
        )

    @staticmethod
    def restore(model: PreTrainedModel, config: LoraHubConfig) -> None:
        """Never on a record: what it leaves is."""
        raise RequestError("lorahub leaves a LoRA adapter, which is what a model is restored with.")


def _put_on(part: Any, model: PreTrainedModel, composing: Any, context: Context) -> Change:
    change: Change = part.apply(model, composing, context)
    return change


def _row(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, int]:
    """Tokens (1, s) of a prompt and its answer, and how many of them are the prompt's."""
    before: list[int] = tokenizer(example.prompt)["input_ids"]
    after: list[int] = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    if not before or not after:
        raise RequestError(f"An example has a prompt or an answer without tokens: {example.prompt!r}.")
    return torch.tensor([before + after]), len(before)


@torch.no_grad()
def _loss(model: PreTrainedModel, rows: Sequence[tuple[Tensor, int]]) -> float:
    """Nats a token of the answers."""
    total, count = 0.0, 0
    for ids, prompt in rows:
        ids = ids.to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, prompt - 1 : -1].float()
        total += float(F.cross_entropy(logits, ids[0, prompt:], reduction="sum"))
        count += ids.shape[1] - prompt
    if not total == total:
        raise WorkError("The loss of the examples is not a number.", hint="Is the base model sound?")
    return total / count
