"""Weights as codes times a scale for each output channel: what the packings of int8 and fp8 share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hayless.core.errors import FileDamaged
from hayless.methods.common.row_scaled import RowScaledFormat
from hayless.model.packing import Packing, Pieces


class RowCodes(Packing[RowScaledFormat]):
    """A weight is its code times the scale of its row, in units of `unit` (what the largest code stands for)."""

    unit: float

    def unpack(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """Codes times scales in float32, rounded to `dtype` once."""
        form = self.form
        found = self._scaled(pieces["codes"], pieces["scale"], dtype)
        return found.view(form.matrices, form.rows, form.columns)

    def unpack_rows(self, index: Tensor, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """Rows of a table, without looking at the others."""
        return self._scaled(pieces["codes"][index], pieces["scale"][index], dtype)

    def checked(self, codes: Tensor, scale: Tensor, name: str) -> Pieces:
        """Codes and scales of a file as pieces. FileDamaged, with the weight's `name`, for others than are needed."""
        wanted = {piece.name: piece for piece in self.form.pieces("")}
        found = {"codes": codes, "scale": scale.float() if scale.is_floating_point() else scale}
        for part, tensor in found.items():
            said = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            needed = (wanted[part].shape, wanted[part].dtype)
            if said != needed:
                raise FileDamaged(
                    f"The {part} of {name} are {said}, and {needed} is needed.", hint="Copy the folder again."
                )
        return found

    def _scaled(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        # Every code is a number of `dtype`; in place, so that no second weight exists.
        return codes.to(dtype).mul_((scale / self.unit)[..., None])


def packed_by_row(weight: Tensor, packing: RowCodes, quantize: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Pieces:
    """A tensor (matrices, rows, columns) as pieces; `quantize` gives codes and scales of one matrix in float32."""
    found = [quantize(matrix.float()) for matrix in weight]
    codes, scale = (torch.stack(tensors) for tensors in zip(*found, strict=True))
    shapes = {piece.name: piece.shape for piece in packing.form.pieces("")}
    return {"codes": codes.view(shapes["codes"]), "scale": scale.view(shapes["scale"])}


def rows_of(x: Tensor) -> Tensor:
    """x (…, columns) as it is to be multiplied, (tokens, columns), contiguous: where autocast is on, in its dtype."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return x.reshape(-1, x.shape[-1]).contiguous()
