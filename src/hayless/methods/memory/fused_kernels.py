"""Norms, rotary positions and gates in one kernel each, where blocks are not compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hayless.core.cost import TrainShape
from hayless.core.dims import ModelDims
from hayless.core.method import Method, MethodConfig, Paper, Part, unchanged

FAMILIES = ("llama", "mixtral")
"""Those whose norms, rotary positions and gates the kernels compute."""


class FusedKernelsConfig(MethodConfig):
    """No options: RMSNorm, rotary positions and, in dense models whose activation is silu, SwiGLU. Llama's kin only.

    They keep less for the backward pass and launch less; torch.compile fuses by itself, and needs none of this.
    """

    method: Literal["fused_kernels"] = "fused_kernels"


def predict_training(shape: TrainShape, config: FusedKernelsConfig) -> TrainShape:
    """Training with fewer, larger kernels."""
    return replace(shape, fused_kernels=True)


def serves(dims: ModelDims) -> bool:
    """Whether a model has what the kernels compute."""
    return dims.family in FAMILIES


def ladder(dims: ModelDims) -> list[FusedKernelsConfig]:
    """All of it, where there is something to compute."""
    return [FusedKernelsConfig()] if serves(dims) else []


METHOD = Method(
    name="fused_kernels",
    part=Part.MEMORY,
    summary="RMSNorm, rotary positions and SwiGLU in one kernel each (Llama's kin)",
    config=FusedKernelsConfig,
    implementation="hayless.methods.memory.fusing:FusedKernels",
    predict=unchanged,
    predict_training=predict_training,
    ladder=ladder,
    free=True,
    paper=Paper("Liger Kernel: Efficient Triton Kernels for LLM Training", "Hsu et al.", 2024, "2410.10989"),
)
