"""Palettes: packing a tensor by k-means, and looking it up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.ledger import Row
from hayless.kernels.packed import formats
from hayless.kernels.packed.bits import pack, unpack, unpack_at
from hayless.methods.common.importance import importance
from hayless.methods.common.kernel_packing import KernelPacking
from hayless.methods.common.packing import Each, Packer, matrices_of, packable, watched
from hayless.methods.common.stages import check_inside, stages
from hayless.methods.common.weights import check_finite
from hayless.methods.quantize.kmeans.clustering import palettize
from hayless.methods.quantize.kmeans.config import KMeansConfig
from hayless.methods.quantize.kmeans.form import PaletteFormat, form_of
from hayless.model.anatomy import dims_of_model
from hayless.model.packing import Pieces
from hayless.model.transform import Change, Context


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


def pack_palette(weight: Tensor, packing: Palette, config: KMeansConfig, importance: Tensor | None = None) -> Pieces:
    """Cluster a tensor (matrices, rows, columns), its weights by their importance, and pack its indices."""
    codebook, codes = clustered(weight, packing.form, config, importance)
    return {"codes": pack(codes, packing.form.bits), "codebook": codebook}


def clustered(
    weight: Tensor, form: PaletteFormat, config: KMeansConfig, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codebooks (codebooks, 2^bits) and indices (uint8, in the shape of `weight`: matrices, rows, columns)."""
    books: list[Tensor] = []
    parts: list[Tensor] = []
    importances = [None, None] if importance is None else _even_parts(importance.expand_as(weight), form.group_size)
    for part, counting in zip(_even_parts(weight, form.group_size), importances, strict=False):
        # All full groups are clustered at once; a shorter last one on its own.
        count, group = part.shape[0] * part.shape[1], part.shape[2] * part.shape[3]
        book, codes = palettize(
            part.reshape(count, group),
            2**form.bits,
            iterations=config.iterations,
            keep_zeros=config.keep_zeros,
            importance=None if counting is None else counting.reshape(count, group),
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


class KMeans(Packer[KMeansConfig, Palette]):
    """Fills the transform slot."""

    def apply(self, model: PreTrainedModel, config: KMeansConfig, context: Context) -> Change:
        """Replace the targets by packed ones; the figures are those of `Errors`. Where errors count by importance there
        is one more, `weighted_error`: Σ h·(w − ŵ)² / Σ h·w².

        Raises what `Packer.apply` and `importance` raise; nothing is changed then.
        """
        if config.importance is None:
            return super().apply(model, config, context)
        weights = packable(model, config)
        stages(dims_of_model(model))
        check_inside((weight.row for weight in weights), config)
        check_finite(weights)
        counting = importance(model, weights, context.calibration, config.importance, config.method)
        each = Each(self, config, list(dict.fromkeys(weight.row for weight in weights)))
        lost = whole = 0.0
        skipped = {}
        for weight in watched(weights, config.method, len(weights), context.progress):
            packing = palette_of(weight.row, config)
            before = matrices_of(weight.parameter.detach(), packing.form)
            h = counting.pop(weight.name)
            h = h if config.importance == "inputs" else matrices_of(h, packing.form)
            unseen = int((h.flatten(1).sum(1) == 0).sum())
            if unseen:
                skipped[weight.name] = f"no text reached {unseen} of {len(h)} matrices: their weights count alike"
            pieces = pack_palette(before, packing, config, h)
            each.hold(weight, pieces)
            after = packing.unpack(pieces, before.dtype)
            lost += float((h * (after - before).float().square()).sum())
            whole += float((h * before.float().square()).sum())
        change = each.change()
        figures = {"weighted_error": lost / whole if whole else 0.0, **change.figures}
        return replace(change, skipped=skipped, figures=figures)


KMEANS = KMeans(palette_of, pack_palette)
