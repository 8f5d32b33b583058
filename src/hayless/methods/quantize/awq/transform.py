"""AWQ on a loaded model: scales of a block's stages are searched and folded, its weights clipped and rounded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from hayless.core.roles import Role
from hayless.methods.common.calibrated import Block, Calibrated
from hayless.methods.common.calibration import Moments
from hayless.methods.common.integer_packing import Codes, nearest, packing_of
from hayless.methods.common.integers import IntegerFormat
from hayless.methods.common.packing import matrices_of
from hayless.methods.common.stages import Stage
from hayless.methods.quantize.awq.config import AWQConfig
from hayless.methods.quantize.awq.folding import Source, source_of
from hayless.methods.quantize.awq.search import Reader, output_loss, search

_COMPARED = frozenset({Role.Q, Role.K, Role.QKV})
"""Their products are compared with each other in attention."""


def pack_block(block: Block, config: AWQConfig) -> None:
    """Fold scales into a block, stage by stage, and pack its weights."""
    seen = block.moments(block.stages)
    for place, stage in enumerate(block.stages):
        source = source_of(block.model, stage, block.number)
        if isinstance(source, str):
            block.done.skipped |= {weight.name: f"rounded without scales: {source}" for weight in block.readers(stage)}
        else:
            seen[place] = _folded(block, stage, source, seen[place], config)
    for stage, moments in zip(block.stages, seen, strict=True):
        for weight in block.readers(stage):
            clip = config.clip and (config.clip_attention or weight.row.role not in _COMPARED)
            dtype = weight.parameter.dtype

            def solved(
                matrix: Tensor, reads: Moments, form: IntegerFormat, clip: bool = clip, dtype: torch.dtype = dtype
            ) -> Codes:
                return nearest(matrix, form, dtype, output_loss(reads.gram, form) if clip else None)

            block.pack(weight, moments, solved)


def _folded(block: Block, stage: Stage, source: Source, moments: Sequence[Moments], config: AWQConfig) -> list[Moments]:
    """Search and fold the scales of a stage; what its readers read then."""
    readers: list[list[Reader]] = [[] for _ in moments]
    for weight in block.readers(stage):
        form = packing_of(weight.row, block.config).form
        for place, matrix in enumerate(matrices_of(weight.parameter.detach(), form).float()):
            readers[place].append(Reader(matrix, moments[place].gram, form, weight.parameter.dtype))
    chosen = partial(search, channels=source.channels, grid=config.grid, by_weights=config.scales == "both")
    if source.apart:
        found = [
            chosen(of_one, reads.absolute / max(1, reads.tokens))
            for of_one, reads in zip(readers, moments, strict=True)
        ]
    else:
        together = torch.stack([reads.absolute for reads in moments]).sum(dim=0)
        mean = together / max(1, sum(reads.tokens for reads in moments))
        found = [chosen([one for each in readers for one in each], mean)]
    scales = torch.stack(found)
    source.fold(scales)
    whole = scales[:, source.channels].expand(len(moments), -1)
    return [reads.scaled(1 / one) for reads, one in zip(moments, whole, strict=True)]


AWQ = Calibrated(pack_block)
"""Fills the transform slot."""
