"""The OPT models (Zhang et al., 2022, arXiv:2205.01068), table 1: the presets `opt-…`, counted by our ledger."""

from __future__ import annotations

from dataclasses import dataclass

from hayless.core.families import dims_of, ledger_of
from hayless.core.units import parse_count
from hayless.plan.presets import config_of
from hayless.plan.table import Table

SOURCE = "OPT (arXiv:2205.01068), table 1"


@dataclass(frozen=True, slots=True)
class Published:
    """A row of the table: layers, heads, width, peak learning rate, tokens a batch."""

    name: str
    layers: int
    heads: int
    width: int
    learning_rate: float
    batch_tokens: str


PUBLISHED = (
    Published("125m", 12, 12, 768, 6.0e-4, "0.5M"),
    Published("350m", 24, 16, 1024, 3.0e-4, "0.5M"),
    Published("1.3b", 24, 32, 2048, 2.0e-4, "1M"),
    Published("2.7b", 32, 32, 2560, 1.6e-4, "1M"),
    Published("6.7b", 32, 32, 4096, 1.2e-4, "2M"),
    Published("13b", 40, 40, 5120, 1.0e-4, "4M"),
    Published("30b", 48, 56, 7168, 1.0e-4, "4M"),
    Published("66b", 64, 72, 9216, 0.8e-4, "2M"),
    Published("175b", 96, 96, 12288, 1.2e-4, "2M"),
)


def table() -> Table:
    """The published table with parameters counted from each preset's config."""
    cells, records = [], []
    for row in PUBLISHED:
        dims = dims_of(config_of(f"opt-{row.name}"))
        parameters, named = ledger_of(dims).parameters, parse_count(row.name.upper())
        rate = f"{row.learning_rate * 1e4:.1f}e-4"
        shape = (f"{dims.num_layers}", f"{dims.num_heads}", f"{dims.hidden_size:,}")
        off = f"{parameters / named - 1:+.1%}".replace("-", "−").replace("%", " %")
        cells.append((f"opt-{row.name}", *shape, rate, row.batch_tokens, f"{parameters:,}", off))
        records.append(
            {
                "preset": f"opt-{row.name}",
                "layers": dims.num_layers,
                "heads": dims.num_heads,
                "width": dims.hidden_size,
                "learning_rate": row.learning_rate,
                "batch_tokens": parse_count(row.batch_tokens),
                "parameters": parameters,
                "named_parameters": named,
            }
        )
    return Table(
        "OPT: the published sizes as presets",
        ("preset", "layers", "heads", "width", "rate", "batch tokens", "parameters", "than its name"),
        tuple(cells),
        tuple(records),
        ("opt-350m has embeddings 512 wide and norms after its sublayers: 331M parameters.",),
        SOURCE,
    )
