"""Saved models of every kind come back the same to the bit, and nothing else is ever replaced or lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hayless.core.compose import predict
from hayless.core.errors import NotSupported, RequestError
from hayless.core.families import ledger_of
from hayless.core.registry import configure
from hayless.measure.files import file_bytes
from hayless.model.anatomy import dims_of_model
from hayless.model.build import build_model
from hayless.model.checksums import NAME, verify
from hayless.model.load import load_model, load_tokenizer
from hayless.model.merging import merge_adapters
from hayless.model.save import save_model
from hayless.model.tensors import INDEX
from hayless.model.transform import apply, record
from tests import tiny
from tests.methods.running import logits, lora_of, losses
from tests.model.saving import check_same, tokenizer

KMEANS = configure("kmeans", bits=2, iterations=2)
MAGNITUDE = configure("magnitude", sparsity=0.5)
DECODERS = ("llama", "gpt2", "opt-350m", "gpt_neox", "mixtral")


def reward_model(name: str) -> PreTrainedModel:
    """A model of the tiny shape `name` with a score head."""
    return build_model(tiny.model(name).config.to_dict(), task="reward")


@pytest.mark.parametrize("name", tiny.NAMES)
def test_ordinary_folders(name: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    save_model(model, tmp_path / "model")
    check_same(model, load_model(tmp_path / "model"))
    model.save_pretrained(tmp_path / "theirs")
    # Names, shapes and bytes are those that transformers itself writes.
    theirs, ours = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "model"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_narrow_and_sharded(name: str, dtype: str, tmp_path: Path) -> None:
    model = build_model(tiny.model(name).config.to_dict(), dtype=dtype)
    save_model(model, tmp_path / "model", shard_bytes=20_000)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 1 and (tmp_path / "model" / INDEX).is_file()
    assert file_bytes(tmp_path / "model").weights == ledger_of(dims_of_model(model)).file_bytes(20_000)["model"]
    check_same(model, load_model(tmp_path / "model"))


@pytest.mark.parametrize("name", DECODERS)
def test_packed_and_sharded(name: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    apply(model, [KMEANS])
    save_model(model, tmp_path / "model", shard_bytes=5_000)
    predicted = predict(ledger_of(dims_of_model(model)), [KMEANS]).file_bytes(5_000)
    assert file_bytes(tmp_path / "model").weights == predicted["model"]
    check_same(model, load_model(tmp_path / "model"))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("methods", [(), (MAGNITUDE,), (MAGNITUDE, KMEANS)], ids=["plain", "zeros", "packed"])
def test_reward_models(name: str, methods: tuple, tmp_path: Path) -> None:
    model = reward_model(name)
    apply(model, methods)
    save_model(model, tmp_path / "model")
    back = load_model(tmp_path / "model", task="reward")
    check_same(model, back)
    assert record(back) == list(methods)
    with pytest.raises(RequestError, match="reward"):
        load_model(tmp_path / "model")


def test_a_language_model_gets_a_score_head(tmp_path: Path) -> None:
    save_model(tiny.model("llama"), tmp_path / "model")
    first, second = (load_model(tmp_path / "model", task="reward") for _ in range(2))
    check_same(first, second)
    assert first.score.weight.shape == (1, 32) and first.score.weight.std() > 0
    save_model(first, tmp_path / "reward")
    check_same(first, load_model(tmp_path / "reward", task="reward"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("packed", [True, False])
def test_ties_are_kept(name: str, tied: bool, packed: bool, tmp_path: Path) -> None:
    model = build_model({**tiny.model(name).config.to_dict(), "tie_word_embeddings": tied})
    apply(model, [KMEANS] if packed else [])
    save_model(model, tmp_path / "model")
    back = load_model(tmp_path / "model")
    check_same(model, back)
    assert (back.get_output_embeddings().weight is back.get_input_embeddings().weight) is tied


@pytest.mark.parametrize("name", ["llama-tied", "t5", "mixtral"])
def test_a_saved_dtype(name: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    apply(model, [KMEANS])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_model(model, tmp_path / "model", dtype="bfloat16")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    back = load_model(tmp_path / "model")
    assert back.dtype == torch.bfloat16
    for key, value in back.state_dict().items():
        assert torch.equal(value, before[key].to(value.dtype)), key
    narrow = ledger_of(dims_of_model(model).with_dtype("bfloat16"))
    assert file_bytes(tmp_path / "model").weights == predict(narrow, [KMEANS]).file_bytes()["model"]
    if name == "t5":
        # Its feed-forward overflows in float16, so transformers keeps that in float32.
        save_model(tiny.model(name), tmp_path / "plain")
        for folder in (tmp_path / "model", tmp_path / "plain"):
            half = load_model(folder, dtype="float16")
            assert half.dtype == torch.float16
            assert half.decoder.block[1].layer[2].DenseReluDense.wo.weight.dtype == torch.float32
    wide = load_model(tmp_path / "model", dtype="float32")
    assert wide.dtype == torch.float32
    assert all(torch.equal(value, back.state_dict()[key].to(value.dtype)) for key, value in wide.state_dict().items())


def test_generation_config_and_tokenizer_are_kept(tmp_path: Path) -> None:
    for name, methods in (("plain", []), ("packed", [KMEANS])):
        model = tiny.model("llama")
        apply(model, methods)
        # Such a config is on the hub with more than one model; transformers refuses to save it.
        model.generation_config.update(temperature=0.5, do_sample=False, max_new_tokens=7)
        save_model(model, tmp_path / name, tokenizer=tokenizer())
        back = load_model(tmp_path / name)
        assert back.generation_config.temperature == 0.5 and back.generation_config.max_new_tokens == 7
        assert load_tokenizer(tmp_path / name).encode("w5 w9") == tokenizer().encode("w5 w9")


def test_transformers_reads_ordinary_folders(tmp_path: Path) -> None:
    model = tiny.model("mixtral")
    apply(model, [MAGNITUDE])
    save_model(model, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(theirs), logits(model))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("before", [(), (MAGNITUDE,), (MAGNITUDE, KMEANS)], ids=["plain", "zeros", "packed"])
@pytest.mark.parametrize("named", [True, False])
def test_adapters(name: str, before: tuple, named: bool, tmp_path: Path) -> None:
    model = tiny.model(name)
    apply(model, before)
    save_model(model, tmp_path / "base")
    apply(model, [lora_of(name, rank=3)])
    losses(model, steps=1)
    save_model(model, tmp_path / "adapter", base=tmp_path / "base" if named else None)
    back = load_model(tmp_path / "adapter")
    check_same(model.eval(), back)
    assert [config.method for config in record(back)] == [config.method for config in (*before, record(model)[-1])]
    assert {name for name, p in back.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }
    assert (tmp_path / "adapter" / "base").is_dir() is not named
    save_model(back, tmp_path / "adapter")
    check_same(model, load_model(tmp_path / "adapter"))


def test_peft_and_transformers_read_adapters(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny.model("llama")
    save_model(model, tmp_path / "base")
    apply(model, [lora_of("llama", rank=3, alpha=5)])
    losses(model, steps=1)
    save_model(model, tmp_path / "ours", base=tmp_path / "base")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-6)
    theirs.save_pretrained(tmp_path / "theirs")
    assert torch.equal(logits(load_model(tmp_path / "theirs")), logits(model))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-6)


def test_another_base_is_refused(tmp_path: Path) -> None:
    model = tiny.model("llama")
    save_model(model, tmp_path / "base")
    apply(model, [lora_of("llama")])
    save_model(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    # The same weights under other names of files are the same base.
    save_model(tiny.model("llama"), tmp_path / "base", shard_bytes=20_000)
    load_model(tmp_path / "adapter")
    save_model(tiny.model("llama", seed=1), tmp_path / "base")
    with pytest.raises(RequestError, match="not the base"):
        load_model(tmp_path / "adapter")


def test_adapters_of_reward_models(tmp_path: Path) -> None:
    save_model(tiny.model("llama"), tmp_path / "base")
    model = load_model(tmp_path / "base", task="reward")
    apply(model, [lora_of("llama")])
    with pytest.raises(RequestError, match="another head"):
        save_model(model, tmp_path / "adapter", base=tmp_path / "base")
    save_model(model, tmp_path / "adapter")
    check_same(model, load_model(tmp_path / "adapter", task="reward"))


def test_bases_that_are_none(tmp_path: Path) -> None:
    model = tiny.model("llama")
    save_model(model, tmp_path / "base")
    with pytest.raises(RequestError, match="this one has none"):
        save_model(model, tmp_path / "model", base=tmp_path / "base")
    apply(model, [MAGNITUDE, lora_of("llama")])
    with pytest.raises(RequestError, match=r"changed since \(magnitude\)"):
        save_model(model, tmp_path / "model", base=tmp_path / "base")
    with pytest.raises(RequestError, match="would be replaced"):
        save_model(model, tmp_path / "base", base=tmp_path / "base")
    with pytest.raises(RequestError, match="no folder"):
        save_model(model, tmp_path / "model", base=tmp_path / "nowhere")
    save_model(model, tmp_path / "adapter")
    with pytest.raises(RequestError, match="adapter itself"):
        save_model(model, tmp_path / "model", base=tmp_path / "adapter")
    assert not (tmp_path / "model").exists()
    check_same(tiny.model("llama"), load_model(tmp_path / "base"))


def test_merged_adapters_leave_an_ordinary_model(tmp_path: Path) -> None:
    model = tiny.model("llama")
    assert merge_adapters(model) == []
    apply(model, [lora_of("llama")])
    losses(model, steps=1)
    beside = logits(model)
    (change,) = merge_adapters(model)
    assert change.method == "lora" and record(model) == []
    torch.testing.assert_close(logits(model), beside, rtol=1e-5, atol=1e-5)
    save_model(model, tmp_path / "model")
    assert "hayless" not in json.loads((tmp_path / "model/config.json").read_text())
    check_same(model, load_model(tmp_path / "model"))


def test_what_would_not_come_back_is_refused(tmp_path: Path) -> None:
    mixed = tiny.model("llama")
    mixed.model.norm.bfloat16()
    with pytest.raises(RequestError, match=r"model\.norm\.weight is in bfloat16"):
        save_model(mixed, tmp_path / "model")
    save_model(mixed, tmp_path / "cast", dtype="float32")
    more = tiny.model("llama")
    more.model.layers[0].extra = nn.Linear(2, 2)
    with pytest.raises(NotSupported, match=r"layers\.0\.extra\.bias.*would be lost"):
        save_model(more, tmp_path / "model")
    untied = tiny.model("llama-tied")
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.clone())
    with pytest.raises(RequestError, match="are two tensors"):
        save_model(untied, tmp_path / "model")
    tied = tiny.model("llama")
    tied.lm_head.weight = tied.model.embed_tokens.weight
    with pytest.raises(RequestError, match="are one tensor"):
        save_model(tied, tmp_path / "model")
    with pytest.raises(RequestError, match="no values"):
        save_model(tiny.model("llama").to("meta"), tmp_path / "model")
    with pytest.raises(RequestError, match="float8"):
        save_model(tiny.model("llama"), tmp_path / "model", dtype="float8_e5m2")
    assert not (tmp_path / "model").exists()


def test_only_models_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RequestError, match="something else"):
        save_model(tiny.model("llama"), tmp_path)
    with pytest.raises(RequestError, match="is a file"):
        save_model(tiny.model("llama"), tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save_model(tiny.model("llama"), tmp_path / "empty")
    save_model(tiny.model("gpt2"), tmp_path / "empty")
    check_same(tiny.model("gpt2"), load_model(tmp_path / "empty"))


def test_receipts_are_added_later(tmp_path: Path) -> None:
    save_model(tiny.model("llama"), tmp_path / "model")
    (tmp_path / "model/README.md").write_text("receipt")
    (tmp_path / "model/receipt.png").write_bytes(b"picture")
    verify(tmp_path / "model")
    assert set(json.loads((tmp_path / "model" / NAME).read_text())["files"]) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
