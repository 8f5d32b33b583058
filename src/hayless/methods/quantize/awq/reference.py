"""AWQ as the paper writes it: outputs compared on the inputs themselves.

Lin et al., arXiv:2306.00978, section 3.2, equations 4 and 5: s = x̄^α with x̄ the mean magnitude of each input channel,
α* = argmin ‖Q(W·diag(s))·(diag(s)⁻¹·X) − W·X‖ over a grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def search(x: Tensor, weight: Tensor, quantized: Callable[[Tensor], Tensor], grid: int) -> tuple[Tensor, list[float]]:
    """The scales (columns,) for inputs x (tokens, columns) of a weight (rows, columns), and the error of each α.

    As in the authors' code scales are kept above 1e-4 and divided by √(largest · smallest), which changes no weight of
    a group's own scale by more than a factor that the scale takes up.
    """
    magnitude = x.abs().mean(dim=0)
    errors, found = [], []
    for step in range(grid):
        scales = (magnitude ** (step / grid)).clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        output = (x / scales) @ quantized(weight * scales).T
        errors.append(float((output - x @ weight.T).square().sum()))
        found.append(scales)
    return found[int(torch.tensor(errors).argmin())], errors
