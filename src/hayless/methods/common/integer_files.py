"""Packed integers as other libraries' tensors and back; codes stay what they are, bit for bit.

compressed-tensors packs a row's codes along the input into 32-bit words, the lowest bits first, and zeros along the
output. GPTQ has the same words transposed, zeros along the output and a group for each input (`g_idx`); its first
version stores each zero less one, and so has no zero of 0. AutoAWQ's GEMM has eight outputs of an input in a
word, in the order 0, 2, 4, 6, 1, 3, 5, 7.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from hayless.core.errors import FileDamaged, NotSupported
from hayless.kernels.packed.bits import pack_rows, unpack_rows
from hayless.methods.common.integers import IntegerFormat, middle
from hayless.model.packing import Pieces

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output of each four bits of a word, from the lowest."""


def to_disk(pieces: Pieces, form: IntegerFormat) -> dict[str, Tensor]:
    """The tensors of the form's `disk_layout` for the pieces of a weight."""
    scale = pieces["scale"]
    zero = pieces["zero"] if not form.symmetric else torch.full_like(scale, middle(form.bits), dtype=torch.uint8)
    if form.disk_layout == "compressed-tensors":
        shape = torch.tensor([form.rows, form.columns])
        found = {"weight_packed": _words(pieces["codes"]), "weight_scale": scale, "weight_shape": shape}
        by_row = _words(pack_rows(zero.T.contiguous(), form.bits)).T.contiguous()
        return found if form.symmetric else {**found, "weight_zero_point": by_row}
    scales = scale.T.contiguous()
    if form.disk_layout == "awq":
        codes = unpack_rows(pieces["codes"], form.bits, form.columns)
        return {"qweight": _awq_words(codes.T), "qzeros": _awq_words(zero.T), "scales": scales}
    if form.disk_layout == "gptq_v1":
        if not zero.all():
            raise NotSupported(
                "A zero of 0 cannot be stored in the first version of GPTQ's files.", hint="Say disk_layout=gptq."
            )
        zero = zero - 1
    qzeros = _words(pack_rows(zero.T.contiguous(), form.bits))
    return {
        "qweight": _words(pieces["codes"]).T.contiguous(),
        "qzeros": qzeros,
        "scales": scales,
        "g_idx": _groups(form),
    }


def from_disk(tensors: Mapping[str, Tensor], form: IntegerFormat, name: str) -> Pieces:
    """The pieces of a weight from the tensors of the form's `disk_layout`.

    FileDamaged for tensors of other shapes and dtypes, and for zeros that are none of a symmetric weight; NotSupported
    for inputs in groups that are not neighbours (`desc_act` without static groups).
    """
    scale_dtype = next(tensors[key] for key in ("weight_scale", "scales") if key in tensors).dtype
    for piece in form.disk(str(scale_dtype).removeprefix("torch.")):
        found = tensors[piece.name]
        if tuple(found.shape) != piece.shape or str(found.dtype) != f"torch.{piece.dtype}":
            raise FileDamaged(
                f"{name}: {piece.name} is {tuple(found.shape)} of {found.dtype}, not {piece.shape} of {piece.dtype}.",
                hint="config.json and weights must belong to one model.",
            )
    if form.disk_layout == "compressed-tensors":
        if tensors["weight_shape"].tolist() != [form.rows, form.columns]:
            raise FileDamaged(f"{name}: weight_shape is {tensors['weight_shape'].tolist()}, not {form.shape}.")
        codes, scale, zero = _bytes(tensors["weight_packed"]), tensors["weight_scale"], None
        if not form.symmetric:
            zero = unpack_rows(_bytes(tensors["weight_zero_point"].T), form.bits, form.rows).T
    elif form.disk_layout == "awq":
        codes = pack_rows(_awq_codes(tensors["qweight"]).T.contiguous(), form.bits)
        scale, zero = tensors["scales"].T, _awq_codes(tensors["qzeros"]).T
    else:
        if not torch.equal(tensors["g_idx"], _groups(form)):
            raise NotSupported(
                f"{name}: its inputs are in groups that are not neighbours (desc_act without static groups)."
            )
        codes, scale = _bytes(tensors["qweight"].T), tensors["scales"].T
        zero = unpack_rows(_bytes(tensors["qzeros"]), form.bits, form.rows).T
        if form.disk_layout == "gptq_v1":
            if (zero == 2**form.bits - 1).any():
                raise NotSupported(f"{name} has a zero of {2**form.bits}, which is beyond its {form.bits} bits.")
            zero = zero + 1
    pieces = {"codes": codes[:, : form.row_bytes].contiguous(), "scale": scale.contiguous()}
    if not form.symmetric:
        assert zero is not None
        return {**pieces, "zero": zero.contiguous()}
    if zero is not None and not (zero == middle(form.bits)).all():
        raise FileDamaged(f"{name}: its config says that it is symmetric, and its zeros say that it is not.")
    return pieces


def _groups(form: IntegerFormat) -> Tensor:
    """The group of each column."""
    return (torch.arange(form.columns) // form.width).int()


def _words(rows: Tensor) -> Tensor:
    """Bytes (rows, n) as 32-bit words (rows, ⌈n/4⌉)."""
    return pad(rows, (0, -rows.shape[1] % 4)).contiguous().view(torch.int32)


def _bytes(words: Tensor) -> Tensor:
    return words.contiguous().view(torch.uint8)


def _awq_words(codes: Tensor) -> Tensor:
    """Codes (n, outputs) → words (n, outputs/8)."""
    return _words(pack_rows(codes.unflatten(1, (-1, 8))[..., list(_AWQ_ORDER)].flatten(1).contiguous(), 4))


def _awq_codes(words: Tensor) -> Tensor:
    """Undoes `_awq_words`."""
    codes = unpack_rows(_bytes(words), 4, words.shape[1] * 8).unflatten(1, (-1, 8))
    found = torch.empty_like(codes)
    found[..., list(_AWQ_ORDER)] = codes
    return found.flatten(1)
