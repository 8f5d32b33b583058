"""Speed counts what it says. How fast is a matter of benchmarks, not of tests."""

from __future__ import annotations

import pytest
import torch

from hayless.core.errors import RequestError
from hayless.measure import speed
from hayless.measure.speed import Spread, decode_speed, train_speed
from tests import tiny


def test_decode_speed_counts_rows_and_goes_past_end_tokens(monkeypatch):
    model = tiny.model("llama")
    end = int(model(torch.tensor([[5, 6]])).logits[0, -1].argmax())
    model.generation_config.eos_token_id = end
    clock = iter(range(10_000))
    monkeypatch.setattr("hayless.decode.engine.time.perf_counter", lambda: float(next(clock)))
    found = decode_speed(model, [[5, 6], [7]], tokens=10, repeats=2)
    assert (found.rows, found.prompt_tokens, found.tokens, found.repeats) == (2, 2, 10, 2)
    assert found.token == Spread(1.0, 1.0, 1.0) and found.first_token.median == 1.0
    assert found.tokens_per_second == Spread(2.0, 2.0, 2.0)
    assert found.threads == torch.get_num_threads()


def test_rates_turn_the_spread_round():
    assert Spread(2.0, 1.0, 4.0).rate(8) == Spread(4.0, 2.0, 8.0)


@pytest.mark.parametrize(
    ("prompts", "tokens", "repeats", "message"),
    [
        ([[1] * 60], 10, 1, "60 tokens of prompt and 10"),
        ([], 4, 1, "no prompt"),
        ([[1]], 1, 1, "tokens = 1"),
        ([[1]], 4, 0, "repeats = 0"),
    ],
)
def test_impossible_decoding_is_refused(prompts, tokens, repeats, message):
    with pytest.raises(RequestError, match=message):
        decode_speed(tiny.model("llama"), prompts, tokens, repeats)


def test_train_speed_trains_but_leaves_the_model_as_it_was(monkeypatch):
    model = tiny.model("gpt2")
    model.transformer.wte.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    updates = []
    plain_step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: updates.append(self) or plain_step(self))
    found = train_speed(model, torch.randint(0, 96, (3, 8)), steps=4)
    assert len(updates) == 4 + speed._WARMUP_STEPS
    state = updates[0].state
    assert state and all(torch.isfinite(values["exp_avg"]).all() for values in state.values())
    assert any(values["exp_avg"].abs().sum() > 0 for values in state.values())
    assert found.tokens == 24 and found.step.p20 <= found.step.median <= found.step.p80
    assert found.tokens_per_second.median == pytest.approx(24 / found.step.median)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


def test_impossible_training_is_refused():
    model = tiny.model("gpt2")
    for batch, message in ((torch.ones(4, dtype=torch.long), "shape"), (torch.ones(2, 1, dtype=torch.long), "shape")):
        with pytest.raises(RequestError, match=message):
            train_speed(model, batch)
    with pytest.raises(RequestError, match="steps = 0"):
        train_speed(model, torch.ones(1, 4, dtype=torch.long), steps=0)
    with pytest.raises(RequestError, match="trainable"):
        train_speed(model.requires_grad_(False), torch.ones(1, 4, dtype=torch.long))


def test_speed_says_how_the_model_was_run():
    found = decode_speed(tiny.model("llama"), [[5, 6]], tokens=2, repeats=1, backend="modules")
    assert (found.path.backend, found.path.reason) == ("modules", "asked for")


def test_sequences_beyond_the_context_are_refused():
    with pytest.raises(RequestError, match="context of 64"):
        train_speed(tiny.model("gpt2"), torch.ones(1, 65, dtype=torch.long))
