"""Bottlenecks as the papers write them (Houlsby et al. 2019, arXiv:1902.00751, figure 2; He et al. 2022,
arXiv:2110.04366, table 1)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def bottleneck(
    x: Tensor, down: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor], f: Callable[[Tensor], Tensor], scaling: float
) -> Tensor:
    """s · (W_up f(W_down x + b_down) + b_up): x (…, d), down ((m, d), (m,)), up ((d, m), (d,)) → (…, d).

    It is added to what a sublayer gives; x is that (serial) or what the sublayer is given (parallel).
    """
    return scaling * (f(x @ down[0].T + down[1]) @ up[0].T + up[1])
