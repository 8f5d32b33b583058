"""Model FLOPs utilisation: the arithmetic a model's formula needs, over what the device could do in the same time.

As in PaLM (Chowdhery et al., 2022, arXiv:2204.02311, appendix B): recomputed activations do not count, and attention
counts as if it were not causal.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from hayless.core import devices
from hayless.core.cost import TrainShape
from hayless.core.errors import HaylessError
from hayless.core.flops import attention_flops, backward_flops, forward_flops
from hayless.core.ledger import Row
from hayless.measure.weights import ledger_of_model
from hayless.train.settings import Precision


def device_rate(device: torch.device, precision: Precision) -> float | None:
    """Peak FLOP/s of `device` in the arithmetic of `precision`; None where it is not known (CPUs, fp32, other GPUs)."""
    if device.type != "cuda" or precision == "fp32":
        return None
    try:
        return devices.find(torch.cuda.get_device_name(device)).rate("bfloat16")
    except HaylessError:
        return None


def flops_per_token(model: PreTrainedModel, sequence_length: int) -> float | None:
    """FLOPs of one token's forward and backward pass; None for a family that is not known."""
    try:
        ledger = ledger_of_model(model)
    except HaylessError:
        return None
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    rows = tuple(replace(row, trainable=row.trainable and _first_name(row) in trained) for row in ledger.rows)
    ledger = replace(ledger, rows=rows)
    counted = [attention_flops(ledger.dims, 1, sequence_length, kind) for kind in ("full", "causal")]
    passes = forward_flops(ledger, 1, sequence_length) + backward_flops(ledger, TrainShape(1, sequence_length))
    return (passes + 3 * (counted[0] - counted[1])) / sequence_length


def _first_name(row: Row) -> str:
    """The name of a row's parameter in the first layer that has it."""
    return f"{row.module}.{row.parameter}".replace("{layer}", str(row.layers[0] if row.layers else 0))
