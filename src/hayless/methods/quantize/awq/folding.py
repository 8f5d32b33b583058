"""Scaling the channels of a tensor between the module that makes it and those that read it; the model stays the same.

A norm's gain and shift, or the rows of a projection, are divided by s; the columns of everything that reads the tensor
are multiplied by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.families import ledger_of
from hayless.core.ledger import Layout, Row
from hayless.core.packing import Format
from hayless.core.roles import Role
from hayless.methods.common.packing import matrices_of
from hayless.methods.common.stages import Stage
from hayless.methods.common.weights import Weight
from hayless.model.anatomy import dims_of_model
from hayless.model.anatomy.fused import split_qkv

_GAIN_PLUS_ONE = ("gemma", "gemma2", "gemma3_text")
"""Model types whose norms multiply by 1 + weight."""


@dataclass(frozen=True, slots=True)
class Source:
    """What makes the tensor that a stage reads: the norm `module`, or the rows `rows` of each matrix of `weight`.

    `channels` (columns,) has the channel of each column of the readers: query heads that share a value head share its
    channels.
    """

    module: nn.Module
    channels: Tensor
    readers: tuple[Weight, ...]
    weight: Weight | None = None
    rows: Tensor | None = None
    gain_plus_one: bool = False

    @property
    def apart(self) -> bool:
        """Whether each expert has scales of its own."""
        return self.weight is not None and self.weight.row.layout is Layout.EXPERTS

    def fold(self, scales: Tensor) -> None:
        """Divide the channels by scales (matrices or 1, channels), and multiply the readers' columns, in place."""
        for reader in self.readers:
            matrices = matrices_of(reader.parameter.data, _form(reader.row))
            matrices.copy_(matrices.float() * scales[:, None, self.channels])
        module: Any = self.module
        if self.weight is not None:
            assert self.rows is not None
            matrices = matrices_of(self.weight.parameter.data, _form(self.weight.row))
            matrices[:, self.rows] = (matrices[:, self.rows].float() / scales[..., None]).to(matrices.dtype)
            bias = getattr(module, "bias", None)
            if bias is not None:
                bias.data[self.rows] = (bias.data[self.rows].float() / scales[0]).to(bias.dtype)
            return
        more = 1.0 if self.gain_plus_one else 0.0
        module.weight.data.copy_((module.weight.float() + more) / scales[0] - more)
        if getattr(module, "bias", None) is not None:
            module.bias.data.copy_(module.bias.float() / scales[0])


def source_of(model: PreTrainedModel, stage: Stage, layer: int) -> Source | str:
    """The source of a stage of a block, or why nothing can be folded into what makes its tensor."""
    if stage.why:
        return stage.why
    rows = {row.role: row for row in ledger_of(dims_of_model(model)).rows if row.is_matrix and layer in row.layers}
    readers = tuple(_weight(model, rows[role], layer) for role in stage.readers if role in rows)
    before = _weight(model, rows[stage.before], layer) if stage.before is not None else None
    for weight in (*readers, *([before] if before else ())):
        if weight.module._parameters.get(weight.row.parameter) is None:
            return f"{weight.path} is packed already"
        if weight.row.layout is not Layout.EXPERTS and list(weight.module.children()):
            return f"{weight.path} has a branch that reads what it reads"
    columns = readers[0].row.in_features
    device = readers[0].parameter.device
    if before is None:
        norm = model.get_submodule(stage.norm.replace("{layer}", str(layer)))
        plus_one = model.config.model_type in _GAIN_PLUS_ONE
        return Source(norm, torch.arange(columns, device=device), readers, gain_plus_one=plus_one)
    taken = _rows(model, before.row).to(device)
    return Source(before.module, _channels(model, stage, columns).to(device), readers, before, taken)


def _weight(model: PreTrainedModel, row: Row, layer: int) -> Weight:
    path = row.module.replace("{layer}", str(layer))
    return Weight(row, path, model.get_submodule(path))


def _rows(model: PreTrainedModel, row: Row) -> Tensor:
    """The rows of a projection that give the tensor, channel by channel."""
    dims = dims_of_model(model)
    if row.role is Role.QKV:
        return split_qkv(dims, torch.arange(3 * dims.q_width))[2]
    if row.role is Role.GATE_UP:
        return torch.arange(row.out_features // 2, row.out_features)
    return torch.arange(row.out_features)


def _channels(model: PreTrainedModel, stage: Stage, columns: int) -> Tensor:
    dims = dims_of_model(model)
    if stage.before is not Role.V:
        return torch.arange(columns)
    shared = dims.num_heads // dims.num_kv_heads
    return torch.arange(dims.kv_width).view(dims.num_kv_heads, -1).repeat_interleave(shared, dim=0).flatten()


def _form(row: Row) -> Format:
    return Format(shape=row.shape, layout=row.layout)
