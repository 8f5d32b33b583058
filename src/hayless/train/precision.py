"""Which dtype weights, gradients and arithmetic have.

`master` is mixed precision as ZeRO counts it (Rajbhandari et al., 2020, arXiv:1910.02054, section 3.1): a parameter has
2 bytes of weight, 2 of gradient, and 12 in fp32 for its master and Adam's two moments. `fp16` is Micikevicius et al.
(2018, arXiv:1710.03740): fp32 weights, fp16 arithmetic, a loss scale that grows and shrinks.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from hayless.core.errors import RequestError
from hayless.core.registry import method_of, record_of
from hayless.model.packing import PackedModule
from hayless.train.settings import Precision
from hayless.train.slots import Kind, Trainable

_WEIGHTS: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "autocast": torch.float32,
    "master": torch.bfloat16,
    "bf16": torch.bfloat16,
    "fp16": torch.float32,
}
_ARITHMETIC: dict[Precision, torch.dtype] = {"autocast": torch.bfloat16, "fp16": torch.float16}


def trainables(model: nn.Module) -> list[Trainable]:
    """Every trained parameter once (shared ones under their first name). RequestError where there is none."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    noted = record_of(getattr(getattr(model, "config", None), "hayless", None))
    found = [
        Trainable(
            name,
            _kind(name, parameter, tables),
            parameter,
            math.prod(method_of(config).rate(config, name) for config in noted),
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    if not found:
        raise RequestError(
            "No parameter of the model is trainable.", hint="Packed weights do not train: apply lora before training."
        )
    return found


def cast_weights(model: nn.Module, precision: Precision) -> None:
    """Give the weights the dtype of `precision`, in place and keeping shared weights shared.

    Trained parameters get exactly that dtype. A frozen one is never made larger (a 16-bit base stays 16-bit under
    fp32 adapters); buffers and packed codes stay as they are, and are unpacked to the smaller dtype.
    """
    wanted = _WEIGHTS[precision]
    for module in model.modules():
        if isinstance(module, PackedModule) and module.unpacked_dtype.itemsize > wanted.itemsize:
            module.unpacked_dtype = wanted
    for parameter in model.parameters():
        smaller = parameter.dtype.itemsize > wanted.itemsize
        if parameter.is_floating_point() and (parameter.requires_grad or smaller) and parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context a forward pass runs in: autocast to 16 bits, or nothing. RequestError where a device cannot do it."""
    dtype = _ARITHMETIC.get(precision)
    if dtype is None:
        return nullcontext()
    try:
        return torch.autocast(device.type, dtype=dtype)
    except RuntimeError as error:
        raise RequestError(
            f"precision = {precision!r} is not possible on {device.type}: {error}.", hint="Use fp32, master or bf16."
        ) from error


def _kind(name: str, parameter: nn.Parameter, tables: set[int]) -> Kind:
    if id(parameter) in tables:
        return Kind.EMBEDDING
    # A stack of experts holds its biases as (experts, width).
    is_bias = name.rpartition(".")[2].endswith("bias")
    return Kind.VECTOR if parameter.ndim < 2 or is_bias else Kind.MATRIX
