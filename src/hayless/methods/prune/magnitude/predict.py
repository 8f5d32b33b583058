"""What pruning by magnitude makes of a ledger: fewer weights that are not zero, in as many bytes."""

from __future__ import annotations

import math
from dataclasses import replace

from hayless.core.ledger import Ledger, Row
from hayless.methods.common.targets import matching
from hayless.methods.prune.magnitude.budget import in_proportion, kept_in_all, kept_of_each
from hayless.methods.prune.magnitude.config import MagnitudeConfig


def predict(ledger: Ledger, config: MagnitudeConfig) -> Ledger:
    """The ledger after `magnitude`.

    Exact in all: the sum over the targets, and in the scope `tensor` each row. Which rows keep how much in the scope
    `global` depends on the weights, so rows then have their expected share. Weights that were zero before are not
    known to a ledger, unless a method made them so.
    """
    rows = matching(ledger, config.targets, config.method)
    now = [row.elements if row.nonzero is None else row.nonzero for row in rows]
    if config.scope == "global":
        kept = in_proportion(min(sum(now), kept_in_all(sum(row.elements for row in rows), config)), now)
    else:
        kept = [min(before, after) for before, after in zip(now, _by_row(rows, config), strict=True)]
    after = dict(zip(rows, kept, strict=True))
    return ledger.rewrite(config.method, lambda row: replace(row, nonzero=after[row]) if row in after else row)


def _by_row(rows: list[Row], config: MagnitudeConfig) -> list[int]:
    sizes = [math.prod(row.shape) for row in rows for _ in range(row.count)]
    kept = iter(kept_of_each(sizes, config))
    return [sum(next(kept) for _ in range(row.count)) for row in rows]
