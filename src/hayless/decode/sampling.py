"""From logits to tokens.

Shapes: b requests, v entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from hayless.decode.options import SamplingOptions


def distribution(logits_bv: Tensor, options: SamplingOptions) -> Tensor:
    """Probabilities (b, v) in float32 that `options` give logits (b, v) of any float type.

    The order is temperature, top_k, top_p, min_p, each on what the one before left, then a softmax: what the warpers
    of transformers do. Tokens tied with the last one that top_k keeps are kept too. Temperature 0 puts all
    probability on the likeliest token (the first of equals).
    """
    logits_bv = logits_bv.float()
    if options.temperature == 0:
        return torch.zeros_like(logits_bv).scatter_(-1, logits_bv.argmax(-1, keepdim=True), 1.0)
    # The largest logit becomes 0 first, so that a tiny temperature cannot overflow.
    logits_bv = (logits_bv - logits_bv.amax(-1, keepdim=True)) / options.temperature
    if options.top_k:
        logits_bv = _keep_top_k(logits_bv, options.top_k)
    if options.top_p < 1:
        logits_bv = _keep_top_p(logits_bv, options.top_p)
    if options.min_p:
        logits_bv = _keep_min_p(logits_bv, options.min_p)
    return logits_bv.softmax(-1)


def draw(probs_bv: Tensor, generators: Sequence[Generator]) -> Tensor:
    """One token a row (b,), from probabilities (b, v) that need not sum to one exactly; `generators` has one a row.

    Each row takes one uniform number from its own generator (on the CPU) and inverts the cumulative distribution, so a
    request's draws do not depend on its neighbours in the batch. A token of probability 0 is never drawn.
    """
    precision = torch.float32 if probs_bv.device.type == "mps" else torch.float64
    uniforms_b1 = torch.cat([torch.rand(1, 1, generator=generator, dtype=torch.float64) for generator in generators])
    cumulative_bv = probs_bv.to(precision).cumsum(-1)
    total_b1 = cumulative_bv[:, -1:].contiguous()
    targets_b1 = uniforms_b1.to(device=probs_bv.device, dtype=precision) * total_b1
    found_b1 = torch.searchsorted(cumulative_bv, targets_b1, right=True)
    last_b1 = torch.searchsorted(cumulative_bv, total_b1)
    return torch.minimum(found_b1, last_b1).clamp(max=probs_bv.shape[-1] - 1).squeeze(1)


def _keep_top_k(logits_bv: Tensor, k: int) -> Tensor:
    smallest_b1 = logits_bv.topk(min(k, logits_bv.shape[-1])).values[:, -1:]
    return logits_bv.masked_fill(logits_bv < smallest_b1, -torch.inf)


def _keep_top_p(logits_bv: Tensor, p: float) -> Tensor:
    ascending_bv, order_bv = logits_bv.sort()
    drop_bv = ascending_bv.softmax(-1).cumsum(-1) <= 1 - p
    drop_bv[:, -1] = False
    return logits_bv.masked_fill(drop_bv.gather(-1, order_bv.argsort()), -torch.inf)


def _keep_min_p(logits_bv: Tensor, share: float) -> Tensor:
    probs_bv = logits_bv.softmax(-1)
    return logits_bv.masked_fill(probs_bv < share * probs_bv.amax(-1, keepdim=True), -torch.inf)
