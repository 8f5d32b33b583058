"""Arithmetic of a model's passes, from its ledger: a multiplication and an addition are 2 FLOPs.

A matrix costs 2·in·out a token forward, 2 more for the gradient of its input, and 2 more for its own gradient where it
is trained. (`hayless.core.work` counts kernel by kernel, from a run on paper.)
"""

from __future__ import annotations

import math
from typing import Literal

from hayless.core.cost import TrainShape
from hayless.core.dims import ModelDims
from hayless.core.ledger import Layout, Ledger
from hayless.core.roles import Role


def forward_flops(
    ledger: Ledger, batch: int, sequence: int, *, logits: int = 0, attention: Literal["causal", "full"] = "causal"
) -> float:
    """FLOPs of one forward pass over `batch` rows of `sequence` tokens, logits of the last `logits` (0: all).

    Attention counts QKᵀ and PV: over all pairs of positions (`full`, the convention of published utilisations), or over
    those that a causal mask leaves, which is what fused kernels compute.
    """
    tokens = batch * sequence
    head_tokens = batch * (min(logits, sequence) if logits else sequence)
    return _matrix_flops(ledger, tokens, head_tokens) + attention_flops(ledger.dims, batch, sequence, attention)


def attention_flops(dims: ModelDims, batch: int, sequence: int, kind: Literal["causal", "full"] = "causal") -> float:
    """FLOPs of QKᵀ and PV in all layers. Encoders and cross-attention are never causal."""
    full = 4.0 * dims.q_width * batch * sequence * sequence
    causal = full if kind == "full" or dims.family == "bert" else full * (sequence + 1) / (2 * sequence)
    cross = dims.num_layers * full if dims.encoder_layers else 0.0
    return dims.num_layers * causal + dims.encoder_layers * full + cross


def backward_flops(ledger: Ledger, shape: TrainShape) -> float:
    """FLOPs of one micro-batch's backward pass, blocks that are computed again included.

    2 a weight and token for the gradient of the input, 2 for that of the weight where it is trained; attention twice
    its forward pass.
    """
    tokens = shape.batch * shape.sequence
    matrices = _matrix_flops(ledger, tokens, tokens)
    trained = _matrix_flops(ledger, tokens, tokens, trained=True)
    attended = attention_flops(ledger.dims, shape.batch, shape.sequence)
    again = 0.0
    if shape.checkpoint_every:
        blocks = ledger.dims.num_layers + ledger.dims.encoder_layers
        outside = _matrix_flops(ledger, tokens, tokens, blocks=False)
        chosen = math.ceil(blocks / shape.checkpoint_every)
        products = 0.0 if shape.checkpoint_keeps == "products" else matrices - outside
        again = (
            (products + (attended if shape.checkpoint_keeps == "nothing" else 0.0))
            * min(chosen, shape.checkpoint_blocks or chosen)
            / blocks
        )
    return matrices + trained + 2 * attended + again


def _matrix_flops(
    ledger: Ledger, tokens: int, head_tokens: int, *, trained: bool = False, blocks: bool = True
) -> float:
    """2·in·out of each matrix a token meets; only trained ones if `trained`, only those outside if not `blocks`."""
    share = _active_share(ledger.dims)
    total = 0.0
    tables = {row.module: row for row in ledger.rows if row.layout is Layout.TABLE}
    for row in ledger.rows:
        owner = tables.get(row.tied_to, row) if row.tied_to else row
        if not row.is_matrix or (trained and not owner.trainable) or (row.layers and not blocks):
            continue
        seen = head_tokens if row.role is Role.HEAD else tokens
        total += 2.0 * row.count * math.prod(row.shape) * seen * (share if row.layout is Layout.EXPERTS else 1.0)
    return total


def _active_share(dims: ModelDims) -> float:
    return dims.experts_per_token / dims.num_experts if dims.num_experts else 1.0
