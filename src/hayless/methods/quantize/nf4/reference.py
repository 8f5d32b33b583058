"""4-bit blocks as the paper writes them: slow and obvious.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314), equations 1 to 3 and 5: X_q = nearest(X / absmax), by block, and back.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantize(flat: Tensor, values: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """float32 (n,) → the code of each (n,), uint8, and the absmax of each block."""
    codes, scales = [], []
    for block in flat.split(block_size):
        scale = block.abs().max().clamp(min=1e-38)
        # By the inverse, but for a last block that is shorter: that is how it is done where the files come from.
        scaled = block * (1 / scale) if len(block) == block_size else block / scale
        rising = values.sort().values
        nearest = rising[(scaled.clamp(-1, 1)[:, None] - rising).abs().argmin(dim=1)]
        codes.append((values == nearest[:, None]).byte().argmax(dim=1))
        scales.append(scale)
    return torch.cat(codes).byte(), torch.stack(scales)


def doubled(absmax: Tensor, values: Tensor) -> Tensor:
    """Scales after double quantization: 8-bit codes of what is left beside their mean, in blocks of 256."""
    mean = absmax.mean()
    codes, second = quantize(absmax - mean, values, 256)
    return dequantize(codes, second, values, 256) + mean


def dequantize(codes: Tensor, absmax: Tensor, values: Tensor, block_size: int) -> Tensor:
    """codes (n,) and a scale a block → float32 (n,)."""
    blocks = codes.split(block_size)
    return torch.cat([values[block.long()] * scale for block, scale in zip(blocks, absmax, strict=True)])
