"""The kernels between speculative passes equal their plain references."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels import drafted
from hayless.methods.decoding.speculative.drafts import lookup

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("ngram", [1, 3])
def test_lookup(ngram):
    generator = torch.Generator().manual_seed(0)
    capacity, count = 90, 5
    texts = [torch.randint(3, (n,), generator=generator).tolist() for n in (2, 3, 9, 40, 80)]
    texts += [list(range(7)), [5, 6, 7, 5, 6], [1] * 20]
    text = torch.full((len(texts), capacity), -7)
    for row, one in enumerate(texts):
        text[row, : len(one)] = torch.tensor(one)
    lengths = torch.tensor([len(one) - 1 for one in texts], dtype=torch.int32)
    tokens = torch.full((len(texts), count + 1), -9, device=DEVICE)
    drafted.lookup(text.to(DEVICE), lengths.to(DEVICE), tokens[:, 1:], ngram)
    expected = [lookup(one, count, ngram) or [one[-1]] * count for one in texts]
    assert tokens[:, 1:].tolist() == expected and (tokens[:, 0] == -9).all()
    assert lookup([5, 6, 7, 5, 6], 5, 3) == [7, 5, 6, 7, 5], "what followed is repeated"
    assert lookup(list(range(7)), 3, 3) == []


@pytest.mark.parametrize("likeliest", [True, False])
@pytest.mark.parametrize("with_text", [True, False])
def test_settle(likeliest, with_text):
    generator = torch.Generator().manual_seed(1)
    rows, count = 12, 3
    tokens = torch.randint(2, (rows, count + 1), generator=generator)
    chosen = torch.randint(2, (rows, count + 1), generator=generator)
    kept = torch.randint(count + 1, (rows,), generator=generator).int()
    lengths = torch.randint(1, 9, (rows,), generator=generator).int()
    active = torch.tensor([1, 1, 0] * 4).int()
    places, fed = torch.arange(rows).int(), torch.full((rows, 2), -1)
    text = torch.full((rows, 20), -1) if with_text else None
    state = [tokens, chosen, kept, lengths, active, places, fed, text]
    found = [None if one is None else one.clone().to(DEVICE) for one in state]
    drafted.settle(*found, likeliest=likeliest)
    drafted.settle_reference(*state, likeliest=likeliest)
    for ours, plain in zip(found, state, strict=True):
        assert (ours is None and plain is None) or torch.equal(ours.cpu(), plain)
    assert {0, count} <= set(kept.tolist())
