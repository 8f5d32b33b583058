"""What the model's head is shown behind an early layer.

As it is, a state there means little to a head that was trained on the last layer's, unless the model was trained for
that (`layerskip`). A linear map from a layer's states to the last one's, by least squares, makes it mean more (Din et
al., Jump to Conclusions, 2023, arXiv:2303.09435, section 3): each layer then has a head of its own, the model's behind
a map.
Shapes: b rows, n samples, h hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Heads = Callable[[int, Tensor], Tensor]
"""From a number of layers and the states (b, h) behind them: what the head is shown (b, h)."""

_RIDGE = 1e-2
"""Beside the mean square of a state's numbers: how much a map is held back from leaving states as they are."""


def shared(layer: int, x_bh: Tensor) -> Tensor:
    """The states as they are."""
    return x_bh


@dataclass(frozen=True, slots=True)
class Learnt:
    """x + (x − mean)·W + shift, by layer; W is (h, h), in float32."""

    maps: Mapping[int, tuple[Tensor, Tensor, Tensor]]

    def __call__(self, layer: int, x_bh: Tensor) -> Tensor:
        """What the head is shown (b, h)."""
        mean_h, weight_hh, shift_h = self.maps[layer]
        wide_bh = x_bh.float()
        return (wide_bh + (wide_bh - mean_h) @ weight_hh + shift_h).to(x_bh.dtype)


def learn_heads(states: Mapping[int, Tensor], last_nh: Tensor) -> Learnt:
    """Maps from the states (n, h) behind each layer to those behind the last, by ridge regression of what is missing.

    So a map stays near the identity where samples are few.
    """
    return Learnt({layer: _fitted(x_nh.double(), last_nh.double()) for layer, x_nh in states.items()})


def _fitted(x_nh: Tensor, last_nh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    missing_nh = last_nh - x_nh
    mean_h, shift_h = x_nh.mean(0), missing_nh.mean(0)
    centred_nh = x_nh - mean_h
    square_hh = centred_nh.T @ centred_nh
    ridge = _RIDGE * square_hh.diagonal().mean()
    square_hh.diagonal().add_(ridge)
    weight_hh = torch.linalg.solve(square_hh, centred_nh.T @ (missing_nh - shift_h))
    return mean_h.float(), weight_hh.float(), shift_h.float()
