"""What the weights of a decoder's block read, in the order in which the block computes it. No torch.

Calibration goes through a block stage by stage: weights that read one tensor share its statistics. What makes that
tensor can take a scale a channel that the readers undo (SmoothQuant, arXiv:2211.10438; AWQ, arXiv:2306.00978): a norm,
or a projection where nothing between the two bends a scaled channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hayless.core.dims import ModelDims
from hayless.core.errors import NotSupported
from hayless.core.families import llama
from hayless.core.ledger import Ledger, Row
from hayless.core.roles import BLOCK_LINEARS, Role
from hayless.methods.common.integers import CalibratedConfig, form_of
from hayless.methods.common.packed_rows import PackingConfig, pack_rows
from hayless.methods.common.targets import matching

_LINEAR_ABOVE_ZERO = {"relu"}
"""Activations with f(s·x) = s·f(x) for every s > 0."""


@dataclass(frozen=True, slots=True)
class Stage:
    """`readers` read one tensor: the output of the module `norm` (a path with `{layer}`), or channels of what the
    projection `before` puts out. Where it is neither, `why` says what it is."""

    readers: tuple[Role, ...]
    norm: str = ""
    before: Role | None = None
    why: str = ""


def stages(dims: ModelDims) -> tuple[Stage, ...]:
    """The stages of each block. NotSupported for families whose blocks are not a decoder's alone."""
    if dims.family not in _STAGES:
        raise NotSupported(
            f"Text runs through the blocks of {', '.join(sorted(_STAGES))} models to calibrate them, and not through"
            f" those of {dims.family} models.",
            hint="Use a method that looks at the weights alone: uniform, kmeans.",
        )
    return _STAGES[dims.family](dims)


def predict(ledger: Ledger, config: CalibratedConfig) -> Ledger:
    """The ledger after the targets are packed as integers by calibration, exact in bytes. NotSupported as in `stages`,
    and for targets outside blocks."""
    stages(ledger.dims)
    check_inside(matching(ledger, config.targets, config.method), config)
    return pack_rows(ledger, config, form_of)


def check_inside(rows: Iterable[Row], config: PackingConfig) -> None:
    """NotSupported where one of the rows is no matrix of a block."""
    for row in rows:
        if row.role not in BLOCK_LINEARS:
            raise NotSupported(
                f"{config.method} packs the matrices inside blocks, and {row.module} is none of them.",
                hint=f"Leave {row.role.value!r} out of the targets; uniform packs tables and heads.",
            )


def _llama(dims: ModelDims) -> tuple[Stage, ...]:
    return (*_attention(dims), Stage((Role.GATE, Role.UP), norm=_second(dims)), Stage((Role.DOWN,), before=Role.UP))


def _mixtral(dims: ModelDims) -> tuple[Stage, ...]:
    experts = Stage((Role.ROUTER, Role.GATE_UP), norm=_second(dims))
    return (*_attention(dims), experts, Stage((Role.DOWN,), before=Role.GATE_UP))


def _attention(dims: ModelDims) -> tuple[Stage, ...]:
    return Stage((Role.Q, Role.K, Role.V), norm=f"{llama.LAYER}.input_layernorm"), Stage((Role.O,), before=Role.V)


def _second(dims: ModelDims) -> str:
    name = "pre_feedforward_layernorm" if dims.norms_per_block == 4 else "post_attention_layernorm"
    return f"{llama.LAYER}.{name}"


def _gpt2(dims: ModelDims) -> tuple[Stage, ...]:
    layer = "transformer.h.{layer}"
    return (
        Stage((Role.QKV,), norm=f"{layer}.ln_1"),
        Stage((Role.O,), before=Role.QKV),
        Stage((Role.UP,), norm=f"{layer}.ln_2"),
        _down(dims),
    )


def _opt(dims: ModelDims) -> tuple[Stage, ...]:
    layer = "model.decoder.layers.{layer}"
    heads, output = (Role.Q, Role.K, Role.V), Stage((Role.O,), before=Role.V)
    if not dims.norm_first:
        why = "the tensor it reads is also added to the block's output"
        return Stage(heads, why=why), output, Stage((Role.UP,), why=why), _down(dims)
    return (
        Stage(heads, norm=f"{layer}.self_attn_layer_norm"),
        output,
        Stage((Role.UP,), norm=f"{layer}.final_layer_norm"),
        _down(dims),
    )


def _gpt_neox(dims: ModelDims) -> tuple[Stage, ...]:
    layer = "gpt_neox.layers.{layer}"
    return (
        Stage((Role.QKV,), norm=f"{layer}.input_layernorm"),
        Stage((Role.O,), before=Role.QKV),
        Stage((Role.UP,), norm=f"{layer}.post_attention_layernorm"),
        _down(dims),
    )


def _down(dims: ModelDims) -> Stage:
    """What reads an activation that is not multiplied by anything."""
    if dims.activation in _LINEAR_ABOVE_ZERO:
        return Stage((Role.DOWN,), before=Role.UP)
    return Stage((Role.DOWN,), why=f"{dims.activation} stands between it and the projection before")


_STAGES: dict[str, Callable[[ModelDims], tuple[Stage, ...]]] = {
    "llama": _llama,
    "mixtral": _mixtral,
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt_neox": _gpt_neox,
}
