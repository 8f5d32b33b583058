"""When tokens leave: watches for a step (`hayless.decode.step.Watch`). Shapes: b rows, h hidden."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from hayless.methods.decoding.early_exit.confidence import Confidence
from hayless.methods.decoding.early_exit.heads import Heads, shared


class Confident:
    """Each row leaves behind the first of `exits` where its confidence is at least `threshold`.

    A row that has left keeps its state while others go on: each layer then makes keys and values from that state, which
    is what the step does for all rows once all have left (CALM, section 3.3). `layers` are those of each row's last
    token; `logits` what the head said of all rows' states where they left together, if it was asked.
    """

    copies = True

    def __init__(
        self, confidence: Confidence, threshold: float, exits: Collection[int], layers: int, heads: Heads = shared
    ) -> None:
        self.layers: list[int] = []
        self.logits: Tensor | None = None
        self._confidence, self._threshold, self._depth, self._heads = confidence, threshold, layers, heads
        self._exits = frozenset(exits) if threshold < 1 else frozenset()

    def __call__(self, layer: int, x_bh: Tensor) -> bool:
        """Whether all rows have left behind this layer."""
        if layer == 1:
            self.layers, self.logits = [self._depth] * len(x_bh), None
            self._left, self._left_b1 = 0, torch.zeros(len(x_bh), 1, dtype=torch.bool, device=x_bh.device)
            self._before_bh = self._kept_bh = self._shown_bh = x_bh
        elif self._left:
            x_bh.copy_(self._kept_bh.where(self._left_b1, x_bh))
        if layer in self._exits:
            self._look(layer, x_bh)
        if layer + 1 in self._exits:
            self._before_bh = x_bh.clone()
        return self._left == len(x_bh)

    def _look(self, layer: int, x_bh: Tensor) -> None:
        shown_bh = self._heads(layer, x_bh)
        sure_b = (self._confidence(shown_bh, x_bh, self._before_bh) >= self._threshold).tolist()
        leaving = [row for row, sure in enumerate(sure_b) if sure and self.layers[row] == self._depth]
        for row in leaving:
            self.layers[row] = layer
        if leaving:
            self._shown_bh = self._shown_bh.where(self._left_b1, shown_bh) if self._left else shown_bh.clone()
            # What the head has said now was of states that all left here.
            self.logits = self._confidence.logits if len(leaving) == len(x_bh) else None
            self._left += len(leaving)
            self._left_b1[leaving] = True
            self._kept_bh = x_bh.clone()

    def shown(self, x_bh: Tensor) -> Tensor:
        """What the head is shown of the states that a step ended with."""
        return self._shown_bh.where(self._left_b1, x_bh) if self._left else x_bh


class OnSchedule:
    """All rows leave together, behind as many layers as their place allows, never more than at the place before.

    So no later token needs the keys of layers that were skipped (SkipDecode). `layers_at` says how many, by the tokens
    that were made before.
    """

    copies = False
    logits: Tensor | None = None

    def __init__(self, layers_at: Callable[[int], int], depth: int, heads: Heads = shared) -> None:
        self.layers: list[int] = []
        self._depth, self._heads = depth, heads
        self._layers_at = layers_at
        self._place = 0

    def __call__(self, layer: int, x_bh: Tensor) -> bool:
        """Whether this is the place's last layer."""
        if layer == 1:
            # The token at place 0 came from the prompt's pass.
            self._place += 1
            self.layers = [self._layers_at(self._place)] * len(x_bh)
        return layer >= self.layers[0]

    def shown(self, x_bh: Tensor) -> Tensor:
        """What the head is shown of the states that a step ended with."""
        layer = self.layers[0]
        return x_bh if layer == self._depth else self._heads(layer, x_bh)
