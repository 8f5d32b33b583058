"""Objectives against values worked out by hand in float64, and reward models that learn."""

import copy
import math

import pytest
import torch
import transformers

from hayless.core.errors import NotSupported, RequestError
from hayless.core.registry import configure, method_of
from hayless.data.batches import IGNORED, Batch
from tests import tiny
from tests.train import source
from tests.train.conftest import one_thread  # noqa: F401


def objective(name):
    config = configure(name)
    return method_of(config).load()(config)


def by_hand(model, batch):
    """Σ −log p(target), one position at a time, each document run alone; and how many of them are likeliest."""
    total, right, count = 0.0, 0, 0
    for row in range(len(batch.input_ids)):
        for segment in range(int(batch.segments[row].max()) + 1):
            mine = batch.segments[row] == segment
            logits = model(batch.input_ids[row, mine][None]).logits[0].double()
            for scores, target in zip(logits.tolist(), batch.targets[row, mine].tolist(), strict=True):
                if target != IGNORED:
                    total += math.log(sum(math.exp(score) for score in scores)) - scores[target]
                    right += scores[target] == max(scores)
                    count += 1
    return total, right, count


@pytest.mark.parametrize("name", ["lm", "sft"])
def test_likelihoods_by_hand(name):
    model = tiny.model("llama").double()
    batch = source.batch([[5, 4], [9], [2]], 12, seed=5, answers=name == "sft")
    with torch.no_grad():
        # Some targets are what the model would say, so that accuracy is not 0.
        likeliest = model(batch.input_ids).logits.argmax(-1)
        batch.targets[1] = torch.where(batch.targets[1] != IGNORED, likeliest[1], IGNORED)
        total, right, count = by_hand(model, batch)
        loss = objective(name).loss(model, batch)
    assert loss.total.dtype == torch.float64
    assert float(loss.total) == pytest.approx(total, rel=1e-6)
    assert objective(name).units(batch) == count
    if name == "sft":
        assert count == 11 and right >= 5
        assert int(loss.metrics["token_accuracy"]) == right
    else:
        assert count == 20 and not loss.metrics


def test_sft_sees_nothing_of_masked_targets():
    model = tiny.model("llama")
    batch = source.batch([[9]], 9, seed=5, answers=True)
    batch.targets.fill_(IGNORED)
    loss = objective("sft").loss(model, batch)
    assert float(loss.total.detach()) == 0 and objective("sft").units(batch) == 0
    loss.total.backward()
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_logits_are_summed_in_float32(dtype):
    loss = objective("lm").loss(tiny.model("llama").to(dtype), source.batch([[9]], 9))
    assert loss.total.dtype == torch.float32


def reward_model(name="llama"):
    config = tiny.config(name)
    config.num_labels = 1
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def pairs(seed=0, width=12):
    return source.batch([[12], [7], [3], [9]], width, seed=seed)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "qwen2"])
def test_reward_by_hand(name):
    model = reward_model(name).double()
    batch = pairs()
    with torch.no_grad():
        scores = []
        for row, length in enumerate((12, 7, 3, 9)):
            hidden = model.base_model(batch.input_ids[row, :length][None]).last_hidden_state
            scores.append(float(model.score(hidden)[0, -1, 0]))
        loss = objective("reward").loss(model, batch)
    total = sum(math.log(1 + math.exp(lost - won)) for won, lost in ((scores[0], scores[1]), (scores[2], scores[3])))
    # Scores are read in float32.
    assert float(loss.total) == pytest.approx(total, rel=1e-6)
    assert objective("reward").units(batch) == 2
    wins = (scores[0] > scores[1]) + (scores[2] > scores[3])
    assert float(loss.metrics["pairwise_accuracy"]) == wins


def test_reward_reads_the_last_real_token_even_where_padding_occurs_in_the_text():
    """Padding's token id inside the text, which misleads pooling by id, changes nothing about where it is read."""
    model = reward_model()
    batch = pairs()
    changed = copy.deepcopy(batch)
    changed.input_ids[0, 11] = model.config.pad_token_id
    with torch.no_grad():
        hidden = model.base_model(changed.input_ids[:1]).last_hidden_state
        lost = model.score(model.base_model(batch.input_ids[1:2, :7]).last_hidden_state)[0, -1, 0]
        expected = -torch.nn.functional.logsigmoid(model.score(hidden)[0, 11, 0] - lost)
        found = objective("reward").loss(model, source.rows(changed, 0, 2)).total
    torch.testing.assert_close(found, expected)


def test_a_tie_counts_one_half():
    model = reward_model()
    with torch.no_grad():
        model.score.weight.zero_()
        loss = objective("reward").loss(model, pairs())
    assert float(loss.metrics["pairwise_accuracy"]) == 1.0
    assert float(loss.total) == pytest.approx(2 * math.log(2))


def test_reward_overfits_one_batch(tmp_path):
    class Pairs(source.Random):
        def whole(self, step):
            return pairs(seed=1)

    run = source.trainer(
        tmp_path,
        model=reward_model(),
        objective=configure("reward"),
        batches=Pairs(micro=2),
        validation=[pairs(seed=1)],
        steps=40,
        log_every=1,
    )
    result = run.run()
    lines = source.lines(tmp_path, "train")
    assert result.loss < 0.2 * lines[0]["loss"] and lines[-1]["pairwise_accuracy"] == 1.0
    assert source.lines(tmp_path, "validation")[0]["pairwise_accuracy"] == 1.0


def test_reward_refuses_rows_that_are_no_pairs_and_models_without_a_score():
    with pytest.raises(RequestError, match="3 sequences is not made of pairs"):
        objective("reward").units(source.rows(pairs(), 0, 3))
    with pytest.raises(NotSupported, match=r"model\.task: reward"):
        objective("reward").loss(tiny.model("llama"), pairs())


def test_a_loss_does_not_depend_on_padding():
    model = tiny.model("llama").double()
    short, long = source.batch([[5], [3]], 5, seed=1), source.batch([[5], [3]], 11, seed=1)
    with torch.no_grad():
        one, other = (objective("lm").loss(model, batch).total for batch in (short, long))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=0)
    assert isinstance(short, Batch)
