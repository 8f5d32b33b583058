"""KIVI in a few slow lines: what a row's keys and values are once they have been held.

Liu et al., 2024, arXiv:2402.02750, section 3. A group x of numbers becomes codes of b bits and back:

    least = min x,  step = (max x − min x) / (2^b − 1),  q = round((x − least) / step),  x' = q · step + least

Keys have a group for every `group_size` tokens of a channel, values for every `group_size` channels of a token. Shapes:
h heads, n tokens, d channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hayless.methods.decoding.kv.config import KVConfig


def held(k_hnd: Tensor, v_hnd: Tensor, config: KVConfig) -> tuple[Tensor, Tensor]:
    """Keys and values of n tokens as later tokens find them."""
    k_hnd, v_hnd = k_hnd.clone(), v_hnd.clone()
    heads, n, d = k_hnd.shape
    group, channels = config.group_size, min(config.group_size, d)
    for head in range(heads):
        for start in range(0, n // config.residual * config.residual, group):
            for channel in range(d):
                k_hnd[head, start : start + group, channel] = there_and_back(
                    k_hnd[head, start : start + group, channel], config.bits
                )
        for token in range(max(0, n - config.residual)):
            for first in range(0, d, channels):
                v_hnd[head, token, first : first + channels] = there_and_back(
                    v_hnd[head, token, first : first + channels], config.bits
                )
    return k_hnd, v_hnd


def there_and_back(x: Tensor, bits: int) -> Tensor:
    """A group's numbers, quantized and made numbers again; its least number and its step are in the dtype of x."""
    least = x.min()
    step = ((x.max().float() - least.float()) / (2**bits - 1)).to(x.dtype)
    if step == 0:
        return least.expand_as(x)
    q = torch.round((x.float() - least.float()) / step.float()).clamp(0, 2**bits - 1)
    return (q * step.float() + least.float()).to(x.dtype)
