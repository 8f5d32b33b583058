"""What methods add beside linear modules or behind them, recorded on a tape; found by the names of adapters' rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hayless.core.errors import NotSupported
from hayless.core.ledger import Layout, Ledger, Row
from hayless.core.roles import Role
from hayless.core.tape import Tensor

if TYPE_CHECKING:
    from hayless.core.forward import Run

MAGNITUDE = "lora_magnitude_vector"
"""What a module calls the trained lengths of its rows of weights, as PEFT's files do (DoRA)."""
BOTTLENECKS = ("serial_gelu", "serial_relu", "parallel_gelu", "parallel_relu")
"""What the last module of a sublayer calls a bottleneck behind it, or beside the sublayer, by its activation."""
MIXTURE = "lora_moe"
"""What a module calls the gate and the thin matrices of a mixture beside it."""
GATE, PROTOTYPES = "gate", "prototypes"
"""What a mixture calls the matrix that scores its products: trained, or frozen vectors whose sign means nothing."""

FUSION = "fusion"
"""What a module calls attention over LoRAs beside it."""
TRAINED = ("query", "key", "value")
"""The parts of a fusion that learn; the modules' matrices are the others."""


def fusion_of(bottleneck: str) -> str:
    """What a module calls attention over bottlenecks of this name."""
    return f"{bottleneck}_{FUSION}"


def thin_names(stack: str) -> tuple[str, str]:
    """What a stack of experts calls the thin matrices beside its matrices `gate_up_proj` or `down_proj`."""
    part = stack.removesuffix("_proj")
    return f"lora_{part}_A", f"lora_{part}_B"


_FUSIONS = (FUSION, *map(fusion_of, BOTTLENECKS))
_ENTRANCES = {Role.O: (Role.Q, Role.QKV), Role.CROSS_O: (Role.CROSS_Q,), Role.DOWN: (Role.UP, Role.GATE_UP)}


def entrance(ledger: Ledger, last: Row) -> str:
    """The module whose input is that of the sublayer which ends in `last`. NotSupported where none is known."""
    firsts = [
        row.module
        for row in ledger.rows
        if row.role in _ENTRANCES.get(last.role, ()) and row.layers == last.layers and row.is_matrix
    ]
    if not firsts:
        raise NotSupported(f"No module is known by which the sublayer that ends in {last.module} begins.")
    return max(firsts, key=lambda module: _shared(module, last.module))


class Beside:
    """Finds what is beside each module of a ledger, and records it."""

    def __init__(self, ledger: Ledger) -> None:
        self._chains = _chains(ledger)
        self._exits: dict[str, list[str]] = {}
        for module, kind in {_parted(row) for row in ledger.rows if _parted(row)[1].startswith("parallel")}:
            last = next(row for row in ledger.rows if row.module == module and row.is_matrix)
            self._exits.setdefault(entrance(ledger, last), []).append(f"{module}.{kind}")
        self._entered: dict[str, Tensor] = {}

    def at(self, module: str) -> bool:
        """Whether there are branches beside a module."""
        return module in self._chains

    def add(self, run: Run, x: Tensor, out: Tensor, module: str, layer: int) -> Tensor:
        """What `out` = Wx + b becomes with all that is beside the module."""
        tape = run.tape
        for exit in self._exits.get(module, ()):
            self._entered[exit] = x
        lengths, bias = run.weight(module, MAGNITUDE, layer), run.weight(module, "bias", layer)
        if lengths is not None and bias is not None:
            out = tape.scale(out)
        for rows in self._chains.get(module, ()):
            if not rows[0].layers or layer in rows[0].layers:
                joined = lengths is None and _is_frozen_product(run, x, module, layer)
                # What a product with a bias gives is a view.
                in_place = joined or bias is None or lengths is not None
                out = _branch(run, x, out, rows, layer, in_place=in_place, joined=joined)
        if lengths is not None:
            # A product without its bias, times trained lengths over those that the weights have.
            share = tape.mul(lengths, tape.constant(lengths.elements, lengths.dtype))
            out = tape.mul(out, tape.cast(share, out.dtype))
            out = out if bias is None else tape.add(out, tape.cast(bias, out.dtype))
        if run.weight(f"{module}.{MIXTURE}.lora_A", "weight", layer) is not None:
            out = tape.add(out, tape.cast(_mixture(run, x, f"{module}.{MIXTURE}", layer), out.dtype))
        for kind in BOTTLENECKS:
            place = f"{module}.{kind}"
            if run.weight(f"{place}.down", "weight", layer) is not None:
                entering = self._entered.pop(place) if kind.startswith("parallel") else out
                out = tape.add(out, tape.cast(_bottleneck(run, entering, place, layer), out.dtype))
        for kind in _FUSIONS:
            place = f"{module}.{kind}"
            if run.weight(f"{place}.query", "weight", layer) is not None:
                entering = self._entered.pop(place) if kind.startswith("parallel") else x if kind == FUSION else out
                out = tape.add(out, tape.cast(_fusion(run, entering, place, layer), out.dtype))
        return out


def _is_frozen_product(run: Run, x: Tensor, module: str, layer: int) -> bool:
    """Whether a branch finds nothing but a frozen matrix and bias of a linear module, and knows the gradient of x."""
    plain = run.rows[module, "weight"].layout is Layout.LINEAR and not (run.shape.arithmetic or run.shape.float8)
    parts = (run.weight(module, parameter, layer) for parameter in ("weight", "bias"))
    return plain and x.grad and not any(part is not None and part.grad for part in parts)


def _branch(
    run: Run, x: Tensor, out: Tensor, rows: tuple[Row, ...], layer: int, *, in_place: bool, joined: bool
) -> Tensor:
    """Two thin matrices one after the other, scaled and added to `out`; several pairs are put side by side."""
    tape, dtype = run.tape, run.shape.arithmetic or x.dtype
    leaves = [tape.cast(_leaf(run, row.module, row.parameter, layer), dtype) for row in rows]
    thin, wide = (leaves[part] if len(rows) == 2 else tape.join(*leaves[part::2]) for part in (0, 1))
    rank = sum(row.out_features for row in rows[::2])
    return tape.low_rank(
        out, x, thin, wide, (rows[0].in_features, rank, rows[1].out_features), in_place=in_place, joined=joined
    )


def _mixture(run: Run, x: Tensor, place: str, layer: int) -> Tensor:
    """What the thin matrices of all make of x, each share times its gate, and put together."""
    tape, dtype = run.tape, run.shape.arithmetic or x.dtype
    found = run.weight(f"{place}.{GATE}", "weight", layer)
    gate, thin, wide = (f"{place}.{part}" for part in (PROTOTYPES if found is None else GATE, "lora_A", "lora_B"))
    count, width = run.rows[gate, "weight"].shape
    out, rank = run.rows[wide, "weight"].shape
    tokens = x.elements // width
    gates, a, b = (tape.cast(_leaf(run, part, "weight", layer), dtype) for part in (gate, thin, wide))
    scores = tape.cast(tape.linear(x, gates, None, tokens, (count, width)), "float32")
    scores = scores if found is not None else tape.unary(scores, "input")
    inner = tape.linear(x, a, None, tokens, (rank, width))
    inner = tape.mul(inner, tape.cast(tape.unary(scores, "output"), dtype))
    return tape.scale(tape.linear(inner, b, None, tokens, (out, rank)))


def beside_stack(run: Run, x: Tensor, out: Tensor, module: str, stack: str, layer: int) -> Tensor:
    """`out`, what a stack of experts makes of sorted tokens x, with the thin matrices of each expert added."""
    tape, names = run.tape, thin_names(stack)
    if run.weight(module, names[0], layer) is None:
        return out
    a, b = (tape.cast(_leaf(run, module, name, layer), x.dtype) for name in names)
    _, rank, width = run.rows[module, names[0]].shape
    tokens = x.elements // width
    inner = tape.linear(x, a, None, tokens, (rank, width))
    return tape.add(out, tape.scale(tape.linear(inner, b, None, tokens, (out.elements // tokens, rank))))


def _bottleneck(run: Run, x: Tensor, place: str, layer: int) -> Tensor:
    """Down to the bottleneck's width, an activation, and up again, scaled."""
    tape, dtype = run.tape, run.shape.arithmetic or x.dtype
    row = run.rows[f"{place}.down", "weight"]
    width, hidden = row.shape
    tokens = x.elements // hidden
    for part, shape in (("down", (width, hidden)), ("up", (run.rows[f"{place}.up", "weight"].shape[0], width))):
        weight, bias = (
            tape.cast(_leaf(run, f"{place}.{part}", parameter, layer), dtype) for parameter in ("weight", "bias")
        )
        x = tape.linear(x, weight, bias, tokens, (shape[0], shape[1]))
        if part == "down":
            x = tape.unary(x, "output" if place.endswith("relu") else "input")
    return x


def _fusion(run: Run, x: Tensor, place: str, layer: int) -> Tensor:
    """Scores by what the query asks of each thin product, their softmax, and the products mixed by it."""
    tape, dtype = run.tape, run.shape.arithmetic or x.dtype
    count, rank, width = run.rows[f"{place}.thin", "weight"].shape
    out = run.rows[f"{place}.wide", "weight"].shape[0]
    asking = run.rows[f"{place}.query", "weight"].shape[0]
    tokens = x.elements // width

    def product(given: Tensor, part: str, shape: tuple[int, int]) -> Tensor:
        bias = run.weight(f"{place}.{part}", "bias", layer)
        weight = tape.cast(_leaf(run, f"{place}.{part}", "weight", layer), dtype)
        return tape.linear(given, weight, None if bias is None else tape.cast(bias, dtype), tokens, shape)

    inner = product(x, "thin", (count * rank, width))
    shifted = run.weight(f"{place}.shift", "weight", layer) is not None
    if shifted:
        inner = tape.unary(inner, "output" if "relu" in place else "input")
    asked = product(product(x, "query", (asking, width)), "key", (out, asking))
    each = tape.cast(tape.mul(product(asked, "wide", (count * rank, out)), inner), "float32")
    scores = tape.unary(each, "nothing", tokens * count)
    if shifted:
        scores = tape.add(scores, product(asked, "shift", (count, out)))
    shares = tape.cast(tape.unary(scores, "output"), dtype)
    mixed = product(tape.mul(inner, shares), "wide", (out, count * rank))
    if shifted:
        mixed = tape.add(mixed, product(shares, "shift", (out, count)))
    if run.weight(f"{place}.value", "weight", layer) is None:
        return mixed
    return tape.add(mixed, product(mixed, "value", (out, out)))


def _leaf(run: Run, module: str, parameter: str, layer: int) -> Tensor:
    found = run.weight(module, parameter, layer)
    assert found is not None, (module, parameter, layer)
    return found


def _chains(ledger: Ledger) -> Mapping[str, tuple[tuple[Row, ...], ...]]:
    """Module → the chains of thin matrices beside it (adapters' modules lie under the module they belong to)."""
    bases = {row.module for row in ledger.rows if row.is_matrix and row.role is not Role.ADAPTER}
    found: dict[str, dict[tuple[int, ...], list[Row]]] = {}
    for row in ledger.rows:
        if row.role is Role.ADAPTER and row.layout is Layout.LINEAR and not _parted(row)[1]:
            base = row.module
            while base and base not in bases:
                base = base.rpartition(".")[0]
            if base:
                found.setdefault(base, {}).setdefault(row.layers, []).append(row)
    return {base: tuple(tuple(rows) for rows in chains.values()) for base, chains in found.items()}


def _parted(row: Row) -> tuple[str, str]:
    """The module that a row's bottleneck, mixture or fusion belongs to, and which kind it is; empty for other rows."""
    place = row.module.rpartition(".")[0]
    module, _, kind = place.rpartition(".")
    return (module, kind) if row.role is Role.ADAPTER and kind in (*BOTTLENECKS, *_FUSIONS, MIXTURE) else ("", "")


def _shared(one: str, other: str) -> int:
    """How many characters two paths begin with together."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
