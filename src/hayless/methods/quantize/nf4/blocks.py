"""4-bit blocks: packing a tensor, and looking it up again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.core.errors import FileDamaged, NotSupported
from hayless.core.ledger import Row
from hayless.kernels.packed.formats import Nested, Table
from hayless.methods.common.kernel_packing import KernelPacking
from hayless.methods.common.packing import Packer
from hayless.methods.quantize.nf4.config import NF4Config
from hayless.methods.quantize.nf4.form import NESTED_BLOCK, BlockFormat, form_of
from hayless.methods.quantize.nf4.state import quant_state, read_state
from hayless.methods.quantize.nf4.tables import nearest, pairs_of, scale_values, values_of
from hayless.model.packing import Pieces

_AT_ONCE = 2**22
"""Weights that are packed or looked up at a time: it bounds the memory beside the weight itself. Whole blocks."""
_SMALLEST = 1e-38
"""What a scale is divided by at least, so that a block of zeros has codes."""


class Blocks(KernelPacking[BlockFormat]):
    """Codes and scales: a weight is a value looked up, times its block's scale; in float32, rounded once."""

    def unpack(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """The tensor."""
        form, codes, scales = self.form, pieces["codes"], scales_of(pieces)
        both = pairs_of(form.type, codes.device)
        found = torch.empty(form.elements, dtype=dtype, device=codes.device)
        for first in range(0, form.elements, _AT_ONCE):
            bytes_ = codes[first // 2 : (first + _AT_ONCE) // 2]
            part = both.index_select(0, bytes_.int()).view(-1)[: form.elements - first]
            whole = part.numel() // form.block_size
            scale, last = scales[first // form.block_size :][: whole + 1].tensor_split([whole])
            full, rest = part.tensor_split([whole * form.block_size])
            full.view(-1, form.block_size).mul_(scale[:, None])
            found[first : first + full.numel()] = full
            found[first + full.numel() : first + part.numel()] = rest * last if rest.numel() else rest
        return found.view(form.matrices, form.rows, form.columns)

    def unpack_rows(self, index: Tensor, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """Rows of a table, without looking up the others."""
        form = self.form
        place = index[..., None].long() * form.columns + torch.arange(form.columns, device=index.device)
        pair = pieces["codes"][place >> 1].int()
        codes = torch.where(place % 2 == 0, pair >> 4, pair & 15)
        scales = scales_of(pieces)[place // form.block_size]
        return (values_of(form.type, codes.device)[codes] * scales).to(dtype)

    def held(self, pieces: Pieces) -> Table | None:
        """None for blocks that go on in the next row, which kernels do not read."""
        form = self.form
        if form.columns % form.block_size:
            return None
        nested = Nested(pieces["absmax_table"], pieces["nested_absmax"], pieces["offset"]) if form.double else None
        values = values_of(form.type, pieces["codes"].device)
        return Table(pieces["codes"], pieces["absmax"], values, (form.rows, form.columns), form.block_size, nested)

    def to_disk(self, pieces: Pieces, dtype: torch.dtype) -> dict[str, Tensor]:
        """bitsandbytes' tensors."""
        form, name = self.form, str(dtype).removeprefix("torch.")
        offset = float(pieces["offset"]) if form.double else 0.0
        tensors = {
            "weight": pieces["codes"][:, None],
            "weight.absmax": pieces["absmax"],
            "weight.quant_map": values_of(form.type).clone(),
            form.state_name: torch.frombuffer(bytearray(quant_state(form, name, offset)), dtype=torch.uint8),
        }
        if form.double:
            tensors["weight.nested_absmax"] = pieces["nested_absmax"]
            tensors["weight.nested_quant_map"] = pieces["absmax_table"]
        return tensors

    def from_disk(self, tensors: Mapping[str, Tensor], name: str) -> Pieces:
        """The pieces in bitsandbytes' tensors; codes may be stored under any dtype (`bnb_4bit_quant_storage`)."""
        form = self.form
        state = read_state(bytes(tensors[form.state_name].numpy())) or {}
        said = (state.get("quant_type"), state.get("blocksize"), state.get("shape"), "nested_offset" in state)
        wanted = (form.type, form.block_size, [form.rows, form.columns], form.double)
        if said != wanted or (form.double and state.get("nested_blocksize") != NESTED_BLOCK):
            raise FileDamaged(f"{name} is {state}, and {wanted} was expected.", hint="Copy the folder again.")
        if not torch.equal(tensors["weight.quant_map"], values_of(form.type)):
            raise NotSupported(f"{name} has other values for its codes (quant_map) than {form.type} has.")
        found = {
            "codes": tensors["weight"].reshape(-1).view(torch.uint8),
            "absmax": tensors["weight.absmax"],
        }
        if form.double:
            found |= {
                "absmax_table": tensors["weight.nested_quant_map"],
                "nested_absmax": tensors["weight.nested_absmax"],
                "offset": torch.tensor(state["nested_offset"], dtype=torch.float32),
            }
        for piece in form.pieces("float32"):
            tensor = found[piece.name]
            if tuple(tensor.shape) != piece.shape or tensor.dtype != getattr(torch, piece.dtype):
                raise FileDamaged(
                    f"The {piece.name} of {name} are {tuple(tensor.shape)} of {tensor.dtype}, and {piece.shape} of"
                    f" {piece.dtype} is needed.",
                    hint="Copy the folder again.",
                )
        return found


def scales_of(pieces: Pieces) -> Tensor:
    """The scale of each block, float32 (blocks,)."""
    absmax = pieces["absmax"]
    if absmax.dtype == torch.float32:
        return absmax
    second = pieces["nested_absmax"].repeat_interleave(NESTED_BLOCK)[: len(absmax)]
    return pieces["absmax_table"][absmax.int()] * second + pieces["offset"]


def pack_blocks(weight: Tensor, packing: Blocks, config: NF4Config) -> Pieces:
    """Scale and code a tensor (matrices, rows, columns), some of its blocks at a time."""
    form, flat = packing.form, weight.reshape(-1)
    values = values_of(form.type, weight.device)
    parts = [quantized(part.float(), form.block_size, values) for part in flat.split(_AT_ONCE)]
    codes, absmax = (torch.cat(found) for found in zip(*parts, strict=True))
    zero = int(nearest(torch.zeros(1), values_of(form.type)))
    pairs = F.pad(codes, (0, codes.numel() % 2), value=zero).view(-1, 2)
    packed = {"codes": pairs[:, 0] << 4 | pairs[:, 1]}
    return packed | (nested(absmax) if form.double else {"absmax": absmax})


def quantized(flat: Tensor, block_size: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """float32 (n,) → codes uint8 (n,) and the largest magnitude of each block; the last block may be shorter."""
    whole = flat.numel() // block_size * block_size
    blocks, rest = flat[:whole].view(-1, block_size), flat[whole:]
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1 / absmax.clamp(min=_SMALLEST))[:, None]).view(-1)
    if rest.numel():
        # bitsandbytes divides here, and multiplies by the inverse above: the same to the bit only if done as it does.
        last = rest.abs().amax().clamp(min=_SMALLEST)
        absmax, scaled = torch.cat([absmax, last[None]]), torch.cat([scaled, rest / last])
    return nearest(scaled.clamp_(-1, 1), values), absmax


def nested(absmax: Tensor) -> dict[str, Tensor]:
    """Double quantization of scales (blocks,): their mean is taken off, the rest is kept in 8 bits, 256 to a scale."""
    table, offset = scale_values(absmax.device), absmax.mean()
    codes, second = quantized(absmax - offset, NESTED_BLOCK, table)
    return {"absmax": codes, "absmax_table": table.clone(), "nested_absmax": second, "offset": offset}


def blocks_of(row: Row, config: NF4Config) -> Blocks:
    """The packing of one row."""
    return Blocks(form_of(row, config))


NF4 = Packer(blocks_of, pack_blocks)
"""Fills the transform slot."""
