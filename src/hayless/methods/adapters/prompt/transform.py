"""Trained embeddings before every text on a loaded model, and PEFT's files both ways.

No token of the text is seen by a virtual one, so their keys and values are those of one pass of the virtual tokens
alone, whatever the rows that attend to them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.core.forward import VIRTUAL
from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from hayless.methods.adapters.prompt.config import PromptConfig, predict
from hayless.methods.common.adapting import peft_task, trained
from hayless.methods.common.peft_fields import refuse_others, required
from hayless.methods.common.virtual_rows import KNOWN, PEFT_NAME, harmless, peft_fields
from hayless.methods.common.virtual_tokens import KeysValues, VirtualPart, VirtualTokens, begin, decoder_of
from hayless.methods.common.weights import plain_ledger
from hayless.model.transform import AdapterFiles, Change, Context


class _Soft(VirtualTokens):
    """Embeddings of virtual tokens; their keys and values are what the model makes of them."""

    def __init__(self, config: PromptConfig, model: PreTrainedModel) -> None:
        super().__init__(config.tokens, self._keys_values)
        self.embedding = nn.Embedding(config.tokens, plain_ledger(model).dims.embedding_width)
        # Not as a child: this module is the model's.
        object.__setattr__(self, "_decoder", decoder_of(model))
        object.__setattr__(self, "_table", model.get_input_embeddings())

    def _keys_values(self) -> list[KeysValues]:
        decoder: Any = self._decoder
        table: Any = self._table
        return self.heard(decoder, inputs_embeds=self.embedding.weight[None].to(table.weight.dtype), use_cache=False)


class Prompt(VirtualPart):
    """Fills the transform slot, with an adapter's files."""

    @staticmethod
    def apply(model: PreTrainedModel, config: PromptConfig, context: Context) -> Change:
        """Freeze the model and put embeddings of its own tokens before its texts."""
        table: Any = model.get_input_embeddings()
        if config.text is None:
            generator = torch.Generator().manual_seed(context.seed)
            ids = torch.randint(table.num_embeddings, (config.tokens,), generator=generator).tolist()
        else:
            ids = _ids(config, context)
        Prompt.restore(model, config)
        tokens: Any = model.get_submodule(VIRTUAL)
        tokens.embedding.weight.data.copy_(table.weight[torch.tensor(ids, device=table.weight.device)].detach())
        return Change(config.method, (VIRTUAL,), figures=trained(model))

    @staticmethod
    def restore(model: PreTrainedModel, config: PromptConfig) -> None:
        """Freeze the model and put embeddings before its texts."""
        predict(plain_ledger(model), config)
        begin(model, config.method, lambda: _Soft(config, model))

    @staticmethod
    def export(model: PreTrainedModel, config: PromptConfig) -> AdapterFiles:
        """The adapter as PEFT writes it, in float32."""
        tokens: Any = model.get_submodule(VIRTUAL)
        dims = plain_ledger(model).dims
        base = model.config.name_or_path or ""
        fields = peft_fields(dims, config.tokens, dims.embedding_width, dims.num_heads, peft_task(model), base)
        found = {"peft_type": "PROMPT_TUNING", **fields, "prompt_tuning_init": "RANDOM"}
        return AdapterFiles(found, {PEFT_NAME: tokens.embedding.weight.detach().float()})

    @staticmethod
    def read(adapter_config: dict[str, Any]) -> MethodConfig:
        """Our config for PEFT's; NotSupported names what is not honoured."""
        refuse_others(adapter_config, "PROMPT_TUNING", KNOWN, harmless)
        required(adapter_config, "num_virtual_tokens")
        return configure("prompt", tokens=adapter_config["num_virtual_tokens"])


def _ids(config: PromptConfig, context: Context) -> list[int]:
    """The text's tokens, as many as are wanted."""
    if context.tokenizer is None:
        raise RequestError(
            "prompt.text needs a tokenizer, and none was given.", hint="Give the context the model's tokenizer."
        )
    assert config.text is not None
    ids: list[int] = context.tokenizer(config.text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise RequestError(f"prompt.text = {config.text!r} has no tokens.", hint="Give another text.")
    return [ids[place % len(ids)] for place in range(config.tokens)]
