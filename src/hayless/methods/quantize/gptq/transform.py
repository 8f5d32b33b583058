"""GPTQ on a loaded model: stage after stage of each block, every stage behind the packed ones."""

from __future__ import annotations

import torch
from torch import Tensor

from hayless.methods.common.calibrated import Block, Calibrated
from hayless.methods.common.calibration import Moments
from hayless.methods.common.integer_packing import Codes, squared_error
from hayless.methods.common.integers import IntegerFormat
from hayless.methods.quantize.gptq.config import GPTQConfig
from hayless.methods.quantize.gptq.solve import solve


def pack_block(block: Block, config: GPTQConfig) -> None:
    """Pack the weights of a block in the order in which it computes them; each sees what those before it give."""
    loss = squared_error if config.clip else None
    for stage in block.stages:
        (moments,) = block.moments([stage])
        for weight in block.readers(stage):
            dtype = weight.parameter.dtype

            def solved(matrix: Tensor, seen: Moments, form: IntegerFormat, dtype: torch.dtype = dtype) -> Codes:
                return solve(matrix, seen.gram, form, dtype, act_order=config.act_order, loss=loss, damp=config.damp)

            block.pack(weight, moments, solved)


GPTQ = Calibrated(pack_block)
"""Fills the transform slot."""
