"""Modules whose weights are packed: other tensors stand in a parameter's place and are turned into it when it is used.

A module keeps its place, its bias and everything else; only its class and its weight change. Its parameter becomes a
property that unpacks the whole tensor, so any code that reads it still works. Linear, Conv1D and Embedding have a
forward of their own: a matrix is unpacked again in the backward pass instead of being kept between, and an embedding
unpacks only the rows it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from hayless.core.ledger import Layout
from hayless.core.packing import Format, held_name

Pieces = Mapping[str, Tensor]
"""The tensors of one packed weight, by the names of its format's pieces."""

F_co = TypeVar("F_co", bound=Format, covariant=True)


class Packing(Generic[F_co]):
    """The arithmetic of weights held in a format. A method gives `unpack`, and what it can do better than by that; with
    a format that has an `ecosystem`, `to_disk` and `from_disk`.
    """

    def __init__(self, form: F_co) -> None:
        self.form = form

    def unpack(self, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """The numbers, (matrices, rows, columns)."""
        raise NotImplementedError

    def unpack_rows(self, index: Tensor, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """Rows (…) of a table → (…, columns)."""
        return self.unpack(pieces, dtype)[0][index]

    def multiply(self, x: Tensor, bias: Tensor | None, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """x (…, columns) · Wᵀ + bias → (…, rows), for a weight that is one matrix."""
        return F.linear(x, self.unpack(pieces, dtype)[0], bias)

    def codes(self, x: Tensor, pieces: Pieces, dtype: torch.dtype) -> object | None:
        """The weight as kernels have it (`hayless.kernels.packed.formats`) where one multiplies such an x by it; None
        where none does."""
        return None

    def multiply_back(self, gradient: Tensor, pieces: Pieces, dtype: torch.dtype) -> Tensor:
        """The gradient of x: gradient (…, rows) · W → (…, columns)."""
        # Under autocast the forward product was made in the gradient's dtype.
        return gradient.matmul(self.unpack(pieces, dtype)[0].to(gradient.dtype))

    def to_disk(self, pieces: Pieces, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of the format's `disk`, for a weight whose own dtype is `dtype`."""
        raise NotImplementedError

    def from_disk(self, tensors: Mapping[str, Tensor], name: str) -> Pieces:
        """The pieces that such tensors are. NotSupported or FileDamaged, with the weight's `name`, for any others."""
        raise NotImplementedError


class PackedModule(nn.Module):
    """A module with packed parameters: `packings` by parameter, and the `numbers` by which compiled code names these;
    `unpacked_dtype` is the dtype they are unpacked to."""

    packings: dict[str, Packing[Format]]
    numbers: dict[str, int]
    unpacked_dtype: torch.dtype

    def pieces(self, parameter: str) -> dict[str, Tensor]:
        """The tensors that stand in the place of `parameter`."""
        found = self.packings[parameter].form.pieces(_name(self.unpacked_dtype))
        return {piece.name: getattr(self, held_name(parameter, piece.name)) for piece in found}

    def fill(self, parameter: str, pieces: Pieces) -> None:
        """Put other values in the place of a packed parameter's. AssertionError for pieces of another format."""
        for piece in self.packings[parameter].form.pieces(_name(self.unpacked_dtype)):
            name, tensor = held_name(parameter, piece.name), pieces[piece.name]
            assert tuple(tensor.shape) == piece.shape, (name, tensor.shape)
            if piece.cast:
                self.get_parameter(name).data = tensor.to(self.unpacked_dtype)
            else:
                assert _name(tensor.dtype) == piece.dtype, (name, tensor.dtype)
                self._buffers[name] = tensor

    def unpacked(self, parameter: str) -> Tensor:
        """A packed parameter as its module laid it out."""
        packing = self.packings[parameter]
        found = packing.unpack(self.pieces(parameter), self.unpacked_dtype)
        return found[0].T if packing.form.layout is Layout.CONV1D else found.view(packing.form.shape)

    def multiplied(self, x: Tensor) -> Tensor:
        """x (…, in) → (…, out), for a module whose `weight` is packed."""
        pieces = self.pieces("weight")
        bias: Any = self.bias
        if torch.compiler.is_compiling() and not torch.is_autocast_enabled(x.device.type):
            # Under autocast code that is compiled looks into the product, since casts are its own there.
            number, tensors = self.numbers["weight"], list(pieces.values())
            opaque: Tensor = torch.ops.hayless.packed_product(x, bias, tensors, number, self.unpacked_dtype)
            return opaque
        out: Tensor = _Multiply.apply(
            x, bias, self.packings["weight"], self.unpacked_dtype, tuple(pieces), *pieces.values()
        )
        return out

    def multiplied_back(self, gradient: Tensor) -> Tensor:
        """The gradient of x: gradient (…, out) → (…, in), for a module whose `weight` is packed."""
        return self.packings["weight"].multiply_back(gradient, self.pieces("weight"), self.unpacked_dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves and casts: what is not in the weights' dtype keeps its own, and the dtype to unpack to is cast."""
        kept = dict(self._buffers)
        device = next(tensor.device for parameter in self.packings for tensor in self.pieces(parameter).values())
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        self.unpacked_dtype = fn(torch.empty(0, dtype=self.unpacked_dtype, device=device)).dtype
        return self


class PackedLinear(PackedModule, nn.Linear):
    """nn.Linear over a packed weight."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return self.multiplied(input)


class PackedConv1D(PackedModule, Conv1D):
    """transformers' Conv1D over a packed weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return self.multiplied(x)


class PackedEmbedding(PackedModule, nn.Embedding):
    """nn.Embedding over a packed table; subclasses that scale or shift around it keep their own forward."""

    def forward(self, input: Tensor) -> Tensor:
        """Token ids (…) → (…, width)."""
        return self.packings["weight"].unpack_rows(input, self.pieces("weight"), self.unpacked_dtype)


class _Recomputed(PackedModule):
    """Runs a module (a stack of experts, a router) again in the backward pass: what it unpacked is not kept."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        run = super().forward
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return checkpoint(run, *inputs, use_reentrant=False, **options)
        return run(*inputs, **options)


_OWN_FORWARD: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: PackedLinear,
    Conv1D: PackedConv1D,
    nn.Embedding: PackedEmbedding,
}


def install(module: Any, parameter: str, packing: Packing[Format], pieces: Pieces) -> None:
    """Put a packed weight in the place of `module`'s parameter, in place. `pieces` are those of the packing's format
    for the parameter's dtype."""
    first = not isinstance(module, PackedModule)
    original: Any = type(module) if first else type(module).original
    dtype = getattr(module, parameter).dtype
    delattr(module, parameter)
    for piece in packing.form.pieces(_name(dtype)):
        tensor, name = pieces[piece.name], held_name(parameter, piece.name)
        assert tuple(tensor.shape) == piece.shape and _name(tensor.dtype) == piece.dtype, (piece, tensor.shape)
        if piece.cast:
            # A parameter, so that it is cast together with the frozen weights of other modules, and sharded with them.
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(name, tensor)
    module.packings = {**({} if first else module.packings), parameter: packing}
    module.numbers = {name: _number(each) for name, each in module.packings.items()}
    module.unpacked_dtype = dtype
    module.__class__ = _packed_class(original, tuple(module.packings))


def uninstall(module: Any, parameter: str) -> Tensor:
    """The inverse of `install`: the module gets back an ordinary parameter, frozen, of what its pieces stand for in
    `unpacked_dtype`; returned is a copy of that."""
    shown, original = module.unpacked(parameter).contiguous(), type(module).original
    for piece in module.packings[parameter].form.pieces(_name(module.unpacked_dtype)):
        delattr(module, held_name(parameter, piece.name))
    module.packings = {name: packing for name, packing in module.packings.items() if name != parameter}
    module.numbers = {name: module.numbers[name] for name in module.packings}
    if module.packings:
        module.__class__ = _packed_class(original, tuple(module.packings))
    else:
        del module.packings, module.numbers, module.unpacked_dtype
        module.__class__ = original
    module.register_parameter(parameter, nn.Parameter(shown, requires_grad=False))
    return shown.clone()


def empty_pieces(form: Format, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Pieces of a format, filled with zeros."""
    return {
        piece.name: torch.zeros(piece.shape, dtype=getattr(torch, piece.dtype), device=device)
        for piece in form.pieces(_name(dtype))
    }


class _Multiply(torch.autograd.Function):
    """x·Wᵀ + b for a packed W that receives no gradient; W is unpacked in both passes and never kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        packing: Packing[Format],
        dtype: torch.dtype,
        names: tuple[str, ...],
        *pieces: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*pieces)
        ctx.packing, ctx.dtype, ctx.names, ctx.x_dtype = packing, dtype, names, x.dtype
        return packing.multiply(x, bias, dict(zip(names, pieces, strict=True)), dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_x = for_bias = None
        if ctx.needs_input_grad[0]:
            pieces = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
            for_x = ctx.packing.multiply_back(gradient, pieces, ctx.dtype).to(ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            for_bias = gradient.reshape(-1, gradient.shape[-1]).sum(dim=0)
        return for_x, for_bias, *(None for _ in range(3 + len(ctx.names)))


_PACKINGS: list[Packing[Any]] = []
"""Packings that differ: compiled code names them by their number, which those of equal blocks share."""


def _number(packing: Packing[Any]) -> int:
    for number, other in enumerate(_PACKINGS):
        if type(other) is type(packing) and vars(other) == vars(packing):
            return number
    _PACKINGS.append(copy(packing))
    return len(_PACKINGS) - 1


def _product(x: Tensor, bias: Tensor | None, pieces: list[Tensor], number: int, dtype: torch.dtype) -> Tensor:
    packing = _PACKINGS[number]
    return packing.multiply(x, bias, _named(packing, pieces, dtype), dtype)


def _product_back(
    gradient: Tensor, pieces: list[Tensor], number: int, dtype: torch.dtype, x_dtype: torch.dtype
) -> Tensor:
    packing = _PACKINGS[number]
    return packing.multiply_back(gradient, _named(packing, pieces, dtype), dtype).to(x_dtype)


def _named(packing: Packing[Any], pieces: list[Tensor], dtype: torch.dtype) -> Pieces:
    names = (piece.name for piece in packing.form.pieces(_name(dtype)))
    return dict(zip(names, pieces, strict=True))


def _note(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, pieces, ctx.number, ctx.dtype = inputs
    ctx.save_for_backward(*pieces)
    ctx.x_dtype = x.dtype


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    for_x = for_bias = None
    if ctx.needs_input_grad[0]:
        tensors = list(ctx.saved_tensors)
        for_x = torch.ops.hayless.packed_product_back(gradient, tensors, ctx.number, ctx.dtype, ctx.x_dtype)
    if ctx.needs_input_grad[1]:
        for_bias = gradient.reshape(-1, gradient.shape[-1]).sum(dim=0)
    return for_x, for_bias, [None] * len(ctx.saved_tensors), None, None


_OPAQUE = torch.library.custom_op(
    "hayless::packed_product",
    _product,
    mutates_args=(),
    schema="(Tensor x, Tensor? bias, Tensor[] pieces, int number, ScalarType dtype) -> Tensor",
)
"""The product of compiled code, which must not look into it: it would find the same unpacked matrix in both passes, and
keep it between them."""
_OPAQUE.register_fake(
    lambda x, bias, pieces, number, dtype: x.new_empty(*x.shape[:-1], _PACKINGS[number].form.rows),
)
_OPAQUE.register_autograd(_gradients, setup_context=_note)
torch.library.custom_op(
    "hayless::packed_product_back",
    _product_back,
    mutates_args=(),
    schema="(Tensor gradient, Tensor[] pieces, int number, ScalarType dtype, ScalarType x_dtype) -> Tensor",
).register_fake(
    lambda gradient, pieces, number, dtype, x_dtype: gradient.new_empty(
        *gradient.shape[:-1], _PACKINGS[number].form.columns, dtype=x_dtype
    )
)


@cache
def _packed_class(original: type[nn.Module], parameters: tuple[str, ...]) -> type[nn.Module]:
    """A subclass of a module's class with a property for each packed parameter."""
    bases: tuple[type, ...]
    if original in _OWN_FORWARD:
        bases = (_OWN_FORWARD[original],)
    elif issubclass(original, nn.Embedding):
        bases = (original, PackedEmbedding)
    else:
        bases = (_Recomputed, original)
    members: dict[str, Any] = {parameter: _shown(parameter) for parameter in parameters}
    return type(f"Packed{original.__name__}", bases, {**members, "original": original})


def _shown(parameter: str) -> property:
    def unpacked(module: PackedModule) -> Tensor:
        return module.unpacked(parameter)

    return property(unpacked)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
