"""Pruning a loaded model by magnitude."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from hayless.methods.common.targets import matching
from hayless.methods.common.weights import Weight, check_finite, plain_ledger, weights_of
from hayless.methods.prune.magnitude.budget import kept_in_all, kept_of_each
from hayless.methods.prune.magnitude.config import MagnitudeConfig
from hayless.methods.prune.magnitude.frozen_zeros import freeze_zeros
from hayless.methods.prune.magnitude.selection import zero_smallest
from hayless.model.transform import Change, Context


class Magnitude:
    """Fills the transform slot."""

    @staticmethod
    def apply(model: PreTrainedModel, config: MagnitudeConfig, context: Context) -> Change:
        """Set the smallest weights to zero, and keep them there in later training.

        Figures: `sparsity` and `nonzero` of the targets, and the largest magnitude that was removed. RequestError for
        weights that are not finite and for a request that removes everything; nothing is changed then.
        """
        weights = _targets(model, config)
        check_finite(weights)
        tensors = [weight.parameter.detach() for weight in weights]
        sizes = [tensor.numel() for tensor in tensors]
        if config.scope == "global":
            threshold = zero_smallest(tensors, sum(sizes) - kept_in_all(sum(sizes), config))
        else:
            threshold = 0.0
            for number, (tensor, kept) in enumerate(zip(tensors, kept_of_each(sizes, config), strict=True)):
                context.progress("magnitude", number, len(tensors))
                threshold = max(threshold, zero_smallest([tensor], tensor.numel() - kept))
        context.progress("magnitude", len(tensors), len(tensors))
        _freeze(model, weights)
        nonzero = sum(int(torch.count_nonzero(tensor)) for tensor in tensors)
        figures = {"sparsity": 1 - nonzero / sum(sizes), "nonzero": float(nonzero), "largest_removed": threshold}
        return Change(config.method, tuple(weight.path for weight in weights), figures=figures)

    @staticmethod
    def restore(model: PreTrainedModel, config: MagnitudeConfig) -> None:
        """Keep the zeros that will be loaded."""
        _freeze(model, _targets(model, config))


def _targets(model: PreTrainedModel, config: MagnitudeConfig) -> list[Weight]:
    return weights_of(model, matching(plain_ledger(model), config.targets, config.method))


def _freeze(model: PreTrainedModel, weights: list[Weight]) -> None:
    freeze_zeros(model, [(weight.path, weight.row.parameter) for weight in weights])
