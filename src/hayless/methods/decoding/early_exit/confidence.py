"""How sure a model is of the next token behind one of its layers: numbers from 0 to 1.

CALM (Schuster et al., 2022, arXiv:2207.07061, section 3.1). Shapes: b rows, h hidden, v vocabulary, n samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Confidence(Protocol):
    """How sure the model is; `logits` (b, v) is what its head said of the last states, where it was asked."""

    logits: Tensor | None

    def __call__(self, shown_bh: Tensor, x_bh: Tensor, before_bh: Tensor) -> Tensor:
        """Confidences (b,) from what is shown to the head behind a layer, the states there and those before it."""


class Tail(Protocol):
    """What a model does behind its last layer."""

    def normed(self, states: Tensor) -> Tensor:
        """States (b, h) as the head takes them."""

    def logits(self, states: Tensor) -> Tensor:
        """Logits (b, v) of states (b, h)."""


def softmax_gap(logits_bv: Tensor) -> Tensor:
    """By how much the likeliest token's probability is larger than the second's."""
    logits_bv = logits_bv.float()
    top_b2 = (logits_bv.topk(2).values - logits_bv.logsumexp(-1, keepdim=True)).exp()
    return top_b2[:, 0] - top_b2[:, 1]


def state_cosine(x_bh: Tensor, before_bh: Tensor) -> Tensor:
    """The cosine of what leaves a layer and what entered it; 0 where they point apart."""
    return F.cosine_similarity(x_bh.float(), before_bh.float(), -1).clamp(0, 1)


class BySoftmax:
    """The head's softmax gap."""

    def __init__(self, tail: Tail) -> None:
        self.logits: Tensor | None = None
        self._tail = tail

    def __call__(self, shown_bh: Tensor, x_bh: Tensor, before_bh: Tensor) -> Tensor:
        """Confidences (b,)."""
        self.logits = self._tail.logits(shown_bh)
        return softmax_gap(self.logits)


class ByState:
    """The cosine of successive states."""

    logits: Tensor | None = None

    def __call__(self, shown_bh: Tensor, x_bh: Tensor, before_bh: Tensor) -> Tensor:
        """Confidences (b,)."""
        return state_cosine(x_bh, before_bh)


class ByClassifier:
    """A classifier's chances."""

    logits: Tensor | None = None

    def __init__(self, classifier: Classifier, tail: Tail) -> None:
        self._classifier, self._tail = classifier, tail

    def __call__(self, shown_bh: Tensor, x_bh: Tensor, before_bh: Tensor) -> Tensor:
        """Confidences (b,)."""
        return self._classifier(self._tail.normed(shown_bh))


@dataclass(frozen=True, slots=True)
class Classifier:
    """σ(w·z + b) of states z as the head takes them: the chance that the head says there what it says in the end."""

    weight_h: Tensor
    bias: Tensor

    def __call__(self, normed_bh: Tensor) -> Tensor:
        """Chances (b,)."""
        return torch.sigmoid(normed_bh.float() @ self.weight_h + self.bias)


def learn_classifier(normed: Sequence[Tensor], agrees: Sequence[Tensor]) -> Classifier:
    """A classifier for all layers, from states (n, h) behind each and whether they already say the last one's token.

    Logistic regression; the layer at place i of L weighs i / Σ j (CALM, section 3.4), since a wrong answer there comes
    later. A little weight decay holds it where layers can be told apart without error.
    """
    x_nh = torch.cat([states.float() for states in normed])
    mean_h, scale_h = x_nh.mean(0), x_nh.std(0).clamp_min(1e-6)
    x_nh = (x_nh - mean_h) / scale_h
    y_n = torch.cat([right.float() for right in agrees])
    total = sum(range(1, len(normed) + 1))
    weights = [torch.full((len(each),), place / total / len(each)) for place, each in enumerate(normed, 1)]
    weight_n = torch.cat(weights).to(x_nh.device)
    line_h = torch.zeros(x_nh.shape[1], device=x_nh.device, requires_grad=True)
    bias = torch.zeros((), device=x_nh.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([line_h, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.binary_cross_entropy_with_logits(x_nh @ line_h + bias, y_n, weight_n, reduction="sum")
        found = found + 1e-3 * line_h.square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(loss)
    line_h = (line_h / scale_h).detach()
    return Classifier(line_h, (bias - line_h @ mean_h).detach())
