"""Models from a config alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hayless.core.errors import NotSupported, RequestError
from hayless.model.build import build_model, empty_model
from hayless.model.load import check_tokenizer, load_model, load_tokenizer
from hayless.model.save import save_model
from tests import tiny
from tests.methods.running import logits
from tests.model.saving import check_same, tokenizer

LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TRAINED = Path(__file__).parents[3] / "shared" / "models" / "draft"


def test_the_seed_decides() -> None:
    state = torch.get_rng_state()
    first, second = build_model(LLAMA, seed=3), build_model(LLAMA, seed=3)
    check_same(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(build_model(LLAMA, seed=4).lm_head.weight, first.lm_head.weight)
    assert not first.training and first.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_narrow_model_runs(name: str, dtype: str) -> None:
    model = build_model(tiny.model(name).config.to_dict(), dtype=dtype)
    assert torch.isfinite(logits(model)).all()
    frequencies = [value for key, value in model.named_buffers() if key.endswith("inv_freq")]
    assert all(value.dtype == torch.float32 for value in frequencies)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_names_without_memory(name: str) -> None:
    empty, model = empty_model(tiny.model(name).config.to_dict()), tiny.model(name)
    assert all(value.is_meta for value in empty.parameters())
    assert {key: value.shape for key, value in empty.named_parameters()} == {
        key: value.shape for key, value in model.named_parameters()
    }


def test_wrong_requests() -> None:
    for fields, error, words in (
        ({"gradient_magic": 64}, RequestError, "no field 'gradient_magic'"),
        ({"hiden_size": 64}, RequestError, "Did you mean 'hidden_size'"),
        ({"num_attention_heads": 5}, RequestError, "num_attention_heads = 5"),
        ({"num_key_value_heads": 3}, RequestError, "num_key_value_heads = 3"),
        ({"vocab_size": 0}, RequestError, "vocab_size = 0"),
        ({"hidden_act": "silly"}, RequestError, "silly"),
        ({"rope_parameters": {"rope_type": "nowhere"}}, RequestError, "nowhere"),
        ({"quantization_config": {"quant_method": "awq"}}, NotSupported, "awq"),
        ({"model_type": "mamba"}, NotSupported, "mamba"),
        ({"architectures": ["LlamaForSequenceClassification"]}, RequestError, "reward"),
    ):
        with pytest.raises(error, match=words):
            build_model({**LLAMA, **fields})
    with pytest.raises(RequestError, match="dtype = 'int8'"):
        build_model(LLAMA, dtype="int8")
    for device in ("cuda:99", "nowhere"):
        with pytest.raises(RequestError, match=f"device = '{device}'"):
            build_model(LLAMA, device=device)
    for name in ("bert", "t5"):
        with pytest.raises(NotSupported, match="decoders"):
            build_model(tiny.model(name).config.to_dict(), task="reward")


@pytest.mark.skipif(not TRAINED.is_dir(), reason="the trained models lie beside the repository, and are not there")
def test_a_trained_checkpoint(tmp_path: Path) -> None:
    model, words = load_model(TRAINED), load_tokenizer(TRAINED)
    check_tokenizer(model, words)
    with pytest.raises(RequestError, match="does not match"):
        check_tokenizer(tiny.model("llama"), words)
    check_tokenizer(model, tokenizer())
    save_model(model, tmp_path / "model", tokenizer=words, shard_bytes=10**6)
    check_same(model, load_model(tmp_path / "model"))
    text = "def load(path):\n    return 1  # ünïcode\n"
    assert load_tokenizer(tmp_path / "model").encode(text) == words.encode(text)
