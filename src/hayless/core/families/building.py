"""Small makers of rows that the family files share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hayless.core.dims import ModelDims
from hayless.core.ledger import Layout, Row, Stored
from hayless.core.roles import Role


@dataclass(frozen=True, slots=True)
class Paths:
    """Module paths of the parts of a model; `blocks` and `encoder_blocks` are ModuleLists."""

    embedding: str
    blocks: str
    head: str
    final_norm: str | None = None
    position: str | None = None
    project_in: str | None = None
    project_out: str | None = None
    encoder_blocks: str | None = None
    rotary: str | None = None


def config_dtype(config: Mapping[str, Any]) -> str:
    """The dtype a config asks for, by its bare name; float32 where it is silent."""
    return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")


def linear(
    dims: ModelDims,
    role: Role,
    module: str,
    shape: tuple[int, int],
    *,
    layers: tuple[int, ...] = (),
    bias: bool = False,
    layout: Layout = Layout.LINEAR,
    disk_module: str | None = None,
    tied_to: str | None = None,
) -> Iterator[Row]:
    """The weight (out, in) of a linear module, and its bias if it has one. `shape` is always given as (out, in)."""
    out_features, in_features = shape
    held = (in_features, out_features) if layout is Layout.CONV1D else shape
    disk = (Stored(f"{disk_module}.weight", held, dims.dtype),) if disk_module else ()
    yield Row(role, module, "weight", held, dims.dtype, layout, layers, disk=disk, tied_to=tied_to)
    if bias:
        disk = (Stored(f"{disk_module}.bias", (out_features,), dims.dtype),) if disk_module else ()
        yield Row(role, module, "bias", (out_features,), dims.dtype, Layout.VECTOR, layers, disk=disk)


def head(
    dims: ModelDims, embedding: str, width: int, *, module: str = "lm_head", disk_module: str | None = None
) -> Iterator[Row]:
    """The last matrix: over the vocabulary, tied to `embedding` where the dims say so, or the score of a classifier."""
    if dims.labels:
        yield from linear(dims, Role.HEAD, "score", (dims.labels, width))
    else:
        tied = embedding if dims.tied_embeddings else None
        yield from linear(dims, Role.HEAD, module, (dims.vocab_size, width), disk_module=disk_module, tied_to=tied)


def norm(
    dims: ModelDims, module: str, width: int, *, layers: tuple[int, ...] = (), bias: bool = False
) -> Iterator[Row]:
    """Gain (and shift) of a normalisation."""
    for parameter in ("weight", "bias") if bias else ("weight",):
        yield Row(Role.NORM, module, parameter, (width,), dims.dtype, Layout.VECTOR, layers)


def table(dims: ModelDims, role: Role, module: str, shape: tuple[int, int], *, layers: tuple[int, ...] = ()) -> Row:
    """An embedding table (entries, width)."""
    return Row(role, module, "weight", shape, dims.dtype, Layout.TABLE, layers)


def experts(
    dims: ModelDims,
    role: Role,
    module: str,
    parameter: str,
    shape: tuple[int, int],
    layers: tuple[int, ...],
    disk: tuple[str, ...],
) -> Row:
    """A stack of expert matrices held as (experts, out, in); on disk one tensor an expert under each name of `disk`."""
    out_features, in_features = shape
    part = (out_features // len(disk), in_features)
    stored = tuple(Stored(name, part, dims.dtype, experts=dims.num_experts) for name in disk)
    whole = (dims.num_experts, out_features, in_features)
    return Row(role, module, parameter, whole, dims.dtype, Layout.EXPERTS, layers, disk=stored)
