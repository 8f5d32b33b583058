"""Looking at a model while it trains: held-out loss, and what it makes of fixed prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import RequestError
from hayless.data.batches import Batch
from hayless.decode.engine import Engine, evaluating
from hayless.decode.options import SamplingOptions
from hayless.train.precision import arithmetic
from hayless.train.settings import TrainSettings
from hayless.train.slots import Objective


def held_out(
    model: PreTrainedModel, objective: Objective, batches: Iterable[Batch], settings: TrainSettings
) -> dict[str, float]:
    """`loss` and the objective's metrics as means over all units of `batches`. RequestError where there are none.

    The loss is not finite where the model is broken; that is for the caller to judge.
    """
    totals: list[float] = []
    sums: dict[str, list[float]] = {}
    units = 0
    with evaluating(model), torch.no_grad():
        for batch in batches:
            units += objective.units(batch)
            with arithmetic(settings.precision, model.device):
                loss = objective.loss(model, batch.to(model.device))
            totals.append(float(loss.total))
            for name, value in loss.metrics.items():
                sums.setdefault(name, []).append(float(value))
    if not units:
        raise RequestError(
            f"The held-out data has no {objective.unit} to look at.", hint="Raise data.heldout, or give more data."
        )
    means = {name: math.fsum(values) / units for name, values in sums.items()}
    return {"loss": math.fsum(totals) / units, **means}


def samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], settings: TrainSettings
) -> list[str]:
    """The likeliest continuation of each prompt, of at most `sample_tokens` tokens."""
    options = SamplingOptions(max_tokens=settings.sample_tokens)
    with arithmetic(settings.precision, model.device):
        return [found.text for found in Engine(model, tokenizer).generate(prompts, options)]
