"""Palettes: packing a tensor by k-means, and looking it up again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hayless.core.ledger import Row
from hayless.kernels.packed import formats
from hayless.kernels.packed.bits import pack, unpack, unpack_at
from hayless.methods.common.kernel_packing import KernelPacking
from hayless.methods.common.packing import Packer
from hayless.methods.quantize.kmeans.clustering import palettize
from hayless.methods.quantize.kmeans.config import KMeansConfig
from hayless.methods.quantize.kmeans.form import PaletteFormat, form_of
from hayless.model.packing import Pieces


class Palette(KernelPacking[PaletteFormat]):
    """Indices and codebooks: a weight is a value looked up."""

    def unpack(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """The tensor, in the codebooks' values."""
        form, codebook = self.form, pieces["codebook"].to(dtype)
        shape = (form.matrices, form.rows, form.columns)
        index = unpack(pieces["codes"], form.bits, form.elements).view(shape).int()
        if len(codebook) > 1:
            index += self._group(codebook.device) << form.bits
        return codebook.view(-1).index_select(0, index.view(-1)).view(shape)

    def unpack_rows(self, index: Tensor, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """Rows of a table, without looking up the others."""
        form, columns = self.form, torch.arange(self.form.columns, device=index.device)
        found = unpack_at(pieces["codes"], form.bits, index[..., None].long() * form.columns + columns)
        found += (index[..., None] // form.group_size).int() << form.bits
        return pieces["codebook"].to(dtype).view(-1)[found]

    def held(self, pieces: Pieces) -> formats.Palette:
        """The indices and codebooks, which kernels look up."""
        form = self.form
        shape = (form.rows, form.columns)
        return formats.Palette(pieces["codes"], pieces["codebook"].detach(), shape, form.bits, form.group_size)

    def _group(self, device: torch.device) -> Tensor:
        """The number of each weight's codebook, (matrices, rows, 1), int32."""
        form = self.form
        row = torch.arange(form.rows, dtype=torch.int32, device=device) // form.group_size
        first = torch.arange(form.matrices, dtype=torch.int32, device=device) * (form.codebooks // form.matrices)
        return (first[:, None] + row)[..., None]


def palette_of(row: Row, config: KMeansConfig) -> Palette:
    """The packing of one row."""
    return Palette(form_of(row, config))


def pack_palette(weight: Tensor, packing: Palette, config: KMeansConfig) -> Pieces:
    """Cluster a tensor (matrices, rows, columns) and pack its indices."""
    codebook, codes = clustered(weight, packing.form, config)
    return {"codes": pack(codes, packing.form.bits), "codebook": codebook}


def clustered(weight: Tensor, form: PaletteFormat, config: KMeansConfig) -> tuple[Tensor, Tensor]:
    """Codebooks (codebooks, 2^bits) and indices (uint8, in the shape of `weight`: matrices, rows, columns)."""
    books: list[Tensor] = []
    parts: list[Tensor] = []
    for part in _even_parts(weight, form.group_size):
        # All full groups are clustered at once; a shorter last one on its own.
        count, group = part.shape[0] * part.shape[1], part.shape[2] * part.shape[3]
        book, codes = palettize(
            part.reshape(count, group), 2**form.bits, iterations=config.iterations, keep_zeros=config.keep_zeros
        )
        books.append(book.view(part.shape[0], part.shape[1], -1))
        parts.append(codes.view(part.shape[0], -1, part.shape[3]))
    return torch.cat(books, dim=1).flatten(0, 1), torch.cat(parts, dim=1)


def _even_parts(matrices: Tensor, group_size: int) -> Sequence[Tensor]:
    """(matrices, rows, columns) → the full groups, and the rest if any, as (matrices, groups, rows, columns)."""
    whole = matrices.shape[1] // group_size * group_size
    parts = [matrices[:, :whole].unflatten(1, (-1, group_size))]
    if whole < matrices.shape[1]:
        parts.append(matrices[:, None, whole:])
    return [part for part in parts if part.shape[1]]


KMEANS = Packer(palette_of, pack_palette)
"""Fills the transform slot."""
