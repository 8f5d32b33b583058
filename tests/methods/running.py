"""What the tests of several methods share: running a tiny model, training it a little, comparing it with its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.compose import predict
from hayless.core.families import dims_of, ledger_of
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from tests import tiny

WITHOUT_EXPERTS = ("q", "k", "v", "o")


def batch(model: PreTrainedModel, rows: int = 2, length: int = 9, seed: int = 0) -> dict[str, Any]:
    """Random tokens, for a decoder too where there is one."""
    ids = torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "decoder_input_ids": ids} if model.config.is_encoder_decoder else {"input_ids": ids}


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """Logits of a fixed batch in evaluation mode."""
    return model.eval()(**batch(model)).logits


def losses(model: PreTrainedModel, steps: int = 2) -> list[float]:
    """Train on a fixed batch with AdamW (weight decay included); the loss before each step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    inputs = batch(model)
    found = []
    for _ in range(steps):
        loss = model.train()(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def lora_of(name: str, **options: Any) -> MethodConfig:
    """lora with its default targets, or with those it reaches in a model with experts."""
    if tiny.config(name).to_dict().get("num_experts_per_tok"):
        options.setdefault("targets", WITHOUT_EXPERTS)
    return configure("lora", **options)


def predicted(model: PreTrainedModel, configs: Sequence[MethodConfig]) -> Ledger:
    """The ledger of the model after `configs`, computed without its weights, in the dtype of its embedding."""
    dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    return predict(ledger_of(dims_of(model.config.to_dict()).with_dtype(dtype)), configs)


def check_held(model: PreTrainedModel, ledger: Ledger) -> None:
    """Every tensor in memory is one that the ledger names, with its shape and dtype; and so are the trained counts."""
    expected = {
        stored.name.replace("{layer}", str(layer)): (stored.shape, stored.dtype)
        for row in ledger.rows
        if not row.tied_to
        for stored in row.held
        for layer in row.layers or (0,)
    }
    saved = model.state_dict().keys()
    tensors = dict(model.named_parameters())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
    found = {name: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in tensors.items()}
    assert found == expected
    assert ledger.trainable == sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert ledger.weight_bytes == sum(value.nbytes for value in tensors.values())
