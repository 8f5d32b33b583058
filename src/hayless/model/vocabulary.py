"""New tokens: given to the tokenizer, given rows in the embedding and the head, and trained alone where that is asked.

A new token's rows start as the mean of the rows of the tokens that its text was cut into before, so that it means at
first about what they did (Gee et al., Fast Vocabulary Transfer for Language Model Compression, 2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import NotSupported, RequestError, bad_value
from hayless.core.roles import Role
from hayless.model.anatomy import Anatomy
from hayless.model.anatomy.binding import Site


@dataclass(frozen=True, slots=True)
class Added:
    """The tokens that are new, and their rows [first, end) of the embedding, which now has `rows`; and the tokens that
    the tokenizer knew already."""

    tokens: tuple[str, ...]
    known: tuple[str, ...]
    first: int
    end: int
    rows: int


def add_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], *, special: bool = False
) -> Added:
    """Add tokens to a tokenizer and rows for them to the model's embedding and head, both in place.

    A head that is the embedding stays it; another one gets rows of its own. Spare rows of the model are taken first.
    `special` tokens are never cut and are left out of decoded text. RequestError for empty tokens, tokens named twice
    and none that is new; NotSupported for an embedding or head that a method holds in another form.
    """
    if not all(tokens) or len(set(tokens)) < len(tokens):
        raise bad_value("tokens", list(tokens), allowed="texts that are not empty, each once")
    known = tuple(token for token in tokens if token in tokenizer.get_vocab())
    new = [token for token in tokens if token not in known]
    if not new:
        raise RequestError("The tokenizer knows all of these tokens already.", hint="Leave new tokens out.")
    sites = _tables(model)
    former = [tokenizer(token, add_special_tokens=False)["input_ids"] for token in new]
    tokenizer.add_tokens(
        [AddedToken(token, special=special, normalized=False) for token in new], special_tokens=special
    )
    places = tokenizer.get_vocab()
    first, end = places[new[0]], places[new[-1]]
    rows = int(sites[0].weight(model).shape[0])
    if end >= rows:
        rows = end + 1
        model.resize_token_embeddings(rows, mean_resizing=False)
    for site in _tables(model):
        if not site.row.tied_to:
            _start(site.weight(model), first, former)
    return Added(tuple(new), known, first, end + 1, rows)


@contextmanager
def only_new_rows(model: PreTrainedModel, added: Added) -> Iterator[list[nn.Parameter]]:
    """Inside the block nothing of the model is trained but the rows of `added`: they are parameters of their own, and
    whatever an optimizer does (weight decay, momentum) reaches no other row. After it, the model is as it was before,
    with the new values in it. Gives the parameters to train: of the embedding, and of a head of its own.
    """
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    sites = _tables(model)
    before = [dict(site.module(model)._parameters) for site in sites]
    for parameter in wanted:
        parameter.requires_grad_(False)
    parts: list[tuple[nn.Parameter, nn.Parameter]] = []
    try:
        for site in sites:
            parametrize.register_parametrization(site.module(model), site.parameter, _Rows(added.first, added.end))
            held: Any = site.module(model).parametrizations[site.parameter]  # type: ignore[index]
            if site.row.tied_to:
                # One table in two places has one pair of parts.
                held.original0, held.original1 = parts[0]
            else:
                held.original0.requires_grad_(False)
                parts.append((held.original0, held.original1.requires_grad_(True)))
        yield [new for _, new in parts]
    finally:
        for site, parameters in zip(sites, before, strict=True):
            module = site.module(model)
            if parametrize.is_parametrized(module, site.parameter):
                value = getattr(module, site.parameter).detach()
                parametrize.remove_parametrizations(module, site.parameter, leave_parametrized=True)
                module._parameters = parameters
                with torch.no_grad():
                    site.weight(model).copy_(value)
        for parameter, trains in wanted.items():
            parameter.requires_grad_(trains)


class _Rows(nn.Module):
    """A table as two parameters: the rows that stay, and the new ones."""

    def __init__(self, first: int, end: int) -> None:
        super().__init__()
        self._first, self._end = first, end

    def forward(self, old: Tensor, new: Tensor) -> Tensor:
        """The whole table."""
        return torch.cat([old[: self._first], new, old[self._first :]])

    def right_inverse(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Its two parts."""
        old = torch.cat([table[: self._first], table[self._end :]])
        return old, table[self._first : self._end].clone()


def _tables(model: PreTrainedModel) -> list[Site]:
    """The embedding of tokens and the head, in this order. NotSupported where a method holds one in another form."""
    anatomy = Anatomy.of(model)
    found = [
        *(site for site in anatomy.sites if site.module(model) is anatomy.embedding),
        *(site for site in anatomy.weights({Role.HEAD}) if site.row.shape[0] == anatomy.dims.vocab_size),
    ]
    for site in found:
        if site.packed(model):
            raise NotSupported(
                f"{site.name} ({site.row.role.value}) is held in another form, so it cannot get new rows.",
                hint="Add tokens before a method packs it.",
            )
    return found


def _start(table: Tensor, first: int, former: Sequence[Sequence[int]]) -> None:
    """Give the rows from `first` on the mean of the rows (of all older rows, if none) that each token was cut into."""
    with torch.no_grad():
        for row, pieces in enumerate(former, start=first):
            older = table[list(pieces)] if pieces else table[:first]
            table[row] = older.float().mean(dim=0).to(table.dtype)
