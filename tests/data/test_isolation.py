"""Packed documents do not see each other, in every family of decoders and every kind of attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

from hayless.data.batches import IGNORED, Batch
from hayless.model.attention import VARLEN, attending
from hayless.train.attention import varlen
from hayless.train.forward import model_inputs
from tests import tiny

LENGTHS = (7, 1, 5, 9)
PADDING = 3
FAMILIES = ("llama", "gpt2", "opt", "gpt_neox", "mixtral")
ATTENTION = ("sdpa", "eager", "varlen")


def packed(documents: list[torch.Tensor]) -> Batch:
    """One row of documents (tokens (n,)), padded."""
    inputs, targets, positions, segments = [], [], [], []
    for number, tokens in enumerate(documents):
        inputs.append(tokens[:-1])
        targets.append(tokens[1:])
        positions.append(torch.arange(len(tokens) - 1))
        segments.append(torch.full((len(tokens) - 1,), number))
    for part, value in ((inputs, 0), (targets, IGNORED), (positions, 0), (segments, -1)):
        part.append(torch.full((PADDING,), value))
    names = (tuple(str(number) for number in range(len(documents))),)
    return Batch(*(torch.cat(part)[None] for part in (inputs, targets, positions, segments)), documents=names)


def documents(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 96, (length + 1,), generator=generator) for length in LENGTHS]


@contextmanager
def decoder(family: str, attention: str) -> Iterator[torch.nn.Module]:
    """A tiny model that attends so."""
    model = tiny.model(family)
    with attending(model, VARLEN, varlen) if attention == "varlen" else attending(model, attention):
        yield model


def logits(model, batch: Batch) -> torch.Tensor:
    """(s, v) of the one row."""
    with torch.no_grad():
        return model(**model_inputs(model, batch)).logits[0]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", FAMILIES)
def test_changing_one_document_changes_no_other(family, attention):
    before = documents()
    batch = packed(before)
    with decoder(family, attention) as model:
        first = logits(model, batch)
        assert first.isfinite().all()
        for number in range(len(LENGTHS)):
            after = [tokens.clone() for tokens in before]
            after[number] = 3 + (after[number] - 3 + 17) % 93
            second = logits(model, packed(after))
            others = (batch.segments[0] != number) & (batch.segments[0] >= 0)
            # Experts batch tokens by where they are routed, so rounding may differ; a leak is above 1e-4.
            torch.testing.assert_close(first[others], second[others], rtol=0, atol=1e-6)
            mine = batch.segments[0] == number
            assert not torch.allclose(first[mine], second[mine], atol=1e-4)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_packed_loss_is_the_unpacked_one(family, attention):
    batch = packed(documents())
    alone = 0.0
    with decoder(family, attention) as model:
        together = float(F.cross_entropy(logits(model, batch), batch.targets[0], ignore_index=IGNORED, reduction="sum"))
        with torch.no_grad():
            for tokens in documents():
                alone += float(F.cross_entropy(model(tokens[None, :-1]).logits[0], tokens[1:], reduction="sum"))
    assert together == pytest.approx(alone, rel=2e-6)


def test_without_the_mask_documents_leak():
    """What the mask is for: positions that restart are not enough for OPT."""
    model = tiny.model("opt")
    before, after = documents(), documents()
    after[0] = 3 + (after[0] - 3 + 17) % 93
    found = []
    for tokens in (before, after):
        batch = packed(tokens)
        with torch.no_grad():
            found.append(model(batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[0])
    assert not torch.allclose(found[0][-PADDING - 1], found[1][-PADDING - 1], atol=1e-4)
