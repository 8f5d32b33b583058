"""The setting `attention`: what it comes to, is said, lasts as long as training, and changes rounding only."""

from __future__ import annotations

import pytest
import torch

from hayless.core.errors import NotSupported, RequestError
from hayless.core.registry import configure
from hayless.model.attention import VARLEN, attending
from hayless.train.attention import varlen
from hayless.train.forward import model_inputs
from tests import tiny
from tests.train import source

FAMILIES = ("llama", "gpt2", "opt", "gpt_neox", "mixtral")


def said(folder) -> list[str]:
    return [line["message"] for line in source.lines(folder, "event")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_by_lengths_is_the_run_under_masks(tmp_path, family):
    """Checkpointed, in micro-batches, validated: the same losses and norms to rounding."""
    found = []
    for attention in ("sdpa", "varlen"):
        model = tiny.model(family)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        run = source.trainer(
            tmp_path / attention,
            model=model,
            attention=attention,
            optimizer=configure("sgd", learning_rate=0.2),
            memory=[configure("checkpointing")],
            batches=source.Random(micro=2),
            validation=[source.batch([[5, 1, 3], [12]], 12, seed=9)],
            validate_every=3,
            steps=3,
            log_every=1,
        )
        result = run.run()
        assert model.config._attn_implementation == "sdpa"
        assert said(tmp_path / attention) == [f"Attention: {attention} (as asked for)."]
        found.append((result.validation_loss, source.lines(tmp_path / attention, "train")))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)


def test_it_may_change_when_a_run_goes_on(tmp_path):
    class Stops(source.Random):
        def whole(self, step):
            if step == 4:
                raise KeyError("stopped")
            return super().whole(step)

    with pytest.raises(KeyError):
        source.trainer(tmp_path, batches=Stops(), attention="varlen", checkpoint_every=2).run()
    source.trainer(tmp_path, attention="eager", checkpoint_every=2).run()
    asked = [f"Attention: {name} (as asked for)." for name in ("varlen", "eager")]
    assert said(tmp_path) == [asked[0], "Going on from step 4.", asked[1]]


def test_auto_says_why_and_leaves_what_was_put_there(tmp_path):
    source.trainer(tmp_path / "auto", steps=1).run()
    assert said(tmp_path / "auto") == ["Attention: sdpa (varlen on cpu is a loop over documents)."]
    model = tiny.model("llama")
    model.set_attn_implementation("eager")
    source.trainer(tmp_path / "own", model=model, steps=1).run()
    assert said(tmp_path / "own") == ["Attention: eager (the model's own)."]
    with attending(model, "other", lambda *arguments, **options: None):
        with pytest.raises(RequestError, match="attention = 'sdpa' is not possible"):
            source.trainer(tmp_path / "other", model=model, attention="sdpa", steps=1).run()
        assert model.config._attn_implementation == "other"


def test_encoders_are_refused_by_name(tmp_path):
    with pytest.raises(NotSupported, match="bert is no decoder"):
        source.trainer(tmp_path, model=tiny.model("bert"), attention="varlen", steps=1).run()


def test_samples_and_padded_rows_see_what_sdpa_sees():
    """Without lengths the masks of transformers hold: padding on the left, positions that restart, a cache."""
    model = tiny.model("llama")
    ids = torch.randint(3, 96, (2, 9))
    padded = torch.ones_like(ids)
    padded[0, :4] = 0
    restarted = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]]).expand(2, -1)
    calls = [{"attention_mask": padded}, {"position_ids": restarted, "use_cache": False}]

    def results() -> list[torch.Tensor]:
        with torch.no_grad():
            decoded = model.generate(ids, attention_mask=padded, max_new_tokens=5, do_sample=False, pad_token_id=0)
            return [decoded, *(model(input_ids=ids, **call).logits for call in calls)]

    expected = results()
    with attending(model, VARLEN, varlen):
        found = results()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_lengths_under_another_attention_fail_rather_than_leak():
    model = tiny.model("llama")
    batch = source.batch([[5, 4]], 12)
    with attending(model, VARLEN, varlen):
        inputs = model_inputs(model, batch)
    with pytest.raises(RuntimeError):
        model(**inputs)
