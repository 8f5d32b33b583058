"""Contenders that compute the cross-entropy of a linear head and its gradients. They must be near what float32 gives.

Shapes: n tokens, h width, v entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.kernels.linear_loss import linear_cross_entropy
from hayless.study.bench.gate import ERROR, Plain, as_exact, close
from hayless.study.bench.spec import Figure, Prepared, Unavailable

_LOSS = "loss a token"
_IGNORED = -100
_EVERY_TOKEN, _EVERY_ENTRY = 64, 512
"""Gradients are compared at every so-manieth row."""


@dataclass(frozen=True)
class Head:
    """Random states of `tokens` tokens and a head of `entries` × `width` in bf16, the same each time."""

    tokens: int
    width: int
    entries: int
    device: str = "cuda"

    @property
    def name(self) -> str:
        """What it is, in words."""
        return f"{self.tokens:,} tokens, width {self.width}, vocabulary {self.entries:,}"

    def same(self, reference: Plain, other: Plain) -> str:
        """Losses are equal to the 8 bits of bf16, in which some give them. Gradients may be off float32 by a few times
        more than the first contender's: those of the head are sums over chunks, rounded to bf16 after each."""
        losses = [{_LOSS: answer[_LOSS]} for answer in (reference, other)]
        return close(relative=5e-3)(*losses) or as_exact(times=8.0)(reference, other)

    def plain(self) -> Prepared:
        """All logits, in float32 for the loss, as models compute it."""
        return self._prepared(
            lambda x, w, targets: F.cross_entropy(F.linear(x, w).float(), targets, ignore_index=_IGNORED)
        )

    def hayless(self, *, chunk: int) -> Prepared:
        """By chunks of so many tokens."""
        return self._prepared(
            lambda x, w, targets: linear_cross_entropy(x, w, targets, reduction="mean", chunk=chunk)[0]
        )

    def liger(self) -> Prepared:
        """Liger Kernel's, at its defaults."""
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss(ignore_index=_IGNORED)
        return self._prepared(lambda x, w, targets: fused(w, x, targets))

    def torch(self) -> Prepared:
        """PyTorch's, where there is one."""
        found = getattr(F, "linear_cross_entropy", None)
        if found is None:
            raise Unavailable(f"PyTorch {torch.__version__} has no F.linear_cross_entropy")
        return self._prepared(lambda x, w, targets: found(x, w, targets, ignore_index=_IGNORED))

    def cut(self) -> Prepared:
        """Apple's cut cross-entropy, which sums where others store."""
        from cut_cross_entropy import linear_cross_entropy as cut

        return self._prepared(lambda x, w, targets: cut(x, w, targets, ignore_index=_IGNORED))

    def _prepared(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Prepared:
        x, weight, targets = self._made(torch.bfloat16)

        def run() -> Tensor:
            x.grad = weight.grad = None
            total = loss(x, weight, targets)
            total.backward()
            return total.detach()

        def errors() -> tuple[Tensor, Tensor, Tensor]:
            dx, dw = _exact(self)
            found = run()
            assert x.grad is not None and weight.grad is not None
            off_x = (x.grad[::_EVERY_TOKEN].float() - dx) / dx.square().mean().sqrt()
            off_w = (weight.grad[::_EVERY_ENTRY].float() - dw) / dw.square().mean().sqrt()
            return found, off_x, off_w

        def answer() -> dict[str, Tensor]:
            found, off_x, off_w = errors()
            return {_LOSS: found.reshape(1), ERROR: torch.cat([off_x.flatten(), off_w.flatten()])}

        def figures() -> list[Figure]:
            _, off_x, off_w = errors()
            named = {"states": off_x, "head": off_w}
            return [
                Figure(
                    f"error of the gradient of the {name}", "of its root mean square", float(off.square().mean().sqrt())
                )
                for name, off in named.items()
            ]

        return Prepared(run, answer, figures=figures)

    def _made(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """States, a head, and targets; logits are of about 2, so that likely tokens stand out."""
        torch.manual_seed(0)
        kind = {"device": self.device, "dtype": torch.bfloat16}
        x = torch.randn(self.tokens, self.width, **kind)
        weight = torch.randn(self.entries, self.width, **kind) * (2 * self.width**-0.5)
        targets = torch.randint(self.entries, (self.tokens,), device=self.device)
        targets[::10] = _IGNORED
        return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


@cache
def _exact(head: Head) -> tuple[Tensor, Tensor]:
    """The compared rows of gradients in float32, from all logits of a few tokens at a time."""
    x, weight, targets = head._made(torch.float32)
    count = (targets != _IGNORED).sum()
    for part, labels in zip(x.split(1024), targets.split(1024), strict=True):
        loss = F.cross_entropy(F.linear(part, weight), labels, ignore_index=_IGNORED, reduction="sum") / count
        loss.backward()
    assert x.grad is not None and weight.grad is not None
    return x.grad[::_EVERY_TOKEN].clone(), weight.grad[::_EVERY_ENTRY].clone()
