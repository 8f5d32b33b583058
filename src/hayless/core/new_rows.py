"""Training the rows of new tokens alone, in a ledger. No torch.

They are tables of their own while they train, beside the embedding (and beside a head that is not tied to it), and are
written back into it in the end; everything else is frozen. `hayless.model.vocabulary` does this to a model.
"""

from __future__ import annotations

from dataclasses import replace

from hayless.core.errors import NotSupported, RequestError
from hayless.core.ledger import Layout, Ledger, Row
from hayless.core.roles import Role

NAME = "new_rows"
"""What their module is called inside the embedding or the head."""


def vocabulary_rows(ledger: Ledger) -> list[Row]:
    """The embedding of tokens and a language model's head (tied or not): what has one row a token, in this order.

    NotSupported where a method holds one in another form or keeps zeros in it, and for families that are no decoders.
    """
    if ledger.dims.family in ("bert", "t5"):
        raise NotSupported(f"New tokens are for decoders; the {ledger.dims.family} family is none.")
    found = [row for row in ledger.rows if row.role is Role.EMBEDDING]
    if not ledger.dims.labels:
        found += [row for row in ledger.rows if row.role is Role.HEAD and row.is_matrix]
    for row in found:
        if row.method or row.nonzero is not None:
            changed = f"packed by {row.method}" if row.method else "pruned"
            raise NotSupported(
                f"{row.module} ({row.role.value}) is {changed}, so it cannot get new rows or train some of its rows.",
                hint="Add tokens, and train their rows, before a method changes it.",
            )
    return found


def only_new_rows(ledger: Ledger, count: int) -> Ledger:
    """The ledger while only the rows of `count` new tokens train. RequestError for a model with an adapter, which would
    be left as it is; NotSupported as in `vocabulary_rows`."""
    if any(row.role is Role.ADAPTER for row in ledger.rows):
        raise RequestError(
            "only: new_tokens would leave the model's adapter as it is.",
            hint="Train the new rows in a step before the adapter is applied, and the adapter in a step after it.",
        )
    extra = [
        Row(row.role, f"{row.module}.{NAME}", "weight", (count, row.shape[1]), row.dtype, Layout.TABLE)
        for row in vocabulary_rows(ledger)
        if not row.tied_to
    ]
    frozen = [replace(row, trainable=False) for row in ledger.rows]
    return replace(ledger, rows=(*frozen, *extra))
