"""GPTQ: columns rounded one by one, each error made up for by the columns that come after it.

Frantar, Ashkboos, Hoefler and Alistarh, arXiv:2210.17323, section 3.3, algorithm 1: with H the Hessian of ‖W·x − Ŵ·x‖²
and U the upper Cholesky factor of H⁻¹ (UᵀU = H⁻¹), column j is rounded, its error divided by U_jj, and that times
U_j,j+1… taken from the columns after it; beyond a block of 128 columns at once. Row j of U is what row j of the inverse
would be, once columns before j are gone, up to a factor that cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hayless.core.errors import WorkError
from hayless.methods.common.integer_packing import Codes, Loss, codes_of, fit, in_groups, values_of
from hayless.methods.common.integers import IntegerFormat

_BLOCK = 128
"""Columns after which the others are updated; groups are no wider and divide it."""


def solve(
    weight: Tensor,
    gram: Tensor,
    form: IntegerFormat,
    dtype: torch.dtype,
    *,
    act_order: bool = False,
    loss: Loss | None = None,
    damp: float = 0.01,
) -> Codes:
    """Codes of a float matrix (rows, columns) whose inputs have Σ x·xᵀ = `gram`; scales are in `dtype`'s numbers.

    A group's scale is fitted when its first column's turn comes, to what its columns then are; with `act_order` (the
    columns with the largest inputs first) and for whole rows, before anything is rounded. So groups are neighbouring
    columns in any order. WorkError where `gram` gives no Hessian that can be inverted.
    """
    columns = weight.shape[1]
    order = gram.diagonal().argsort(descending=True) if act_order else torch.arange(columns, device=weight.device)
    upper = _factor(gram[order][:, order], damp)
    left = weight[:, order].clone()
    at_once = act_order or not isinstance(form.group_size, int)
    scale, zero = fit(in_groups(weight, form), form, dtype, loss)
    codes = torch.empty_like(weight)
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        block, factor = left[:, first:last], upper[first:last, first:last]
        errors = torch.empty_like(block)
        for place, column in enumerate(order[first:last].tolist()):
            group = column // form.width
            if not at_once and column % form.width == 0:
                scale[:, group], zero[:, group] = fit(block[:, place : place + form.width], form, dtype, loss)
            wanted = block[:, place]
            code = codes_of(wanted[:, None], scale[:, group], zero[:, group], form)
            error = (wanted - values_of(code, scale[:, group], zero[:, group])[:, 0]) / factor[place, place]
            block[:, place:] -= error[:, None] * factor[place, place:]
            codes[:, column], errors[:, place] = code[:, 0], error
        left[:, last:] -= errors @ upper[first:last, last:]
    return Codes(codes, scale, zero)


def _factor(gram: Tensor, damp: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped Hessian."""
    hessian = 2 * gram
    diagonal = hessian.diagonal()
    # A column that never had an input has no say, and nothing to make up for.
    diagonal[diagonal == 0] = 1
    diagonal += damp * diagonal.mean()
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError:
        raise WorkError(
            f"The Hessian of a weight with {len(gram):,} inputs cannot be inverted: its inputs are too much alike.",
            hint="Give more text, or a larger gptq.damp.",
        ) from None
