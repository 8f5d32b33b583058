"""Puts the fused operations of `hayless.kernels.fused_ops` where a model of Llama's kin has its own, for a while.

Modules are changed one by one, and no module of transformers: norms and gated layers get another forward pass, and
attention its own one with another rotation in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import unwrap
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.kernels.fused_ops import rms_norm, rotary, swiglu
from hayless.methods.memory.fused_kernels import FAMILIES, FusedKernelsConfig, serves
from hayless.model.anatomy import dims_of_model
from hayless.train.blocks import Forward, wrapped

_ROTATION = "apply_rotary_pos_emb"
"""What transformers' attention calls."""
_SILU = ("SiLU", "SiLUActivation")


class FusedKernels:
    """Fills the memory slot."""

    @staticmethod
    @contextmanager
    def install(model: PreTrainedModel, config: FusedKernelsConfig) -> Iterator[None]:
        """Compute by fused operations, in evaluation too. NotSupported outside of Llama's kin."""
        dims = dims_of_model(model)
        if not serves(dims):
            raise NotSupported(
                "fused_kernels are RMSNorm, rotary positions and SwiGLU,"
                f" which {dims.family} models do not have together.",
                hint=f"They serve the families {' and '.join(FAMILIES)}; compile: true fuses in all.",
            )
        with ExitStack() as stack:
            for fits, wrap in ((_is_norm, _norm), (_rotates, _attention), (_is_gated, _gated)):
                stack.enter_context(wrapped([module for module in model.modules() if fits(module)], wrap))
            yield


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm")


def _norm(module: Any, forward: Forward) -> Forward:
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    gemma = type(module).__name__.startswith("Gemma")
    return lambda x: rms_norm(x, module.weight, eps, gemma=gemma)


def _rotates(module: nn.Module) -> bool:
    return _ROTATION in _code_of(type(module).forward).__code__.co_names


def _attention(module: nn.Module, forward: Forward) -> Forward:
    """The module's own forward pass, in which the rotation is another function."""
    own = _code_of(type(module).forward)
    turned = FunctionType(
        own.__code__, {**own.__globals__, _ROTATION: _rotated}, own.__name__, own.__defaults__, own.__closure__
    )
    turned.__kwdefaults__ = own.__kwdefaults__
    return turned.__get__(module)


def _rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return rotary(q, cos, sin), rotary(k, cos, sin)


def _is_gated(module: Any) -> bool:
    parts = all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
    return parts and isinstance(module.gate_proj, nn.Module) and type(module.act_fn).__name__ in _SILU


def _gated(module: Any, forward: Forward) -> Forward:
    return lambda x: module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))


def _code_of(function: Callable[..., Any]) -> Any:
    """The function behind decorators."""
    return unwrap(function)
