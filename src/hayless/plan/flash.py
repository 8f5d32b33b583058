"""Attention's traffic with and without FlashAttention (Dao et al., 2022, arXiv:2205.14135, algorithms 0, 1, 3 and 4).

Counted are the elements that the algorithms read from and write to GPU memory, one head at a time; the two numbers a
row that the softmax needs are left out, as they are small (2N against Nd). M counts elements, not bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hayless.core.errors import RequestError
from hayless.core.units import format_bytes
from hayless.plan.table import Table, significant, whole

SOURCE = "FlashAttention (arXiv:2205.14135), figure 2 (left): GPT-2 medium on an A100, forward and backward"
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "standard": {"gflops": 66.6, "hbm_gb": 40.3, "ms": 41.7},
    "flash": {"gflops": 75.2, "hbm_gb": 4.4, "ms": 7.3},
}


@dataclass(frozen=True, slots=True)
class Attention:
    """`heads` heads of `batch` rows, N tokens, d wide; M elements of fast memory; bytes an element."""

    tokens: int = 1024
    head_dim: int = 64
    fast_elements: int = 98_304
    heads: int = 16
    batch: int = 64
    element_bytes: int = 2

    def __post_init__(self) -> None:
        for field in ("tokens", "head_dim", "fast_elements", "heads", "batch", "element_bytes"):
            whole(field, getattr(self, field))
        if self.fast_elements < 4 * self.head_dim:
            raise RequestError(
                f"fast_elements = {self.fast_elements} holds no row of each of Q, K, V and O.",
                hint=f"It must be at least 4·d = {4 * self.head_dim:,}.",
            )

    @property
    def copies(self) -> int:
        """Heads of all rows."""
        return self.heads * self.batch

    @property
    def key_block(self) -> int:
        """B_c = ⌈M/4d⌉: keys and values held at once."""
        return -(-self.fast_elements // (4 * self.head_dim))

    @property
    def query_block(self) -> int:
        """B_r = min(⌈M/4d⌉, d)."""
        return min(self.key_block, self.head_dim)

    @property
    def key_blocks(self) -> int:
        """T_c = ⌈N/B_c⌉: passes over the queries."""
        return -(-self.tokens // self.key_block)

    @property
    def dropped_by_floors(self) -> int:
        """Keys that ⌊N/B_c⌋ blocks would leave out."""
        return self.tokens % self.key_block if self.tokens >= self.key_block else self.tokens


PUBLISHED_SHAPE = Attention()


def standard_elements(shape: Attention) -> tuple[int, int]:
    """Elements standard attention moves forward and backward, a head.

    Forward: Q, K → S; S → P; P, V → O. Backward: P, dO → dV; dO, V → dP; P, dP → dS; dS, K → dQ; dS, Q → dK.
    """
    square, narrow = shape.tokens**2, shape.tokens * shape.head_dim
    forward = (2 * narrow + square) + 2 * square + (square + 2 * narrow)
    backward = (square + 2 * narrow) + (2 * narrow + square) + 3 * square + 2 * (square + 2 * narrow)
    return forward, backward


def flash_elements(shape: Attention) -> tuple[int, int]:
    """Elements FlashAttention moves forward and backward, a head: K and V once, the rest once a block of keys.

    Forward a block: Q and O are read, O is written. Backward a block: Q, O, dO and dQ are read, dQ is written; dK and
    dV are written once.
    """
    narrow = shape.tokens * shape.head_dim
    return narrow * (2 + 3 * shape.key_blocks), narrow * (4 + 5 * shape.key_blocks)


def flops(shape: Attention, *, flash: bool) -> float:
    """FLOPs of the products forward and backward: 2 and 4 of 2N²d each, and one more where S is computed again."""
    return (6 + flash) * 2.0 * shape.tokens**2 * shape.head_dim * shape.copies


def hbm_bytes(shape: Attention, *, flash: bool) -> tuple[int, int]:
    """Bytes moved forward and backward by all heads."""
    forward, backward = flash_elements(shape) if flash else standard_elements(shape)
    each = shape.copies * shape.element_bytes
    return forward * each, backward * each


def square_bytes(shape: Attention) -> int:
    """Of standard attention's bytes those that grow with N²: eleven passes over N×N matrices."""
    return 11 * shape.tokens**2 * shape.copies * shape.element_bytes


def table(shape: Attention) -> Table:
    """Traffic and arithmetic of both algorithms, beside what is printed where the shape is the paper's."""
    published = shape == PUBLISHED_SHAPE
    cells, records = [], []
    for name, flash in (("standard", False), ("flash", True)):
        forward, backward = hbm_bytes(shape, flash=flash)
        work = flops(shape, flash=flash)
        row = [name, format_bytes(forward), format_bytes(backward), format_bytes(forward + backward)]
        row.append(significant(work / 1e9, 4))
        record: dict[str, object] = {"algorithm": name, "forward_bytes": forward, "backward_bytes": backward}
        record |= {"gflops": work / 1e9}
        if published:
            row += [f"{PUBLISHED[name]['hbm_gb']:g} GB", f"{PUBLISHED[name]['gflops']:g}", f"{PUBLISHED[name]['ms']:g}"]
            record |= {f"printed_{field}": value for field, value in PUBLISHED[name].items()}
        cells.append(tuple(row))
        records.append(record)
    printed = ("printed", "printed GFLOPs", "printed ms") if published else ()
    size = f"N {shape.tokens:,}, d {shape.head_dim}, {shape.heads} heads, batch {shape.batch}"
    return Table(
        f"FlashAttention: GPU memory traffic of attention, {size}, {shape.element_bytes} bytes an element",
        ("", "forward", "backward", "both", "GFLOPs", *printed),
        tuple(cells),
        tuple(records),
        tuple(_notes(shape, published)),
        SOURCE if published else "",
    )


def _notes(shape: Attention, published: bool) -> list[str]:
    blocks = f"B_c {shape.key_block:,}, B_r {shape.query_block:,}, {shape.key_blocks:,} blocks of keys"
    notes = [f"M = {shape.fast_elements:,} elements: {blocks} (ceilings)."]
    if shape.dropped_by_floors:
        notes.append(f"With floors in their place the last {shape.dropped_by_floors:,} keys would never be seen.")
    notes.append(f"Of standard attention's traffic {format_bytes(square_bytes(shape))} are its N×N matrices.")
    if published:
        as_bytes = Attention(fast_elements=shape.fast_elements * shape.element_bytes)
        other = format_bytes(sum(hbm_bytes(as_bytes, flash=True)))
        notes.append(f"Read as a number of bytes (192 KiB = {as_bytes.fast_elements:,}), M would give flash {other}.")
        notes.append(
            "The printed 40.3 GB look like an unfused program (scale, mask and dropout apart), not algorithm 0."
        )
        notes.append("The printed GFLOPs do not match these shapes; the products alone need what is shown.")
    return notes
