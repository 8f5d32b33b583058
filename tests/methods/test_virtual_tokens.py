"""Prefixes and soft prompts: against the papers and PEFT, with every kind of cache, packed rows and checkpointing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import StaticCache

from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.registry import configure, method_of
from hayless.methods.adapters.prefix import reference as prefix_reference
from hayless.methods.adapters.prompt import reference as prompt_reference
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import Context, apply
from tests import tiny
from tests.methods.running import batch, check_held, logits, losses, predicted

NAMES = ("llama", "llama-tied", "qwen2", "qwen3", "gpt2", "opt", "opt-350m", "gpt_neox", "mixtral", "gemma")
CONFIGS = {
    "prefix": configure("prefix", tokens=3, projection=None),
    "projected": configure("prefix", tokens=3, projection=16),
    "prompt": configure("prompt", tokens=3),
}


def ready(name: str, config: Any) -> Any:
    """A model with virtual tokens that matter."""
    model = tiny.model(name)
    apply(model, [config])
    torch.manual_seed(1)
    for parameter in model.get_submodule("virtual_tokens").parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("which", CONFIGS)
@pytest.mark.parametrize("name", NAMES)
def test_they_are_as_predicted_and_train_alone(name: str, which: str) -> None:
    model, config = tiny.model(name), CONFIGS[which]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before = logits(model)
    (change,) = apply(model, [config])
    ledger = predicted(model, [config])
    check_held(model, ledger)
    assert change.figures["trainable"] == ledger.trainable
    started = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    losses(model, steps=2)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    assert all(not torch.equal(dict(model.named_parameters())[n], p) for n, p in started.items())
    assert not torch.equal(logits(model), before)
    method_of(config).load().remove(model, config)
    assert torch.equal(logits(model), before) and all(p.requires_grad for p in model.parameters())


def test_the_prefix_is_the_papers() -> None:
    model = ready("llama", CONFIGS["projected"])
    tokens: Any = model.get_submodule("virtual_tokens")
    inner, outer = ((layer.weight, layer.bias) for layer in (tokens.inner, tokens.outer))
    made = prefix_reference.projected(tokens.embedding.weight, inner, outer)
    torch.testing.assert_close(tokens.folded(), made)
    seen: list[tuple[Tensor, ...]] = []
    attention = model.model.layers[1].self_attn
    attention.o_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    attend = tokens.attend
    tokens.attend = lambda module, q, k, v, mask, options: (
        (seen.append((q, k, v)) if module is attention else None) or attend(module, q, k, v, mask, options)
    )
    with torch.no_grad():
        model(**batch(model))
    (q, k, v), (mixed,) = seen
    dims, n = model.config, 3
    head = mixed.unflatten(2, (dims.num_attention_heads, -1))
    layers = made.view(n, dims.num_hidden_layers, 2, dims.num_key_value_heads, -1)
    groups = dims.num_attention_heads // dims.num_key_value_heads
    for number in range(dims.num_attention_heads):
        shared = number // groups
        expected = prefix_reference.attention(
            q[1, number], k[1, shared], v[1, shared], layers[:, 1, 0, shared], layers[:, 1, 1, shared]
        )
        torch.testing.assert_close(head[1, :, number], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_the_soft_prompt_is_the_papers(name: str) -> None:
    model, plain = ready(name, CONFIGS["prompt"]), tiny.model(name)
    prompt = model.get_submodule("virtual_tokens").embedding.weight.detach()
    with torch.no_grad():
        embedded = plain.get_input_embeddings()(batch(plain)["input_ids"])
        expected = prompt_reference.logits(lambda x: plain(inputs_embeds=x).logits, prompt, embedded)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", CONFIGS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "opt", "gpt_neox"])
def test_peft_reads_ours_and_we_read_pefts(name: str, which: str, tmp_path: Path) -> None:
    model = ready(name, CONFIGS[which])
    save_model(tiny.model(name), tmp_path / "base")
    save_model(model, tmp_path / "ours", base=tmp_path / "base")
    size = (tmp_path / "ours" / "adapter_model.safetensors").stat().st_size
    assert size == predicted(model, [CONFIGS[which]]).file_bytes()["adapter"]
    theirs = peft.PeftModel.from_pretrained(tiny.model(name), tmp_path / "ours").eval()
    with torch.no_grad():
        found = theirs(**batch(model)).logits[:, -batch(model)["input_ids"].shape[1] :]
    torch.testing.assert_close(logits(model), found, rtol=1e-4, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    part = method_of(CONFIGS[which]).load()
    read = part.read(json.loads((tmp_path / "theirs" / "adapter_config.json").read_text()))
    again = tiny.model(name)
    part.restore(again, read)
    part.load(again, read, load_file(tmp_path / "theirs" / "adapter_model.safetensors"))
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-5)
    back = load_model(tmp_path / "ours")
    torch.testing.assert_close(logits(back), logits(model), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(copy.deepcopy(back)), logits(back))


@pytest.mark.parametrize("which", ["projected", "prompt"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_any_cache_continues_as_the_whole_text_does(name: str, which: str) -> None:
    model = ready(name, CONFIGS[which])
    ids = batch(model)["input_ids"]
    whole = logits(model)
    with torch.no_grad():
        for cache in (None, StaticCache(model.config, max_cache_len=16)):
            first = model(input_ids=ids[:, :4], use_cache=True, past_key_values=cache)
            rest = [first.logits]
            past = first.past_key_values
            for place in range(4, ids.shape[1]):
                out = model(input_ids=ids[:, place : place + 1], past_key_values=past, use_cache=True)
                rest.append(out.logits)
            torch.testing.assert_close(torch.cat(rest, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["projected", "prompt"])
def test_padding_and_checkpointing_change_nothing(which: str) -> None:
    model = ready("llama", CONFIGS[which])
    ids = batch(model)["input_ids"]
    padded = torch.cat((ids.new_zeros(2, 3), ids), 1)
    mask = torch.cat((ids.new_zeros(2, 3), ids.new_ones(ids.shape)), 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-5)
    gradients = []
    for again in (False, True):
        model.train().zero_grad()
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_text_starts_the_prompt_and_a_seed_draws_it() -> None:
    class Words:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": [5 + len(word) for word in text.split()]}

    model = tiny.model("llama")
    apply(model, [configure("prompt", tokens=3, text="a horse")], Context(tokenizer=Words()))  # type: ignore[arg-type]
    table = model.get_input_embeddings().weight
    assert torch.equal(model.get_submodule("virtual_tokens").embedding.weight, table[[6, 10, 6]])
    drawn = []
    for seed in (0, 0, 1):
        other = tiny.model("llama")
        apply(other, [configure("prompt", tokens=3)], Context(seed=seed))
        drawn.append(other.get_submodule("virtual_tokens").embedding.weight.detach())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with pytest.raises(RequestError, match="tokenizer"):
        apply(tiny.model("llama"), [configure("prompt", text="a horse")])


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_what_is_refused(method: str) -> None:
    config = configure(method)
    for name, said in (("t5", "decoder"), ("bert", "decoder"), ("gemma2", "caps"), ("gemma3", "window")):
        with pytest.raises(NotSupported, match=said):
            apply(tiny.model(name), [config])
    model = tiny.model("llama")
    apply(model, [config])
    part = method_of(config).load()
    with pytest.raises(RequestError, match="adapter already"):
        part.restore(model, config)
    with pytest.raises(NotSupported, match="cannot be merged"):
        part.merge(model, config)
    with pytest.raises(NotSupported, match="num_transformer_submodules"):
        part.read({"peft_type": method_of(config).peft_type, "num_virtual_tokens": 3, "num_transformer_submodules": 2})
    with pytest.raises(FileDamaged, match="num_virtual_tokens"):
        part.read({"peft_type": method_of(config).peft_type})
    with pytest.raises(RequestError, match="tokens"):
        configure(method, tokens=0)
