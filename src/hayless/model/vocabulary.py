"""Rows for new tokens in the embedding and the head, which start where their text was, and train alone if asked.

A new token's rows start as the mean of the rows of the tokens that its text was cut into before, so that it means at
first about what they did (Gee et al., Fast Vocabulary Transfer for Language Model Compression, 2022).

Rows that train alone are small tables beside the frozen ones (`hayless.core.new_rows` has them in the ledger): the
embedding's output is taken from them where a new token stands, and the head's logits of new tokens come from them. So
no gradient, no optimizer state and no copy of a whole table exists. Shapes: b rows, s positions, h width, n new tokens,
v entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.compose import predict
from hayless.core.errors import NotSupported, RequestError
from hayless.core.families import ledger_of
from hayless.core.ledger import Ledger
from hayless.core.new_rows import NAME, only_new_rows, vocabulary_rows
from hayless.core.roles import Role
from hayless.model.anatomy import Anatomy, dims_of_model
from hayless.model.anatomy.binding import Site
from hayless.model.new_tokens import Added
from hayless.model.transform import record


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """What transformers' tokenizer has inside. NotSupported for one that is written in Python."""
    found: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if found is None:
        raise NotSupported(f"{type(tokenizer).__name__} is none of the tokenizers library, so it gets no new tokens.")
    return found


def grow(model: PreTrainedModel, added: Added) -> None:
    """Give tokens that its tokenizer has got rows in the model's embedding and head, in place; spare rows come first.

    A head that is the embedding stays it; another one gets rows of its own. RequestError where the tokenizer had more
    tokens before than the model has rows; NotSupported as in `vocabulary_rows`.
    """
    table = _tables(model)[0].weight(model)
    if added.first > len(table):
        raise RequestError(
            f"The tokenizer does not match the model: before the new tokens it had {added.first}, and the model has"
            f" {len(table)} embeddings.",
            hint="Give the tokenizer that the model was trained with.",
        )
    if added.end > len(table):
        model.resize_token_embeddings(added.end, mean_resizing=False)
    for site in _tables(model):
        if not site.row.tied_to:
            _start(site.weight(model), added.first, added.pieces)


@contextmanager
def training_alone(model: PreTrainedModel, added: Added) -> Iterator[list[nn.Parameter]]:
    """Inside the block nothing of the model trains but the rows of `added`, so that whatever an optimizer does (weight
    decay, momentum) reaches no other row; gives them as parameters, of the embedding and of a head of its own. After
    it the model is as it was before, with their values in its tables.

    RequestError for a model with an adapter; NotSupported as in `vocabulary_rows`.
    """
    only_new_rows(_ledger(model), len(added.tokens))
    sites = _tables(model)
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with ExitStack() as stack:
        for parameter, trains in wanted.items():
            stack.callback(parameter.requires_grad_, trains)
            parameter.requires_grad_(False)
        held: dict[str, nn.Module] = {}
        for site in sites:
            module = site.module(model)
            rows = held.get(site.row.tied_to or "")
            if rows is None:
                rows = held[site.module_path] = _apart(site.weight(model)[added.first : added.end])
                module.add_module(NAME, rows)
                stack.callback(_put_back, module, site.weight(model), added)
            hook = _looked_up if site.row.role is Role.EMBEDDING else _scored
            stack.callback(module.register_forward_hook(hook(rows, added)).remove)
        yield [rows.weight for rows in held.values()]  # type: ignore[misc]


def _apart(rows: Tensor) -> nn.Module:
    """Rows (n, h) of a table as a table of their own."""
    return nn.Embedding.from_pretrained(rows.detach().clone(), freeze=False)


def _put_back(module: Any, table: Tensor, added: Added) -> None:
    """Write what the rows are now into the table, and take them off."""
    with torch.no_grad():
        table[added.first : added.end].copy_(module.new_rows.weight)
    del module.new_rows


def _looked_up(rows: Any, added: Added) -> Any:
    """A forward hook of the embedding: where a new token stands, its row of `rows`."""

    def hook(module: Any, inputs: tuple[Tensor, ...], output_bsh: Tensor) -> Tensor:
        local_bs = inputs[0] - added.first
        new_bs = (local_bs >= 0) & (local_bs < len(added.tokens))
        found_bsh = rows(local_bs.clamp(0, len(added.tokens) - 1))
        scale = getattr(module, "embed_scale", None)
        if scale is not None:
            found_bsh = found_bsh * scale.to(found_bsh.dtype)
        return torch.where(new_bs[..., None], found_bsh.to(output_bsh.dtype), output_bsh)

    return hook


def _scored(rows: Any, added: Added) -> Any:
    """A forward hook of the head: the logits of new tokens, from `rows`, in the place of the frozen table's."""

    def hook(module: Any, inputs: tuple[Tensor, ...], output_bsv: Tensor) -> Tensor:
        (x_bsh,) = inputs
        output_bsv[..., added.first : added.end] = F.linear(x_bsh, rows.weight.to(x_bsh.dtype))
        return output_bsv

    return hook


def _ledger(model: PreTrainedModel) -> Ledger:
    return predict(ledger_of(dims_of_model(model)), record(model))


def _tables(model: PreTrainedModel) -> list[Site]:
    """The embedding of tokens and the head, in this order. NotSupported where a method holds one in another form."""
    names = {row.module for row in vocabulary_rows(_ledger(model))}
    found = [site for site in Anatomy.of(model).sites if site.module_path in names and site.parameter == "weight"]
    for site in found:
        if site.packed(model):
            raise NotSupported(
                f"{site.name} ({site.row.role.value}) is held in another form, so it cannot get new rows."
            )
    return found


def _start(table: Tensor, first: int, former: Sequence[Sequence[int]]) -> None:
    """Give the rows from `first` on the mean of the rows (of all older rows, if none) that each token was cut into."""
    with torch.no_grad():
        for row, pieces in enumerate(former, start=first):
            older = table[list(pieces)] if pieces else table[:first]
            table[row] = older.float().mean(dim=0).to(table.dtype)
