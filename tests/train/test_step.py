"""One update: equal to plain torch, independent of micro-batches, refusing what is not finite."""

import math

import pytest
import torch
from torch.nn import functional as F

from hayless.core.errors import RequestError, WorkError
from hayless.core.registry import configure, method_of
from hayless.data.batches import IGNORED, attention_mask
from hayless.model.attention import VARLEN, attending
from hayless.train.attention import varlen
from tests import tiny
from tests.train import source


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama-tied"])
def test_five_steps_equal_a_bare_torch_loop_bit_for_bit(tmp_path, name):
    ours, bare = tiny.model(name), tiny.model(name).train()
    torch.manual_seed(0)
    vectors = [p for n, p in bare.named_parameters() if p.ndim < 2 or "embed" in n or "wte" in n or "wpe" in n]
    matrices = [p for p in bare.parameters() if not any(p is v for v in vectors)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for step in range(5):
        batch = source.Random().whole(step)
        mask = attention_mask(batch.segments) if (batch.segments > 0).any() else None
        positions = batch.position_ids if mask is not None else None
        logits = bare(batch.input_ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED).backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    source.trainer(tmp_path, model=ours, steps=5).run()
    assert source.same(source.weights(ours), source.weights(bare))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulation_equals_the_whole_batch(tmp_path, size):
    """Seven uneven, partly packed rows: micro-batches of 2 and 4 leave a partial last one."""
    found = []
    for micro in (None, size):
        # SGD: Adam's first steps would hide a wrong scale.
        run = source.trainer(
            tmp_path / str(micro),
            batches=source.Random(rows=7, micro=micro),
            optimizer=configure("sgd", learning_rate=0.5),
            clip_norm=None,
            log_every=1,
        )
        result = run.run()
        found.append((source.weights(run.model), result.loss, source.lines(tmp_path / str(micro), "train")))
    for name, whole in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], whole, rtol=1e-5, atol=1e-6)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-6)
    for one, other in zip(found[0][2], found[1][2], strict=True):
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-5)
        assert one["trained_tokens"] == other["trained_tokens"]


def test_clipping_bounds_the_move(tmp_path):
    model = tiny.model("llama")
    before = source.weights(model)
    sgd = configure("sgd", learning_rate=1.0)
    source.trainer(tmp_path, model=model, steps=1, clip_norm=0.01, optimizer=sgd, log_every=1).run()
    moved = math.sqrt(
        sum(float((after - before[name]).square().sum()) for name, after in source.weights(model).items())
    )
    (line,) = source.lines(tmp_path, "train")
    assert line["gradient_norm"] > 0.1
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_with_step_documents_and_advice(tmp_path):
    class Poisoned(source.Random):
        def whole(self, step):
            batch = super().whole(step)
            if step == 4:
                batch.input_ids[1, 0] = 0
            return batch

    model = tiny.model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = math.nan
    with pytest.raises(
        WorkError, match=r"loss of step 5 is not finite \(documents doc-4-0-0.*\n.*learning_rate"
    ) as error:
        source.trainer(tmp_path, model=model, batches=Poisoned(), checkpoint_every=2).run()
    assert "Traceback" not in str(error.value)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000002", "step-00000004"]


def test_only_the_documents_of_the_bad_micro_batch_are_named(tmp_path):
    class OneBad(source.Random):
        def whole(self, step):
            batch = super().whole(step)
            batch.input_ids[2, 0] = 0
            return batch

    model = tiny.model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = math.nan
    before = source.weights(model)
    with pytest.raises(WorkError, match=r"\(documents doc-0-2-0\)"):
        source.trainer(tmp_path, model=model, batches=OneBad(rows=3, micro=1)).run()
    after = source.weights(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if "embed" not in name)


def test_a_batch_without_anything_to_learn_is_refused(tmp_path):
    class Nothing(source.Random):
        def whole(self, step):
            batch = super().whole(step)
            batch.targets.fill_(IGNORED)
            return batch

    with pytest.raises(RequestError, match="no token to train on"):
        source.trainer(tmp_path, batches=Nothing(), objective=configure("sft")).run()


def test_a_model_without_trained_weights_is_refused(tmp_path):
    model = tiny.model("llama").requires_grad_(False)
    with pytest.raises(RequestError, match="No parameter"):
        source.trainer(tmp_path, model=model).run()


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "mixtral", "gemma3", "qwen3", "mistral"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
def test_packed_documents_do_not_see_each_other(name, attention):
    """Loss and gradients of packed rows equal those of the same documents in rows of their own."""
    found = []
    for lengths, width in (([[5, 4, 3], [1, 9]], 12), ([[5], [4], [3], [1], [9]], 9)):
        # grouped_mm, which experts use, has no float64.
        model = tiny.model(name) if name == "mixtral" else tiny.model(name).double()
        model.config.sliding_window = 3 if hasattr(model.config, "sliding_window") else None
        for module in model.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = 3
        batch = source.batch(lengths, width, seed=3)
        config = configure("lm")
        with attending(model, VARLEN, varlen) if attention == "varlen" else attending(model, attention):
            loss = method_of(config).load()(config).loss(model, batch).total
            loss.backward()
        found.append({"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}})
    assert found[0].keys() == found[1].keys()
    for entry, value in found[0].items():
        torch.testing.assert_close(value, found[1][entry], rtol=1e-5, atol=1e-7)
