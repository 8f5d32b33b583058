"""Anatomies of loaded models: every matrix once, by its role; what is computed with them is what transformers does."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hayless.core.errors import NotSupported, RequestError
from hayless.core.registry import configure
from hayless.core.roles import BLOCK_LINEARS, Role
from hayless.model.anatomy import Anatomy, join_qkv, split_qkv
from hayless.model.transform import apply
from tests import tiny
from tests.model import hand

_ROLES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "out_proj": "o",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "fc1": "up", "fc2": "down",
    "c_attn": "qkv", "attn.c_proj": "o", "c_fc": "up", "mlp.c_proj": "down",
    "query_key_value": "qkv", "attention.dense": "o", "dense_h_to_4h": "up", "dense_4h_to_h": "down",
    "query": "q", "key": "k", "value": "v", "attention.output.dense": "o", "intermediate.dense": "up",
    "output.dense": "down", "transform.dense": "head_transform", "decoder": "head", "lm_head": "head",
    "SelfAttention.q": "q", "SelfAttention.k": "k", "SelfAttention.v": "v", "SelfAttention.o": "o",
    "EncDecAttention.q": "cross_q", "EncDecAttention.k": "cross_k", "EncDecAttention.v": "cross_v",
    "EncDecAttention.o": "cross_o", "wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down",
    "project_in": "project_in", "project_out": "project_out", "mlp.gate": "router",
    "gate_up_proj": "gate_up",
}  # fmt: skip
"""Ends of names → roles, written down a second time from the papers' diagrams; the longest end decides."""


def role_of(name: str) -> str:
    """The role that a matrix of this name has."""
    return _ROLES[max((end for end in _ROLES if f".{name}".endswith(f".{end}")), key=len)]


def matrices(model: nn.Module) -> dict[str, str]:
    """Every matrix of a model that multiplies activations → its role."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            found[f"{path}.weight"] = role_of(path)
        elif not isinstance(module, nn.Embedding):
            # Stacked experts, and routers that are modules of their own.
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim > 1:
                    full = f"{path}.{name}"
                    found[full] = role_of(path if name == "weight" else full)
    return found


@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_matrix_is_found_once(name: str) -> None:
    model = tiny.model(name)
    anatomy = Anatomy.of(model)
    sites = [site for site in anatomy.sites if site.row.is_matrix]
    assert max(Counter(site.name for site in sites).values()) == 1
    assert {site.name: site.row.role.value for site in sites} == matrices(model)
    for site in sites:
        assert site.weight(model) is getattr(site.module(model), site.parameter)
        assert anatomy.matrix(site).shape[-2:] == (site.row.out_features, site.row.in_features)
    if not anatomy.encoder_blocks:
        layers = [site.layer or 0 for site in anatomy.weights(BLOCK_LINEARS)]
        assert layers == sorted(layers)


@torch.no_grad()
@pytest.mark.parametrize("name", tiny.NAMES)
def test_forward_by_hand(name: str) -> None:
    model = tiny.model(name)
    # Only the eager attention caps scores (Gemma 2).
    model.set_attn_implementation("eager")
    for parameter in model.parameters():
        # Norms and biases begin as ones and zeros, and small scores look alike: both would hide a mistake.
        parameter.add_(torch.randn_like(parameter) * 0.3)
    # T5 has no last position, and its buckets of distances end at 128.
    ids = torch.randint(3, 96, (2, 150 if name.startswith("t5") else 60))
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits
    torch.testing.assert_close(
        hand.forward(Anatomy.of(model), ids), expected, rtol=2e-3, atol=2e-3 * expected.std().item()
    )


@pytest.mark.parametrize("name", tiny.NAMES)
def test_what_is_written_is_read(name: str) -> None:
    model = tiny.model(name)
    anatomy = Anatomy.of(model)
    for number, site in enumerate(anatomy.weights(BLOCK_LINEARS)):
        value = torch.full_like(anatomy.matrix(site), float(number))
        value[..., 0, :] = -1.0
        anatomy.write_matrix(site, value)
        assert torch.equal(anatomy.matrix(site), value)
        with pytest.raises(RequestError, match="shape"):
            anatomy.write_matrix(site, value[..., :1, :1])


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_fused_projections_come_apart(name: str) -> None:
    dims = Anatomy.of(tiny.model(name)).dims
    fused = torch.randn(96, 32)
    parts = split_qkv(dims, fused)
    assert torch.equal(join_qkv(dims, *parts), fused)
    if name == "gpt_neox":
        assert torch.equal(parts[1][:8], fused[8:16])
    with pytest.raises(RequestError, match="rows"):
        split_qkv(dims, fused[1:])


def test_nothing_to_split_elsewhere() -> None:
    with pytest.raises(NotSupported, match="llama"):
        split_qkv(Anatomy.of(tiny.model("llama")).dims, torch.zeros(96, 32))


def test_packed_weights_are_read_and_never_written() -> None:
    model = tiny.model("llama")
    apply(model, [configure("kmeans", bits=2, iterations=2)])
    anatomy = Anatomy.of(model)
    site = next(anatomy.weights({Role.Q}))
    assert site.packed(model) and anatomy.matrix(site).unique().numel() <= 4
    with pytest.raises(NotSupported, match="packed"):
        anatomy.write_matrix(site, anatomy.matrix(site))


def test_models_that_do_not_fit_are_refused() -> None:
    model = tiny.model("llama")
    model.model.layers[1].mlp.up_proj = nn.Linear(32, 47, bias=False)
    with pytest.raises(RequestError, match=r"layers\.1\.mlp\.up_proj has weight of shape \(47, 32\)"):
        Anatomy.of(model)
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(RequestError, match=r"no up at model\.layers\.1\.mlp\.up_proj"):
        Anatomy.of(model)


def test_named_parts() -> None:
    model = tiny.model("t5")
    anatomy = Anatomy.of(model)
    assert anatomy.embedding is model.shared and anatomy.head is model.lm_head
    assert anatomy.blocks is model.decoder.block and anatomy.encoder_blocks is model.encoder.block
    assert anatomy.final_norm is model.decoder.final_layer_norm
    assert Anatomy.of(tiny.model("bert")).final_norm is None
