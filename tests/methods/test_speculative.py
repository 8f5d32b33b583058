"""Drafted tokens are kept and replaced so that samples are distributed as the target: the functions of a pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hayless.decode.options import SamplingOptions
from hayless.decode.sampling import distribution, invert
from hayless.methods.decoding.speculative.accept import accept
from hayless.methods.decoding.speculative.predict import acceptances, best_drafted, speedup, tokens_of
from hayless.methods.decoding.speculative.reference import speculate
from tests.methods.speculation import p_value

DRAWS = 100_000


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _distributions(count: int, options: SamplingOptions, seed: int, vocabulary: int = 12) -> tuple[Tensor, Tensor]:
    """A target's (count + 1, v) and a draft's (count, v), related as a model's and a smaller one's are."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(count + 1, vocabulary, generator=generator) * 1.5
    draft = target[:-1] + torch.randn(count, vocabulary, generator=generator)
    return distribution(target, options), distribution(draft, options)


def _passes(target: Tensor, draft: Tensor, rows: int, rule: Any = accept) -> tuple[Tensor, Tensor, Tensor]:
    """Many passes: drafted tokens (b, k), how many are kept (b,), and the token behind them (b,)."""
    count = len(draft)
    drawn = _random(rows, count, seed=1)
    tokens = torch.stack([invert(draft[k].expand(rows, -1), drawn[:, k]) for k in range(count)], 1)
    kept, last = rule(
        target.expand(rows, -1, -1),
        draft.expand(rows, -1, -1),
        tokens,
        _random(rows, count, seed=2),
        _random(rows, count + 1, seed=3),
    )
    return tokens, kept, last


def _p_values(target: Tensor, draft: Tensor, rule: Any = accept) -> list[float]:
    """Of each place: the token there, over the passes that reach it."""
    tokens, kept, last = _passes(target, draft, DRAWS, rule)
    made = torch.cat([tokens, tokens[:, :1]], 1).scatter(1, kept[:, None], last[:, None])
    return [p_value(made[kept >= place, place], target[place]) for place in range(len(target))]


@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 6, "min_p": 0.05}], ids=str)
def test_samples_are_distributed_as_the_target(temperature, filters):
    target, draft = _distributions(3, SamplingOptions(temperature=temperature, **filters), seed=4)
    assert (target[:-1] - draft).abs().sum(-1).mean() > 0.2, "the draft must differ from the target"
    assert min(_p_values(target, draft)) > 1e-3


def test_resampling_from_the_whole_target_is_caught():
    def wrong(target: Tensor, draft: Tensor, tokens: Tensor, keep: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        kept, _ = accept(target, draft, tokens, keep, last)
        rows = torch.arange(len(kept))
        return kept, invert(target[rows, kept], last[rows, kept])

    for temperature in (0.7, 1.3):
        target, draft = _distributions(3, SamplingOptions(temperature=temperature, top_p=0.9), seed=4)
        assert min(_p_values(target, draft, wrong)) < 1e-9 < min(_p_values(target, draft))


def test_a_batch_is_the_reference_row_by_row():
    for seed in range(40):
        count, rows = seed % 5, 4
        target, draft = _distributions(count, SamplingOptions(temperature=1.0, min_p=0.05 * (seed % 3)), seed, 6)
        tokens, kept, last = _passes(target, draft, rows) if count else (torch.zeros(rows, 0).long(), None, None)
        keep, after = _random(rows, count, seed=2), _random(rows, count + 1, seed=3)
        if kept is None:
            kept, last = accept(target.expand(rows, -1, -1), draft.expand(rows, -1, -1), tokens, keep, after)
        for row in range(rows):
            expected = speculate(target, draft, tokens[row].tolist(), keep[row].tolist(), after[row].tolist())
            assert expected == [*tokens[row, : kept[row]].tolist(), int(last[row])]


def test_where_rounding_leaves_no_residual_the_target_is_drawn_from():
    target = torch.tensor([[[0.25, 0.25, 0.5 - 1e-7], [0.2, 0.3, 0.5]]])
    draft = torch.tensor([[[0.25, 0.25, 0.5]]])
    almost = torch.tensor([[1 - 1e-9]], dtype=torch.float64)
    kept, last = accept(target, draft, torch.tensor([[2]]), almost, torch.tensor([[0.3, 0.3]]))
    assert (kept.item(), last.item()) == (0, 1)


def test_the_worked_example():
    draft, target = (0.8, 0.7, 0.9, 0.8, 0.7), (0.9, 0.8, 0.8, 0.3, 0.8)
    assert [round(chance, 3) for chance in acceptances(draft, target)] == [1, 1, 0.889, 0.375, 1]
    expected = tokens_of(acceptances(draft, target))
    assert round(expected, 3) == 4.556
    p, q = (torch.tensor([[one, 1 - one] for one in each]) for each in (draft, target))
    rows = (DRAWS, -1, -1)
    drafted = torch.zeros(DRAWS, 5, dtype=torch.long)
    q = torch.cat([q, q[-1:]])
    kept, last = accept(q.expand(rows), p.expand(rows), drafted, _random(DRAWS, 5), _random(DRAWS, 6, seed=1))
    assert 1 + kept.double().mean() == pytest.approx(expected, abs=0.02)
    assert set(kept.tolist()) == {2, 3, 5} and set(last[kept < 5].tolist()) == {1}
    worst, _ = accept(
        q.flip(-1).expand(rows)[:8] * 0 + torch.tensor([0.0, 1.0]), p.expand(rows)[:8], drafted[:8], *_few()
    )
    best, _ = accept(p[[0, 1, 2, 3, 4, 4]].expand(8, -1, -1), p.expand(8, -1, -1), drafted[:8], *_few())
    assert set(worst.tolist()) == {0} and set(best.tolist()) == {5}, "at worst 1 token, at best K + 1"


def _few() -> tuple[Tensor, Tensor]:
    return _random(8, 5), _random(8, 6)


def test_drafts_pay_where_the_formula_says_so():
    assert speedup(0.8, 4, 0.1, 1.2) == pytest.approx(sum(0.8**k for k in range(5)) / 1.6)
    assert best_drafted(0.8, 0.1, lambda drafted: 1 + 0.05 * drafted, most=8) == 5
    assert best_drafted(0.1, 0.5) == 0
