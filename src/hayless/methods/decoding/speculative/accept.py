"""Speculative sampling for a batch: each row keeps as many drafted tokens as it may (see reference.py).

Nothing here waits for a device, so that it can be captured in a graph. Shapes: b rows, k drafted tokens, v vocabulary.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn.functional import pad

from hayless.decode.sampling import invert


class Accept(Protocol):
    """A rule that says how many drafted tokens each row keeps, and which token follows them."""

    def __call__(
        self, target_bkv: Tensor, draft_bkv: Tensor, tokens_bk: Tensor, keep_bk: Tensor, last_bk: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(tokens kept (b,), the token behind them (b,)), from what `accept` takes."""
        ...


def accept(
    target_bkv: Tensor, draft_bkv: Tensor, tokens_bk: Tensor, keep_bk: Tensor, last_bk: Tensor
) -> tuple[Tensor, Tensor]:
    """How many of its drafted tokens each row keeps (b,), and the token that follows them (b,).

    target_bkv (b, k + 1, v) are the model's probabilities, draft_bkv (b, k, v) those that tokens_bk (b, k) were drawn
    from. Numbers in [0, 1) decide: keep_bk (b, k) whether a drafted token is kept, last_bk (b, k + 1) which token
    follows, by its place.
    """
    at_bk1 = tokens_bk[..., None]
    target_bk, draft_bk = target_bkv[:, :-1].gather(-1, at_bk1)[..., 0], draft_bkv.gather(-1, at_bk1)[..., 0]
    kept_b = first_false(keep_bk * draft_bk < target_bk)
    target_bv = _place(target_bkv, kept_b)
    # Behind the last drafted token there is no draft: all of the target is left there.
    residual_bv = (target_bv - _place(pad(draft_bkv, (0, 0, 0, 1)), kept_b)).clamp(min=0)
    # Where rounding leaves nothing, both distributions are the same.
    something_b1 = residual_bv.sum(-1, keepdim=True) > 0
    return kept_b, invert(residual_bv.where(something_b1, target_bv), last_bk.gather(1, kept_b[:, None])[:, 0])


def accept_likeliest(likeliest_bk: Tensor, tokens_bk: Tensor) -> tuple[Tensor, Tensor]:
    """The same where all rows are greedy, from the model's likeliest tokens (b, k + 1)."""
    kept_b = first_false(likeliest_bk[:, :-1] == tokens_bk)
    return kept_b, likeliest_bk.gather(1, kept_b[:, None])[:, 0]


def first_false(true_bk: Tensor) -> Tensor:
    """How many values of each row are true before the first that is not (b,)."""
    return true_bk.long().cumprod(1).sum(1)


def _place(x_bkv: Tensor, at_b: Tensor) -> Tensor:
    return x_bkv.gather(1, at_b[:, None, None].expand(-1, 1, x_bkv.shape[-1]))[:, 0]
