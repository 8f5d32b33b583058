"""LoRA's steps begin with the same adapters, and one that leaves some out is not timed; loads are watched."""

from __future__ import annotations

import torch

from hayless.study.bench.gate import plain, rejected
from tests.benchmarks.test_specs import SPECS

_SHAPE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


def test_steps_of_lora_are_the_same_and_one_without_branches_is_not(monkeypatch):
    monkeypatch.syspath_prepend(str(SPECS))
    from parts.lora_step import LoraStep, same
    from parts.training import Training

    step = Training(_SHAPE, rows=2, length=16, precision="bf16")
    ours = LoraStep(step, 4, packed=True, recomputed=True)
    answers = {
        "hayless": ours.hayless(),
        "pages": ours.hayless(memory=["fused_kernels", "chunked_loss"], optimizer="paged"),
        "no branches": step.hayless(),
    }
    assert rejected({name: plain(one.answer()) for name, one in answers.items()}, same).keys() == {"no branches"}
    beside = LoraStep(step, 4)
    answers = {"peft": beside.peft(), "16 bits": beside.peft(torch.bfloat16), "hayless": beside.hayless()}
    found = {name: plain(one.answer()) for name, one in answers.items()}
    assert found["peft"]["gradient norms"].shape == (3,)
    assert not rejected(found, same)


def test_loads_pack_every_matrix_and_are_watched(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SPECS))
    from parts import loading

    monkeypatch.setattr(loading, "_CACHE", tmp_path)
    shards = loading.Loading("shape", _SHAPE, "cpu", shard_bytes=50_000)
    loading.write(shards)
    assert len(list(shards.folder.glob("*.safetensors"))) > 1
    ready = shards.hayless()
    answer = ready.answer()
    assert answer["mean magnitudes"].shape == (14, 3)
    ready.run()
    (figure,) = ready.figures()
    assert (figure.metric, figure.unit) == (loading.ANONYMOUS, "B")
