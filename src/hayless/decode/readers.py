"""Reading several tokens at once behind what each row holds, and cutting rows back: how drafts are made and checked.

    reader = ProgramReader(program)          # or ModuleReader(model), which takes any model
    reader.begin(prompts)                    # what rows start with; may be empty
    logits_bsv = reader.read(tokens_bs)      # after each of s new tokens
    reader.truncate(lengths)                 # each row keeps its first tokens

Shapes: b rows, s new tokens, t entries of the cache, v entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.decode.cache import StaticCache, keeps_all
from hayless.decode.program import Program
from hayless.decode.step import Step

_CHUNK = 512


class Reader(Protocol):
    """A model that reads; `lengths` are the tokens that its rows hold."""

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Hold these rows and no others."""

    def read(self, tokens_bs: Tensor) -> Tensor:
        """Logits (b, s, v) in float32 after each new token; the tokens join their rows."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """Cut each row back to its length."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""


class ProgramReader:
    """Through a decode program, over a static cache."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.begin(())

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return self.cache.lengths

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Hold these rows and no others."""
        program = self.program
        capacity = max(map(len, prompts), default=0) + 1
        self.cache = StaticCache(program.dims, len(prompts), capacity, program.dtype, program.device)
        self._step = Step(program, self.cache)
        if any(prompts):
            program.prefill([list(prompt) for prompt in prompts], self.cache, _CHUNK)

    def read(self, tokens_bs: Tensor) -> Tensor:
        """Logits (b, s, v) in float32 after each new token; the tokens join their rows."""
        if tokens_bs.shape[1] == 1:
            return self.program.logits(self._step(tokens_bs[:, 0]))[:, None]
        return self.program.logits(self.program.forward(tokens_bs, self.cache))

    def truncate(self, lengths: Sequence[int]) -> None:
        """Cut each row back to its length."""
        self.cache.truncate(lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self.cache.select(rows)


class ModuleReader:
    """Through transformers' own modules, whose caches have one length: what a row was cut back by is masked.

    NotSupported for models whose layers keep a window, or states, from which nothing can be taken back.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if not keeps_all(DynamicCache(config=model.config)):
            raise NotSupported(
                f"{type(model).__name__} does not keep the keys of all tokens, so rejected drafts cannot be undone.",
                hint="Decode without drafts.",
            )
        self._model = model
        self.begin(())

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return self._held_bt.sum(1).tolist()

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Hold these rows and no others; the shorter are padded on the left."""
        self._cache = DynamicCache(config=self._model.config)
        self._held_bt = torch.zeros(len(prompts), 0, dtype=torch.long, device=self._model.device)
        longest = max(map(len, prompts), default=0)
        if longest:
            padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
            held_bs = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
            self._read(torch.tensor(padded, device=self._model.device), held_bs.to(self._model.device), 1)

    def read(self, tokens_bs: Tensor) -> Tensor:
        """Logits (b, s, v) in float32 after each new token; the tokens join their rows."""
        return self._read(tokens_bs, torch.ones_like(tokens_bs), tokens_bs.shape[1])

    @torch.inference_mode()
    def _read(self, tokens_bs: Tensor, held_bs: Tensor, last: int) -> Tensor:
        """Logits of the `last` tokens; those that are not `held_bs` are padding."""
        positions_bs = (self._held_bt.sum(1, keepdim=True) + held_bs.cumsum(1) - 1).clamp(min=0)
        self._held_bt = torch.cat([self._held_bt, held_bs], 1)
        output = self._model(
            input_ids=tokens_bs,
            attention_mask=self._held_bt,
            position_ids=positions_bs,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=last,
        )
        return output.logits.float()

    @torch.inference_mode()
    def truncate(self, lengths: Sequence[int]) -> None:
        """Cut each row back to its length; entries that no row holds any more leave the end of the cache."""
        kept_b1 = torch.tensor(lengths, device=self._held_bt.device)[:, None]
        self._held_bt = self._held_bt * (self._held_bt.cumsum(1) <= kept_b1)
        unused = int(self._held_bt.flip(1).any(0).int().argmax()) if any(lengths) else self._held_bt.shape[1]
        if unused:
            self._held_bt = pad(self._held_bt, (0, -unused))
            layers: list[Any] = self._cache.layers
            for layer in layers:
                layer.keys, layer.values = layer.keys[..., :-unused, :], layer.values[..., :-unused, :]

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        index = torch.tensor(rows, dtype=torch.long, device=self._held_bt.device)
        self._cache.batch_select_indices(index)
        self._held_bt = self._held_bt[index]
