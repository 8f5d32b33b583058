"""GPTQ as the paper derives it: Optimal Brain Quantization of all rows in one order of columns, without any factor.

arXiv:2210.17323, section 3.1, equations 2 and 3: round column j; its error over [H⁻¹]_jj, times row j of H⁻¹, is taken
from every column; then j is removed from the inverse by one step of Gaussian elimination.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def obq(weight: Tensor, hessian: Tensor, rounded: Callable[[int, Tensor], Tensor], order: list[int]) -> Tensor:
    """The rounded weight: `rounded(j, weight)` gives column j of what the weight (rows, columns) has become."""
    weight, inverse = weight.clone(), torch.linalg.inv(hessian)
    result = torch.empty_like(weight)
    for column in order:
        result[:, column] = rounded(column, weight)
        error = (weight[:, column] - result[:, column]) / inverse[column, column]
        weight -= error[:, None] * inverse[column]
        inverse = inverse - inverse[:, column, None] * inverse[column] / inverse[column, column]
    return result
