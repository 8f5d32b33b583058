"""Weights as integers: finding scales, rounding to codes, packing them, and giving the weights back.

Ranges and rounding are those of compressed-tensors, so that its codes are these where weights are in float32:
symmetric scales are the largest magnitude over (2^b − 1)/2, and the whole range of codes is used, −2^(b−1) included;
others are (max − min)/(2^b − 1), where the range always includes 0; halves are rounded to the even code. Everything is
computed in float32, whatever the weights are in (compressed-tensors divides in their own dtype).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from hayless.core.ledger import Row
from hayless.kernels.packed.bits import pack_rows, unpack_rows
from hayless.kernels.packed.formats import Integers
from hayless.methods.common import integer_files
from hayless.methods.common.integers import IntegerConfig, IntegerFormat, form_of, middle
from hayless.methods.common.kernel_packing import KernelPacking
from hayless.model.packing import Pieces

Loss = Callable[[Tensor], Tensor]
"""What differences (…, n) of the weights of groups cost, (…)."""

_SHARES = tuple(1 - step / 50 for step in range(1, 40))
"""Shares of the whole range that are tried beside it."""


class IntegerPacking(KernelPacking[IntegerFormat]):
    """(code − zero) · scale."""

    def unpack(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """The tensor; each weight is one product, rounded once."""
        form = self.form
        return self._values(pieces, dtype).view(form.matrices, form.rows, form.columns)

    def unpack_rows(self, index: Tensor, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """Rows of a table, without unpacking the others."""
        rows = index.reshape(-1)
        chosen = {
            name: piece if name != "codes" and self.form.group_size == "tensor" else piece[rows]
            for name, piece in pieces.items()
        }
        return self._values(chosen, dtype).view(*index.shape, self.form.columns)

    def held(self, pieces: Pieces) -> Integers | None:
        """Codes and scales; None where a row's last group or byte is not full, and for 3 bits: no kernel reads them."""
        form, scale, zero = self.form, pieces["scale"].detach(), pieces.get("zero")
        if form.bits == 3 or form.columns * form.bits % 8 or form.columns % max(1, form.width):
            return None
        if form.group_size == "tensor":
            scale = scale.expand(form.rows, 1).contiguous()
            zero = None if zero is None else zero.expand(form.rows, 1).contiguous()
        return Integers(pieces["codes"], scale, form.bits, zero, form.twos_complement)

    def to_disk(self, pieces: Pieces, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of the form's `disk_layout`."""
        return integer_files.to_disk(pieces, self.form)

    def from_disk(self, tensors: Mapping[str, Tensor], name: str) -> Pieces:
        """The pieces that such tensors are. Raises what `integer_files.from_disk` raises."""
        return integer_files.from_disk(tensors, self.form, name)

    def _values(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        form = self.form
        codes = unpack_rows(pieces["codes"], form.bits, form.columns)
        if form.twos_complement:
            codes = codes ^ middle(form.bits)
        zero = middle(form.bits) if form.symmetric else pieces["zero"].to(dtype)[..., None]
        # Codes and their differences are whole numbers up to 255: exact in every dtype of weights.
        grouped = in_groups(codes, form).to(dtype) - zero
        return out_of_groups(grouped * pieces["scale"].to(dtype)[..., None], form, len(codes))


def packing_of(row: Row, config: IntegerConfig) -> IntegerPacking:
    """The packing of one row."""
    return IntegerPacking(form_of(row, config))


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes (rows, columns) of matrices, their scales and zeros (rows, groups): whole, or exact, numbers in float32."""

    codes: Tensor
    scale: Tensor
    zero: Tensor


def rounded(weight: Tensor, form: IntegerFormat, loss: Loss | None = None) -> Pieces:
    """A tensor (matrices, rows, columns) in a form: each weight as the nearest code; scales in the tensor's dtype."""
    return packed(nearest(weight.float().reshape(-1, form.columns), form, weight.dtype, loss), form, weight.dtype)


def nearest(matrix: Tensor, form: IntegerFormat, dtype: torch.dtype, loss: Loss | None = None) -> Codes:
    """Each weight of a float32 matrix (rows, columns) as the nearest code; scales are those of `fit`."""
    values = in_groups(matrix, form)
    scale, zero = fit(values, form, dtype, loss)
    return Codes(out_of_groups(codes_of(values, scale, zero, form), form, len(matrix)), scale, zero)


def packed(found: Codes, form: IntegerFormat, dtype: torch.dtype) -> Pieces:
    """The pieces of a form for a weight of a dtype."""
    held = found.codes.to(torch.uint8)
    if form.twos_complement:
        held = held ^ middle(form.bits)
    pieces = {"codes": pack_rows(held, form.bits), "scale": found.scale.to(dtype)}
    return pieces if form.symmetric else {**pieces, "zero": found.zero.to(torch.uint8)}


def fit(values: Tensor, form: IntegerFormat, dtype: torch.dtype, loss: Loss | None = None) -> tuple[Tensor, Tensor]:
    """Scales (already rounded to `dtype`) and zeros of groups (…, n) of float32 values, both float32 (…).

    They cover the whole range of a group; with a `loss`, that share of it which loses least.
    """
    low, high = values.amin(dim=-1).clamp(max=0), values.amax(dim=-1).clamp(min=0)
    scale, zero = _range(low, high, form, dtype)
    if loss is None:
        return scale, zero

    def lost(scale: Tensor, zero: Tensor) -> Tensor:
        return loss(values_of(codes_of(values, scale, zero, form), scale, zero) - values)

    least = lost(scale, zero)
    for share in _SHARES:
        other = _range(low * share, high * share, form, dtype)
        found = lost(*other)
        better = found < least
        least = torch.where(better, found, least)
        scale, zero = torch.where(better, other[0], scale), torch.where(better, other[1], zero)
    return scale, zero


def squared_error(difference: Tensor) -> Tensor:
    """What is lost where each weight counts the same."""
    return difference.square().sum(dim=-1)


def codes_of(values: Tensor, scale: Tensor, zero: Tensor, form: IntegerFormat) -> Tensor:
    """The nearest codes of groups (…, n), as float32."""
    half = middle(form.bits)
    # Added as a signed number, as compressed-tensors adds it, so that float32 rounds the sum to the same halves.
    signed = (values / scale[..., None] + (zero[..., None] - half)).round_()
    return signed.clamp_(-half, half - 1).add_(half)


def values_of(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """What codes (…, n) stand for, in float32."""
    return (codes - zero[..., None]) * scale[..., None]


def in_groups(matrix: Tensor, form: IntegerFormat) -> Tensor:
    """(rows, columns) → (rows, groups, width), a short last group filled up with zeros; (1, 1, all) for one scale."""
    if form.group_size == "tensor":
        return matrix.reshape(1, 1, -1)
    groups = form.scales[1]
    return pad(matrix, (0, groups * form.width - form.columns)).view(-1, groups, form.width)


def out_of_groups(grouped: Tensor, form: IntegerFormat, rows: int) -> Tensor:
    """Undoes `in_groups` of a matrix of so many rows."""
    return grouped.reshape(rows, -1)[:, : form.columns]


def _range(low: Tensor, high: Tensor, form: IntegerFormat, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    steps = 2**form.bits - 1
    span = 2 * torch.maximum(-low, high) if form.symmetric else high - low
    scale = (span / steps).to(dtype).float()
    scale = torch.where(scale == 0, torch.finfo(dtype).eps, scale)
    if form.symmetric:
        return scale, torch.full_like(scale, middle(form.bits))
    return scale, (-low / scale).clamp_(0, steps).round_()
