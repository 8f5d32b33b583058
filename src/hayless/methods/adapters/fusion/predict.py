"""Where modules are fused, the tensors that this takes there, and what it makes of a ledger. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hayless.core.beside import FUSION, TRAINED, fusion_of
from hayless.core.errors import NotSupported
from hayless.core.ledger import Layout, Ledger, Row
from hayless.methods.adapters.fusion.config import FusionConfig, members_of, settled
from hayless.methods.common.sites import PEFT_PREFIX, Target, adapter_row, linear_targets, refuse_second
from hayless.methods.common.sublayers import sublayer_targets


@dataclass(frozen=True, slots=True)
class Site:
    """Matrices of one kind where modules are fused: how many modules, and the largest rank or width among them.

    `member` is what a single module is called there, empty for LoRA, whose matrices lie in the module itself.
    """

    target: Target
    count: int
    rank: int
    member: str = ""

    @property
    def name(self) -> str:
        """What the matrix's module calls the fusion."""
        return fusion_of(self.member) if self.member else FUSION

    @property
    def entering(self) -> int:
        """Numbers of what modules read: bottlenecks read what they are added to, or as many."""
        return self.target.row.out_features if self.member else self.target.row.in_features

    @property
    def parallel(self) -> bool:
        """Whether modules read what a sublayer was given."""
        return self.member.startswith("parallel")


def predict(ledger: Ledger, config: FusionConfig) -> Ledger:
    """The ledger after `fusion`: the modules' matrices, and queries, keys and values, which alone are trained."""
    refuse_second(ledger, config.method)
    rows = tuple(row for site in sites_of(ledger, config) for row in _rows(site, config))
    return ledger.rewrite(config.method, lambda row: replace(row, trainable=False), rows)


def sites_of(ledger: Ledger, config: FusionConfig) -> list[Site]:
    """Where the modules are. NotSupported where one of them is where another is not."""
    members = members_of(settled(config))
    first = members[0]
    if first.method == "bottleneck":
        width = max(each.width for each in members)
        targets = sublayer_targets(ledger, first.sublayers, config.method)
        return [Site(target, len(members), width, first.kind) for target in targets]
    places = [linear_targets(ledger, each.targets, config.method) for each in members]
    if any(each != places[0] for each in places):
        raise NotSupported(
            "fusion: the modules are beside different matrices.",
            hint="Fuse modules that were trained with one targets.",
        )
    rank = max(each.rank for each in members)
    return [Site(target, len(members), rank) for target in places[0]]


def tensors_of(site: Site, config: FusionConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a fusion: names and shapes. The modules' matrices lie below and beside each other, each filled up
    with zeros to the largest rank."""
    out, together = site.target.row.out_features, site.count * site.rank
    width = config.width or out
    shapes: dict[str, tuple[int, ...]] = {"query.weight": (width, site.entering), "key.weight": (width, out)}
    if config.value:
        shapes["value.weight"] = (out, out)
    shapes |= {"thin.weight": (site.count, site.rank, site.entering), "wide.weight": (out, together)}
    if site.member:
        shapes |= {"thin.bias": (together,), "shift.weight": (out, site.count)}
    return shapes


def _rows(site: Site, config: FusionConfig) -> Iterator[Row]:
    for name, shape in tensors_of(site, config).items():
        part, _, parameter = name.partition(".")
        module = f"{site.target.row.module}.{site.name}.{part}"
        layout = (Layout.VECTOR, Layout.LINEAR, Layout.EXPERTS)[len(shape) - 1]
        disk = f"{PEFT_PREFIX}{module}.{parameter}"
        made = adapter_row(config.method, module, parameter, shape, layout, site.target.layers, disk)
        yield replace(made, trainable=part in TRAINED)
