"""Trained keys and values before every text on a loaded model, and PEFT's files both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.forward import VIRTUAL
from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from hayless.methods.adapters.prefix.config import PrefixConfig, predict, width_of
from hayless.methods.common.adapting import peft_task, trained
from hayless.methods.common.peft_fields import refuse_others, required
from hayless.methods.common.virtual_rows import KNOWN, PEFT_NAME, harmless, peft_fields
from hayless.methods.common.virtual_tokens import KeysValues, VirtualPart, VirtualTokens, begin
from hayless.methods.common.weights import plain_ledger
from hayless.model.transform import AdapterFiles, Change, Context


class _Table(VirtualTokens):
    """Keys and values of every layer, one after the other: a table, or a network over a small one."""

    def __init__(self, config: PrefixConfig, model: PreTrainedModel) -> None:
        super().__init__(config.tokens, self._keys_values)
        dims = plain_ledger(model).dims
        self._heads, self._head_dim = dims.num_kv_heads, dims.head_dim
        width, hidden = width_of(dims), config.projection
        self.embedding = nn.Embedding(config.tokens, width if hidden is None else dims.hidden_size)
        self.inner = None if hidden is None else nn.Linear(dims.hidden_size, hidden)
        self.outer = None if hidden is None else nn.Linear(hidden, width)

    def folded(self) -> Tensor:
        """(n, 2 · layers · kv_width): key and value of the first layer, of the second, and so on."""
        table = self.embedding.weight
        if self.inner is None or self.outer is None:
            return table
        found: Tensor = self.outer(torch.tanh(self.inner(table)))
        return found

    def _keys_values(self) -> list[KeysValues]:
        layers = self.folded().view(self.count, -1, 2, self._heads, self._head_dim).permute(1, 2, 3, 0, 4)
        return [(key[None], value[None]) for key, value in layers.unbind(0)]


class Prefix(VirtualPart):
    """Fills the transform slot, with an adapter's files."""

    @staticmethod
    def apply(model: PreTrainedModel, config: PrefixConfig, context: Context) -> Change:
        """Freeze the model and put drawn keys and values before its texts."""
        Prefix.restore(model, config)
        tokens: Any = model.get_submodule(VIRTUAL)
        generator = torch.Generator().manual_seed(context.seed)
        for parameter in tokens.parameters():
            spread = 0.02 if parameter.ndim > 1 else 0.0
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        return Change(config.method, (VIRTUAL,), figures=trained(model))

    @staticmethod
    def restore(model: PreTrainedModel, config: PrefixConfig) -> None:
        """Freeze the model and put keys and values before its texts."""
        predict(plain_ledger(model), config)
        begin(model, config.method, lambda: _Table(config, model))

    @staticmethod
    def export(model: PreTrainedModel, config: PrefixConfig) -> AdapterFiles:
        """The adapter as PEFT writes it, the network folded, in float32."""
        tokens: Any = model.get_submodule(VIRTUAL)
        dims = plain_ledger(model).dims
        fields = peft_fields(
            dims,
            config.tokens,
            dims.kv_width,
            dims.num_kv_heads,
            peft_task(model),
            model.config.name_or_path or "",
        )
        found = {"peft_type": "PREFIX_TUNING", **fields, "encoder_hidden_size": None, "prefix_projection": False}
        return AdapterFiles(found, {PEFT_NAME: tokens.folded().detach().float()})

    @staticmethod
    def read(adapter_config: dict[str, Any]) -> MethodConfig:
        """Our config for PEFT's, whose files hold what its network made; NotSupported names what is not honoured."""
        refuse_others(adapter_config, "PREFIX_TUNING", KNOWN, harmless)
        required(adapter_config, "num_virtual_tokens")
        return configure("prefix", tokens=adapter_config["num_virtual_tokens"], projection=None)
