"""What is compiled of a model, and what that keeps for the backward pass."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from hayless.core.families import family_of
from hayless.train.blocks import blocks, compiled
from tests import tiny


def test_compiled_blocks_keep_what_products_need_and_no_gate(monkeypatch):
    """Of a Llama: what enters, both norms' inputs, q, k, v and what is attended, gate and up."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    model = tiny.model("llama").train()
    config, block = model.config, blocks(model)[0]
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    tokens = 2 * 24
    ids = torch.arange(tokens).view(2, -1) % config.vocab_size
    kept: dict[int, int] = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    x = model.model.embed_tokens(ids).detach().requires_grad_()
    positions = model.model.rotary_emb(x, torch.arange(ids.shape[1])[None])
    with compiled(model), saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x, position_embeddings=positions, attention_mask=None)
    width, narrow = config.hidden_size, config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    needed = tokens * (4 * width + 2 * narrow + 2 * config.intermediate_size)
    small = tokens * (config.num_attention_heads + 2) + sum(each.numel() for each in positions)
    assert sum(kept.values()) <= needed + small


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_the_norm_behind_the_blocks_is_compiled_too(monkeypatch, family):
    found = []
    monkeypatch.setattr(torch, "compile", lambda forward: found.append(forward.__self__) or forward)
    model = tiny.model(family)
    norm = model.get_submodule(family_of(family).PATHS.final_norm)
    with compiled(model):
        assert found == [*blocks(model), norm] and "forward" in vars(norm)
    assert "forward" not in vars(norm)
