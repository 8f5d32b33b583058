"""What palettization makes of a ledger: each matrix becomes a stream of packed indices and its codebooks."""

from __future__ import annotations

import math
from dataclasses import replace

from hayless.core.errors import NotSupported
from hayless.core.ledger import Layout, Ledger, Row, Stored
from hayless.methods.common.targets import matching
from hayless.methods.quantize.kmeans.config import KMeansConfig


def predict(ledger: Ledger, config: KMeansConfig) -> Ledger:
    """The ledger after `kmeans`, exact in bytes and in nonzero weights (where `keep_zeros` holds)."""
    chosen = matching(ledger, config.targets, config.method)
    shared = {row.tied_to: row for row in ledger.rows if row.tied_to}
    for row in chosen:
        if row.module in shared:
            raise tied(config.method, row.module, shared[row.module].module)
    return ledger.rewrite(config.method, lambda row: packed(row, config) if row in chosen else row)


def packed(row: Row, config: KMeansConfig) -> Row:
    """The row of one packed matrix. Its elements stay what they were; they no longer receive gradients."""
    codes, codebook = stored_names(row.parameter)
    held = (
        Stored(f"{row.module}.{codes}", (stream_bytes(math.prod(row.shape), config.bits),), "uint8"),
        Stored(f"{row.module}.{codebook}", (codebooks(row.shape, row.layout, config), 2**config.bits), row.dtype),
    )
    nonzero = row.nonzero if config.keep_zeros else None
    return replace(row, held=held, disk=(), trainable=False, nonzero=nonzero, method=config.method)


def stored_names(parameter: str) -> tuple[str, str]:
    """Names of the packed indices and of the codebooks that take the place of `parameter`.

    `gate_up_proj` becomes `gate_up_codes`: transformers splits buffers named `gate_up_proj_*` into experts.
    """
    stem = parameter.removesuffix("_proj")
    return f"{stem}_codes", f"{stem}_codebook"


def stream_bytes(count: int, bits: int) -> int:
    """Bytes of `count` packed indices."""
    return -(-count * bits // 8)


def codebooks(shape: tuple[int, ...], layout: Layout, config: KMeansConfig) -> int:
    """How many codebooks a tensor has: one for `group_size` output channels, and never one for two experts."""
    matrices = shape[0] if layout is Layout.EXPERTS else 1
    channels = output_channels(shape, layout)
    return matrices * -(-channels // (config.group_size or max(1, channels)))


def output_channels(shape: tuple[int, ...], layout: Layout) -> int:
    """Output channels of one matrix: rows, but columns of a Conv1D; entries of a table."""
    return shape[-1] if layout is Layout.CONV1D else shape[-2]


def tied(method: str, module: str, other: str) -> NotSupported:
    """The refusal of a table that another module shares."""
    return NotSupported(
        f"{method} cannot pack {module}: {other} is tied to it, and packed weights cannot be shared.",
        hint="Leave 'embedding' and 'head' out of the targets.",
    )
