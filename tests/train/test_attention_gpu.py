"""On a CUDA device: packed rows by their lengths against the same under masks, by what they compute and hold."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
import torch._dynamo.utils
import transformers

from hayless.core.cost import TrainShape, training_cost
from hayless.core.families import dims_of, ledger_of
from hayless.core.registry import configure, method_of
from hayless.methods.objectives.lm import METHOD as LM
from hayless.model.attention import VARLEN, attending
from hayless.train.attention import varlen
from hayless.train.forward import model_inputs
from tests import tiny
from tests.data.test_isolation import LENGTHS, documents, packed
from tests.train import source
from tests.train.test_resume import Fails, figures, final

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FAMILIES = ("llama", "mistral", "gemma3", "gpt2", "opt", "gpt_neox", "mixtral")


def model(family: str, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """A tiny model without dropout, which the kernel does not have, on the device."""
    config = tiny.config(family)
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    return type(tiny.model(family))(config).to("cuda", dtype).eval()


def said(folder) -> list[str]:
    return [line["message"] for line in source.lines(folder, "event")]


@pytest.mark.parametrize("precision", ["autocast", "fp16", "master", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_auto_takes_lengths_and_learns_as_under_masks(tmp_path, family, precision):
    found = []
    for attention in ("sdpa", "auto"):
        run = source.trainer(
            tmp_path / attention,
            model=model(family),
            attention=attention,
            precision=precision,
            optimizer=configure("sgd", learning_rate=0.2),
            memory=[configure("checkpointing")],
            batches=source.Random(micro=2),
            validation=[source.batch([[5, 1, 3], [12]], 12, seed=9)],
            steps=3,
            log_every=1,
        )
        result = run.run()
        found.append((result.validation_loss, source.lines(tmp_path / attention, "train")))
    assert said(tmp_path / "auto")[0] == "Attention: varlen (rows are packed)."
    assert found[1][0] == pytest.approx(found[0][0], rel=5e-3)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=5e-3)
        # float16's first scales may overflow: then a step has no norm.
        if one["gradient_norm"] is not None and other["gradient_norm"] is not None:
            assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=5e-2)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mixtral"])
def test_changing_one_document_changes_no_bit_of_another(family):
    trained = model(family, torch.bfloat16)

    def logits(tokens: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return trained(**model_inputs(trained, packed(tokens).to("cuda"))).logits[0]

    before = documents()
    segments = packed(before).segments[0]
    with attending(trained, VARLEN, varlen):
        first = logits(before)
        assert first.isfinite().all()
        for number in range(len(LENGTHS)):
            after = [tokens.clone() for tokens in before]
            after[number] = 3 + (after[number] - 3 + 17) % 93
            second = logits(after)
            others = (segments != number) & (segments >= 0)
            assert torch.equal(first[others.cuda()], second[others.cuda()])
            assert not torch.equal(first[(segments == number).cuda()], second[(segments == number).cuda()])


def test_repeats_its_bits_and_resumes_with_them(tmp_path):
    def make(folder, batches):
        options = {"precision": "bf16", "steps": 40, "checkpoint_every": 10, "log_every": 1, "deterministic": True}
        return source.trainer(folder, model=model("llama"), batches=batches, **options)

    make(tmp_path / "whole", Fails(period=-1)).run()
    Fails.failed.clear()
    with pytest.raises(KeyError):
        make(tmp_path / "stopped", Fails(period=25)).run()
    make(tmp_path / "stopped", Fails(period=25)).run()
    assert said(tmp_path / "stopped")[-1] == "Attention: varlen (rows are packed)."
    assert source.same(final(tmp_path / "whole", 40), final(tmp_path / "stopped", 40))
    assert figures(tmp_path / "whole") == figures(tmp_path / "stopped")


def test_compiled_once_for_all_numbers_of_documents(tmp_path):
    found = []
    for compile in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        options = {"precision": "bf16", "attention": "varlen", "steps": 6, "compile": compile}
        found.append(source.trainer(tmp_path / str(compile), model=model("llama"), **options).run().loss)
    assert found[1] == pytest.approx(found[0], rel=5e-3)
    # Once for the first number of documents, once for any.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("attention", ["varlen", "sdpa"])
def test_holds_what_is_predicted(attention):
    config = transformers.LlamaConfig(
        vocab_size=1024,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    )
    with torch.device("cuda"):
        large = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    batch = source.batch([[400, 1, 23, 500, 100]] * 8, 1024).to("cuda")
    objective = method_of(configure("lm")).load()(configure("lm"))

    def update() -> None:
        objective.loss(large, batch).total.backward()

    with attending(large, VARLEN, varlen) if attention == "varlen" else attending(large, attention):
        update()  # what libraries set up on first use stays
        large.zero_grad()
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        other = torch.cuda.memory_allocated() - sum(parameter.nbytes for parameter in large.parameters())
        update()
    peak = torch.cuda.max_memory_allocated() - other
    shape = TrainShape(8, 1024, precision="bf16", attention=attention)
    shape = replace(LM.predict_training(shape, configure("lm")), device="cuda")
    cost = training_cost(ledger_of(dims_of({**config.to_dict(), "dtype": "bfloat16"})), shape)
    expected = max(cost.phases[phase].total for phase in ("forward", "backward"))
    assert peak == pytest.approx(expected, rel=0.03)
