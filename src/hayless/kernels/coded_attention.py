"""Attention over what lies in codes, in CUDA C++ (coded_attention.cu): parts of the results of `quantized_attention`.

In Triton a code becomes a number at some thirteen instructions. Here codes are operands of tensor cores as they are, at
two to three for all that is done with one.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from hayless.kernels.attention import Scratch
from hayless.kernels.compiled import Argument, compiled, launch, why_not
from hayless.kernels.linear import Norm
from hayless.kernels.quantized_cache import Held

_SOURCES = (Path(__file__).with_name("coded_attention.cu"),)
_TOKENS, _WARPS = 32, 4
_HEADS, _COLUMNS = 8, 16
"""Queries of a key head whose results fit into shared memory, and times groups of channels into registers."""


def unsupported(q: Tensor, held: Held) -> str:
    """Why the kernel cannot read this cache for such queries (rows, heads·dim), in words; empty where it can."""
    if not q.is_cuda or torch.version.cuda is None or torch.cuda.get_device_capability(q.device) < (8, 0):
        return "it needs an NVIDIA GPU of compute capability 8.0 or newer"
    if q.dtype is not torch.bfloat16 or held.k_latest.dtype is not torch.bfloat16:
        return "it multiplies in bf16"
    heads, dim = q.shape[1] // (held.k_codes.shape[1] * held.k_latest.shape[-1]), held.k_latest.shape[-1]
    if dim not in (64, 128) or dim * held.bits < 256:
        return f"it does not read {held.bits} bits of heads of {dim} channels"
    if held.group % _TOKENS or heads > _HEADS or heads * dim // held.channels > _COLUMNS:
        return f"it does not read groups of {held.group} tokens and {held.channels} channels for {heads} heads"
    return why_not(q.device.index)


def coded_attention(
    q: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    held: Held,
    scratch: Scratch,
    *,
    shared: int,
    q_norm: Norm | None = None,
) -> None:
    """Write all parts but the last of every row's and head's result to `scratch`: those of the tokens in front of the
    latest R that both lie in codes and are whole times `shared`. Arguments as of `quantized_attention`; parts without
    a token have a maximum of minus infinity and sums of 0."""
    rows, kv_heads, slots, _ = held.k_codes.shape
    dim = held.k_latest.shape[-1]
    splits = scratch.splits - 1
    defined = {
        "BITS": held.bits,
        "BF16": 1,
        "DIM": dim,
        "HEADS": q.shape[1] // (kv_heads * dim),
        "GROUP": held.group,
        "CHANNELS": held.channels,
        "RESIDUAL": held.residual,
        "SHARED": shared,
        "NORM": int(q_norm is not None),
        "WARPS": _WARPS,
        "SPLITS": splits,
        "PARTS": scratch.splits,
    }
    kernel = compiled(_SOURCES, "coded_attention", defined, q.device.index)
    keys = held.k_codes, held.k_step, held.k_least
    values = held.v_codes, held.v_step, held.v_least
    gain = q if q_norm is None else q_norm.gain
    tensors = (q, gain, cos, sin, lengths, *keys, *values, scratch.parts, scratch.maxima, scratch.sums)
    args: list[Argument] = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    args += [ctypes.c_int(number) for number in (q.stride(0), kv_heads, slots)]
    args += [ctypes.c_float(dim**-0.5), ctypes.c_float(0.0 if q_norm is None else q_norm.eps)]
    launch(kernel, (rows, kv_heads, splits), (32 * _WARPS, 1, 1), args)
