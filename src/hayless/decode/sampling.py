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


def likeliest(logits: Tensor) -> Tensor:
    """The likeliest token of each row (…), the first of equals, of logits (…, v) in float32."""
    if logits.is_cpu:
        return torch.from_numpy(logits.numpy().argmax(-1))  # in a quarter of the time that PyTorch takes
    return logits.argmax(-1)


def draw(probs_bv: Tensor, generators: Sequence[Generator]) -> Tensor:
    """One token a row (b,), from probabilities (b, v) that need not sum to one exactly; `generators` has one a row.

    Each row takes one uniform number from its own generator (on the CPU), so a request's draws do not depend on its
    neighbours in the batch.
    """
    uniforms_b = torch.cat([torch.rand(1, 1, generator=generator, dtype=torch.float64) for generator in generators])
    return invert(probs_bv, uniforms_b.flatten().to(probs_bv.device, precise(probs_bv.device)))


def invert(probs_bv: Tensor, uniforms_b: Tensor) -> Tensor:
    """The tokens (b,) at which the cumulative distributions of `probs_bv` pass `uniforms_b`, numbers in [0, 1).

    A token of probability 0 is never drawn.
    """
    cumulative_bv = probs_bv.to(uniforms_b.dtype).cumsum(-1)
    total_b1 = cumulative_bv[:, -1:].contiguous()
    found_b1 = torch.searchsorted(cumulative_bv, uniforms_b[:, None] * total_b1, right=True)
    last_b1 = torch.searchsorted(cumulative_bv, total_b1)
    return torch.minimum(found_b1, last_b1).clamp(max=probs_bv.shape[-1] - 1).squeeze(1)


class RowOptions:
    """The options of each row as tensors on a device, so that one captured graph serves any mixture."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.temperature_b = torch.zeros(rows, dtype=torch.float32, device=device)
        self.top_k_b = torch.zeros(rows, dtype=torch.long, device=device)
        self.top_p_b = torch.ones(rows, dtype=torch.float32, device=device)
        self.min_p_b = torch.zeros(rows, dtype=torch.float32, device=device)

    def set(self, options: Sequence[SamplingOptions]) -> None:
        """Take the first rows' options; the others are greedy."""
        padding = [SamplingOptions()] * (len(self.temperature_b) - len(options))
        every = [*options, *padding]
        self.temperature_b.copy_(torch.tensor([one.temperature for one in every]))
        self.top_k_b.copy_(torch.tensor([one.top_k for one in every]))
        self.top_p_b.copy_(torch.tensor([one.top_p for one in every]))
        self.min_p_b.copy_(torch.tensor([one.min_p for one in every]))

    def distribution(self, logits_bv: Tensor, *, sort: bool) -> Tensor:
        """What `distribution` gives row by row, without a look at the host. Without `sort`, top_k and top_p of every
        row must be off.
        """
        greedy_b1 = (self.temperature_b == 0)[:, None]
        likeliest_bv = torch.zeros_like(logits_bv).scatter_(-1, logits_bv.argmax(-1, keepdim=True), 1.0)
        divisor_b1 = torch.where(greedy_b1, 1.0, self.temperature_b[:, None])
        x_bv = (logits_bv - logits_bv.amax(-1, keepdim=True)) / divisor_b1
        if sort:
            entries = x_bv.shape[-1]
            ascending_bv, order_bv = x_bv.sort()
            k_b1 = torch.where(self.top_k_b == 0, entries, self.top_k_b.clamp(max=entries))[:, None]
            smallest_b1 = ascending_bv.gather(-1, entries - k_b1)
            ascending_bv = ascending_bv.masked_fill(ascending_bv < smallest_b1, -torch.inf)
            p_b1 = self.top_p_b[:, None]
            drop_bv = (ascending_bv.softmax(-1).cumsum(-1) <= 1 - p_b1) & (p_b1 < 1)
            drop_bv[:, -1] = False
            x_bv = torch.empty_like(x_bv).scatter_(-1, order_bv, ascending_bv.masked_fill(drop_bv, -torch.inf))
        probs_bv = x_bv.softmax(-1)
        probs_bv = probs_bv.masked_fill(probs_bv < self.min_p_b[:, None] * probs_bv.amax(-1, keepdim=True), 0.0)
        probs_bv = probs_bv / probs_bv.sum(-1, keepdim=True)
        return torch.where(greedy_b1, likeliest_bv, probs_bv)


def precise(device: torch.device) -> torch.dtype:
    """The dtype of running sums of probabilities on a device: float64 where it has that."""
    return torch.float32 if device.type == "mps" else torch.float64


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
