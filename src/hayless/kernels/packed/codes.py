"""What the kernels in CUDA C++ are told of packed weights (codes.cu)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from hayless.kernels.packed.formats import Integers, Product, Table

_SCALES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}


class Matrix(ctypes.Structure):
    """The kernels' `Matrix`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scale", "zero", "table")),
        *((name, ctypes.c_void_p) for name in ("second_table", "second_scale", "offset", "bias", "out")),
        *((name, ctypes.c_int) for name in ("n", "stride", "first")),
    )


def matrices(products: Sequence[Product], height: int, *, gated: bool) -> tuple[ctypes.Array[Matrix], int]:
    """The kernels' `Matrices`, and the blocks that have `height` rows each; `gated` ones share their blocks."""
    found, blocks = [], 0
    for one in products:
        rows, bias = one.weight.shape[0], one.bias
        pointers = [tensor.data_ptr() for tensor in tensors(one.weight)]
        pointers += [0 if bias is None else bias.data_ptr(), one.out.data_ptr()]
        found.append(Matrix(*pointers, rows, one.out.stride(-2), blocks))
        blocks = -(-rows // height) + (0 if gated else blocks)
    return (Matrix * len(found))(*found), blocks


def tensors(weight: Integers | Table) -> list[Tensor]:
    """Codes, scales, zero points, table, and the tables, scales and offset of double quantization, as kernels take
    them; what there is not is the codes, and is not read."""
    codes = weight.codes
    if isinstance(weight, Integers):
        return [codes, weight.scale, codes if weight.zero is None else weight.zero, *[codes] * 4]
    nested = weight.nested
    second = [codes] * 3 if nested is None else [nested.table, nested.scale, nested.offset]
    return [codes, weight.absmax, codes, weight.table, *second]


def form(x: Tensor, weight: Integers | Table) -> dict[str, int]:
    """What sources are compiled for, whatever the kernel."""
    return {
        "KIND": int(isinstance(weight, Table)),
        "BITS": bits(weight),
        "BF16": int(x.dtype is torch.bfloat16),
        "GROUP": group(weight) if weight.groups > 1 else 0,
        "SCALE": _SCALES[scale(weight).dtype],
        "ZERO": int(isinstance(weight, Integers) and weight.zero is not None),
        "TWOS": int(isinstance(weight, Integers) and weight.twos_complement),
        "DIVISOR": weight.divisor if isinstance(weight, Integers) else 1,
    }


def bits(weight: Integers | Table) -> int:
    """Of a code."""
    return weight.bits if isinstance(weight, Integers) else 4


def scale(weight: Integers | Table) -> Tensor:
    """The scales of groups, or their codes."""
    return weight.scale if isinstance(weight, Integers) else weight.absmax


def group(weight: Integers | Table) -> int:
    """Columns that share a scale."""
    return weight.group_size if isinstance(weight, Integers) else weight.block_size
