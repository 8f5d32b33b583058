"""Batches on captured steps, without a GPU: a captured step is the step itself, run by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from tests import tiny

pytest.importorskip("triton", reason="triton is not installed")

from tests.decode import captured

PROMPTS = [[0, 17], [44, 45, 46]]


if torch.cuda.is_available():
    pytest.skip("test_graphs.py has the real thing", allow_module_level=True)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    captured.at_once(monkeypatch)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_requests_get_what_the_plain_program_gives_and_leave_at_their_own_time(temperature):
    model = tiny.model("llama-tied")
    more = {"temperature": temperature, "seed": 3, "ignore_end": True}
    options = [SamplingOptions(max_tokens=count, top_logprobs=count - 1, **more) for count in (1, 3)]
    found = Engine(model)
    assert found.path.backend == "graphs"
    wanted = Engine(model, backend="program").generate(PROMPTS, options)
    for one, other in zip(found.generate(PROMPTS, options), wanted, strict=True):
        assert one.tokens == other.tokens and one.finish == other.finish
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(torch.tensor(one.tops), torch.tensor(other.tops), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_bits_are_the_same_in_any_batch_where_that_is_asked_for():
    engine = Engine(tiny.model("llama-tied"), deterministic=True)
    options = SamplingOptions(max_tokens=2, ignore_end=True)
    first, _ = engine.generate(PROMPTS, options)
    [alone] = engine.generate(PROMPTS[:1], options)
    assert (first.tokens, first.logprobs) == (alone.tokens, alone.logprobs)
