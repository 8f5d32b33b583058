"""Palettizing a loaded model, and rebuilding the structure of a palettized one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.ledger import Layout
from hayless.methods.common.targets import matching
from hayless.methods.common.weights import Weight, check_finite, plain_ledger, weights_of
from hayless.methods.quantize.kmeans.clustering import palettize
from hayless.methods.quantize.kmeans.config import KMeansConfig
from hayless.methods.quantize.kmeans.layer import Palette, install
from hayless.methods.quantize.kmeans.packing import pack
from hayless.methods.quantize.kmeans.predict import codebooks, output_channels, stream_bytes, tied
from hayless.model.transform import Change, Context


class KMeans:
    """Fills the transform slot."""

    @staticmethod
    def apply(model: PreTrainedModel, config: KMeansConfig, context: Context) -> Change:
        """Replace the targets by palettes.

        Figures: the mean squared and the largest error over all targets, their bytes before and after, and
        `mean_squared_error/PATH` of each tensor. RequestError for weights that are not finite, NotSupported for tied
        or packed ones; nothing is changed then.
        """
        weights = _targets(model, config)
        check_finite(weights)
        errors = {}
        squared = largest = 0.0
        elements = before = after = 0
        for number, weight in enumerate(weights):
            context.progress("kmeans", number, len(weights))
            original = weight.parameter.detach()
            palette = _palette(original.shape, weight.row.layout, config)
            codebook, codes = clustered(original, palette, config)
            install(weight.module, weight.row.parameter, palette, pack(codes, config.bits), codebook)
            error = (getattr(weight.module, weight.row.parameter) - original).float()
            total = float(torch.linalg.vector_norm(error, dtype=torch.float64)) ** 2
            errors[f"mean_squared_error/{weight.name}"] = total / max(1, error.numel())
            squared += total
            largest = max(largest, float(error.abs().max())) if error.numel() else largest
            elements += original.numel()
            before += original.nbytes
            after += stream_bytes(original.numel(), config.bits) + codebook.nbytes
        context.progress("kmeans", len(weights), len(weights))
        figures = {
            "mean_squared_error": squared / max(1, elements),
            "largest_error": largest,
            "bytes_before": float(before),
            "bytes_after": float(after),
        }
        return Change(config.method, tuple(weight.path for weight in weights), figures=figures | errors)

    @staticmethod
    def restore(model: PreTrainedModel, config: KMeansConfig) -> None:
        """Give the targets empty palettes of the right shapes."""
        for weight in _targets(model, config):
            original = weight.parameter
            palette = _palette(original.shape, weight.row.layout, config)
            groups = codebooks(palette.shape, palette.layout, config)
            codes = original.new_zeros(stream_bytes(original.numel(), config.bits), dtype=torch.uint8)
            codebook = original.detach().new_zeros(groups, 2**config.bits)
            install(weight.module, weight.row.parameter, palette, codes, codebook)


def clustered(weight: Tensor, palette: Palette, config: KMeansConfig) -> tuple[Tensor, Tensor]:
    """Codebooks (groups, 2^bits) and indices (uint8, in the shape of `weight`) of one tensor."""
    channels = output_channels(palette.shape, palette.layout)
    channels_first = weight.T if palette.layout is Layout.CONV1D else weight
    matrices = channels_first.reshape(-1, channels, channels_first.shape[-1])
    books: list[Tensor] = []
    parts: list[Tensor] = []
    for part in _even_parts(matrices, palette.group_size):
        # All full groups are clustered at once; a shorter last one on its own.
        count, group = part.shape[0] * part.shape[1], part.shape[2] * part.shape[3]
        book, codes = palettize(
            part.reshape(count, group), 2**config.bits, iterations=config.iterations, keep_zeros=config.keep_zeros
        )
        books.append(book.view(part.shape[0], part.shape[1], -1))
        parts.append(codes.view(part.shape[0], -1, part.shape[3]))
    codes = torch.cat(parts, dim=1).view(channels_first.shape)
    codebook = torch.cat(books, dim=1).flatten(0, 1)
    return codebook, codes.T if palette.layout is Layout.CONV1D else codes


def _even_parts(matrices: Tensor, group_size: int) -> Sequence[Tensor]:
    """(matrices, channels, width) → the full groups, and the rest if any, as (matrices, groups, channels, width)."""
    whole = matrices.shape[1] // group_size * group_size
    parts = [matrices[:, :whole].unflatten(1, (-1, group_size))]
    if whole < matrices.shape[1]:
        parts.append(matrices[:, None, whole:])
    return [part for part in parts if part.shape[1]]


def _palette(shape: torch.Size, layout: Layout, config: KMeansConfig) -> Palette:
    channels = output_channels(tuple(shape), layout)
    return Palette(tuple(shape), layout, config.bits, min(config.group_size or channels, channels))


def _targets(model: PreTrainedModel, config: KMeansConfig) -> list[Weight]:
    """The weights to pack. NotSupported where another module shares one of them."""
    weights = weights_of(model, matching(plain_ledger(model), config.targets, config.method))
    holders: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            holders.setdefault(id(parameter), []).append(path)
    for weight in weights:
        others = [path for path in holders[id(weight.parameter)] if path != weight.path]
        if others:
            raise tied(config.method, weight.path, others[0])
    return weights
