"""Model FLOPs utilisation: the arithmetic a model's formula needs, over what the device could do in the same time.

As in PaLM (Chowdhery et al., 2022, arXiv:2204.02311, appendix B): recomputed activations do not count, and attention
counts as if it were not causal.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from hayless.core.dims import ModelDims
from hayless.core.errors import HaylessError
from hayless.core.families import dims_of, ledger_of
from hayless.core.ledger import Layout
from hayless.core.roles import Role
from hayless.train.precision import trainables
from hayless.train.settings import Precision
from hayless.train.slots import Kind

_DENSE_16_BIT = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "L40S": 362e12,
    "A100": 312e12,
    "RTX 4090": 165e12,
    "A10G": 70e12,
    "L4": 121e12,
    "RTX 3090": 71e12,
}
"""FLOP/s of dense bf16 matrix products with fp32 accumulation, from the makers' data sheets; longer names first."""


def device_rate(device: torch.device, precision: Precision) -> float | None:
    """Peak FLOP/s of `device` in the arithmetic of `precision`; None where it is not known (CPUs, fp32, other GPUs)."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for known, rate in _DENSE_16_BIT.items() if known in name), None)


def flops_per_token(model: PreTrainedModel, sequence_length: int) -> float | None:
    """FLOPs of one token's forward and backward pass; None for a family that is not known.

    A weight costs 2 forward, 2 for the gradient of its input, and 2 for its own gradient where it is trained.
    """
    try:
        dims = dims_of(model.config.to_dict())
        rows = ledger_of(dims).rows
    except HaylessError:
        return None
    has_head = model.get_output_embeddings() is not None
    weights = 0.0
    for row in rows:
        if row.is_matrix and (has_head or row.role is not Role.HEAD):
            share = _active_share(dims) if row.layout is Layout.EXPERTS else 1.0
            weights += share * row.count * _elements(row.shape)
    trained = 0.0
    for item in trainables(model):
        shared_head = item.kind is Kind.EMBEDDING and has_head and dims.tied_embeddings
        if item.kind is Kind.MATRIX or shared_head:
            trained += item.tensor.numel() * (_active_share(dims) if item.tensor.ndim == 3 else 1.0)
    attention = 12.0 * (dims.num_layers + dims.encoder_layers) * dims.q_width * sequence_length
    return 4 * weights + 2 * trained + attention


def _active_share(dims: ModelDims) -> float:
    return dims.experts_per_token / dims.num_experts if dims.num_experts else 1.0


def _elements(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
