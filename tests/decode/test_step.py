"""A step in few calls gives the hidden states and the cache of the program's plain path."""

from __future__ import annotations

import pytest
import torch

from hayless.decode.cache import StaticCache
from hayless.decode.program import plan
from hayless.decode.step import Step
from tests import tiny

UNEVEN = [[0, 5, 9, 30, 31], [17], [44, 45, 46]]
EVEN = [[0, 5, 9], [17, 3, 3], [44, 45, 46]]


@pytest.mark.parametrize("name", ["llama", "llama-tied", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("prompts", [UNEVEN, EVEN, UNEVEN[:1]], ids=["uneven", "even", "one"])
def test_equals_the_plain_path(name, prompts):
    program = plan(tiny.model(name))
    rows = len(prompts)
    generator = torch.Generator().manual_seed(0)
    caches = [StaticCache(program.dims, rows, 6, program.dtype, program.device) for _ in range(2)]
    for cache in caches:
        program.prefill(prompts, cache, 2)
        for part in (cache.k, cache.v):
            for row, length in enumerate(cache.lengths):
                part[:, row, :, length:] = torch.nan
    step = Step(program, caches[0])

    def same(tokens_b):
        torch.testing.assert_close(step(tokens_b), program.forward(tokens_b[:, None], caches[1])[:, 0])
        assert caches[0].lengths == caches[1].lengths
        for row, length in enumerate(caches[0].lengths):
            for part in ("k", "v"):
                found, expected = (getattr(cache, part)[:, row, :, :length] for cache in caches)
                torch.testing.assert_close(found, expected)

    for _ in range(5):
        same(torch.randint(96, (rows,), generator=generator))
    # A row leaves, as when its request ends; another is cut back, as when a draft is rejected.
    kept = [0, 2][: max(1, rows - 1)]
    for cache in caches:
        cache.select(kept)
        cache.truncate([*cache.lengths[:-1], cache.lengths[-1] - 1])
    for _ in range(3):
        same(torch.randint(96, (len(kept),), generator=generator))


def test_16_bit_steps_stay_near_the_plain_path():
    program = plan(tiny.model("qwen3").to(torch.bfloat16))
    caches = [StaticCache(program.dims, 3, 16, program.dtype, program.device) for _ in range(2)]
    for cache in caches:
        program.prefill(UNEVEN, cache, 16)
    tokens_b = torch.tensor([11, 12, 13])
    found, expected = Step(program, caches[0])(tokens_b), program.forward(tokens_b[:, None], caches[1])[:, 0]
    assert found.dtype is torch.bfloat16
    assert (found - expected).float().norm() / expected.float().norm() < 1e-2
