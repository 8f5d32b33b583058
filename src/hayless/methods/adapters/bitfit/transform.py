"""Freezing all but the biases of a loaded model. What is trained lies in the model: a save is the whole model."""

from __future__ import annotations

from transformers import PreTrainedModel

from hayless.methods.adapters.bitfit.config import BitFitConfig, is_bias, predict
from hayless.methods.common.adapting import freeze, refuse_marked, trained
from hayless.methods.common.weights import plain_ledger, weights_of
from hayless.model.transform import Change, Context


class BitFit:
    """Fills the transform slot."""

    @staticmethod
    def apply(model: PreTrainedModel, config: BitFitConfig, context: Context) -> Change:
        """Freeze all but the biases; no value changes. NotSupported for a model without biases."""
        ledger = predict(plain_ledger(model), config)
        refuse_marked(model, config.method, ())
        freeze(model, config.method)
        biases = weights_of(model, [row for row in ledger.rows if is_bias(row)])
        for weight in biases:
            weight.parameter.requires_grad_(True)
        return Change(config.method, tuple(weight.name for weight in biases), figures=trained(model))

    @staticmethod
    def restore(model: PreTrainedModel, config: BitFitConfig) -> None:
        """As `apply`: the tensors are those of the model without it."""
        BitFit.apply(model, config, Context())
