"""Reading tokens behind what each row holds, letting rows join and leave, and cutting them back.

    reader = ProgramReader(program)          # or ModuleReader(model), which takes any model
    logits_bv = reader.join(prompts)         # rows behind those there are, and what follows each prompt
    logits_bsv = reader.read(tokens_bs)      # after each of s new tokens
    reader.truncate(lengths)                 # each row keeps its first tokens: how rejected drafts are undone
    reader.select(rows)                      # the others leave

Shapes: b rows, s new tokens, t entries of the cache, v entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from hayless.decode.cache import StaticCache, keeps_all
from hayless.decode.products import RowSlots
from hayless.decode.program import Program
from hayless.decode.step import Step

_CHUNK = 512


class Reader(Protocol):
    """A model that reads; `lengths` are the tokens that its rows hold."""

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""

    @property
    def keeps_all(self) -> bool:
        """Whether the keys of all tokens are kept: rows can then join others, and be cut back."""

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Add rows behind those there are; logits (b, v) in float32 after each of their prompts.

        A prompt may be empty; its logits then mean nothing.
        """

    def read(self, tokens_bs: Tensor) -> Tensor:
        """Logits (b, s, v) in float32 after each new token; the tokens join their rows."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """Cut each row back to its length."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""


class ProgramReader:
    """Through a decode program, over a static cache; rows of any length lie side by side without padding."""

    keeps_all = True

    def __init__(self, program: Program) -> None:
        self.program = program
        self.cache = self._empty_cache(0, 0)
        self._step = Step(program, self.cache)

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return self.cache.lengths

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Add rows behind those there are; logits (b, v) in float32 after each of their prompts."""
        joined = self._empty_cache(len(prompts), max(map(len, prompts)) + 1)
        last_bh = self.program.prefill([list(prompt) for prompt in prompts], joined, _CHUNK)
        self.cache.append(joined)
        return self.program.logits(last_bh)

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

    def _empty_cache(self, rows: int, capacity: int) -> StaticCache:
        program = self.program
        return StaticCache(program.dims, rows, capacity, program.dtype, program.device)


class ModuleReader:
    """Through transformers' own modules, whose caches have one length: what a row lacks, or was cut back by, is masked.

    Where layers keep a window, or states, instead of all keys, rows can neither join others nor be cut back.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.keeps_all = keeps_all(DynamicCache(config=model.config))
        self._cache, self._held_bt, self._length_b1 = self._nothing()

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return self._length_b1[:, 0].tolist()

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Add rows behind those there are; logits (b, v) in float32 after each of their prompts.

        Shorter prompts are padded on the left.
        """
        if len(self._held_bt):
            other = ModuleReader(self._model)
            logits_bv = other.join(prompts)
            self._append(other)
            return logits_bv
        longest = max(1, *map(len, prompts))
        padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        held = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        ids_bs, held_bs = (torch.tensor(rows, device=self._model.device) for rows in (padded, held))
        self._held_bt = held_bs[:, :0]
        logits_bsv = self._read(ids_bs, held_bs, (held_bs.cumsum(1) - 1).clamp(min=0), 1)
        self._length_b1 = held_bs.sum(1, keepdim=True)
        return logits_bsv[:, -1]

    def read(self, tokens_bs: Tensor) -> Tensor:
        """Logits (b, s, v) in float32 after each new token; the tokens join their rows."""
        new = tokens_bs.shape[1]
        positions_bs = self._length_b1 + torch.arange(new, device=tokens_bs.device)
        logits_bsv = self._read(tokens_bs, torch.ones_like(tokens_bs), positions_bs, new)
        self._length_b1 = self._length_b1 + new
        return logits_bsv

    @torch.inference_mode()
    def truncate(self, lengths: Sequence[int]) -> None:
        """Cut each row back to its length; entries that no row holds any more leave the end of the cache."""
        assert self.keeps_all
        self._length_b1 = torch.tensor(lengths, device=self._held_bt.device)[:, None]
        self._held_bt = self._held_bt * (self._held_bt.cumsum(1) <= self._length_b1)
        unused = int(self._held_bt.flip(1).any(0).int().argmax()) if any(lengths) else self._held_bt.shape[1]
        if unused:
            self._held_bt = pad(self._held_bt, (0, -unused))
            for layer in self._layers:
                layer.keys, layer.values = layer.keys[..., :-unused, :], layer.values[..., :-unused, :]

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, and of the cache what they hold: else it would grow as long as rows join."""
        if not rows:
            self._cache, self._held_bt, self._length_b1 = self._nothing()
            return
        index = torch.tensor(rows, dtype=torch.long, device=self._held_bt.device)
        self._cache.batch_select_indices(index)
        self._held_bt, self._length_b1 = self._held_bt[index], self._length_b1[index]
        used_t = self._held_bt.any(0)
        if self.keeps_all and not used_t.all():
            self._held_bt = self._held_bt[:, used_t]
            for layer in self._layers:
                layer.keys, layer.values = layer.keys[..., used_t, :], layer.values[..., used_t, :]

    def _nothing(self) -> tuple[DynamicCache, Tensor, Tensor]:
        """The cache of no row, which of its entries are held (b, t), and how many (b, 1)."""
        held_bt = torch.zeros(0, 0, dtype=torch.long, device=self._model.device)
        return DynamicCache(config=self._model.config), held_bt, held_bt.new_zeros(0, 1)

    @torch.inference_mode()
    def _append(self, other: ModuleReader) -> None:
        """Take another's rows behind these; the shorter get more padding on the left."""
        assert self.keeps_all
        longest = max(self._held_bt.shape[1], other._held_bt.shape[1])
        for reader in (self, other):
            reader._pad(longest - reader._held_bt.shape[1])
        self._held_bt = torch.cat([self._held_bt, other._held_bt])
        self._length_b1 = torch.cat([self._length_b1, other._length_b1])
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            mine.keys = torch.cat([mine.keys, theirs.keys])
            mine.values = torch.cat([mine.values, theirs.values])

    def _pad(self, more: int) -> None:
        self._held_bt = pad(self._held_bt, (more, 0))
        for layer in self._layers:
            layer.keys, layer.values = (pad(held, (0, 0, more, 0)) for held in (layer.keys, layer.values))

    @property
    def _layers(self) -> list[Any]:
        """The layers of a cache that keeps all: each has keys and values (b, kv_heads, t, head_dim)."""
        return list(self._cache.layers)

    @torch.inference_mode()
    def _read(self, tokens_bs: Tensor, held_bs: Tensor, positions_bs: Tensor, last: int) -> Tensor:
        """Logits of the `last` tokens; those that are not `held_bs` are padding."""
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


class RowReader:
    """Every row through a reader of its own, as in a batch of one: its bits depend on nothing beside it.

    Rows can always join; they can be cut back where their own readers can. `adapters` are those of the rows.
    """

    keeps_all = True

    def __init__(self, make: Callable[[], Reader], adapters: RowSlots | None = None) -> None:
        self._make = make
        self._adapters = adapters or RowSlots()
        self._readers: list[Reader] = []

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return [reader.lengths[0] for reader in self._readers]

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Add rows behind those there are; logits (b, v) in float32 after each of their prompts."""
        joining = [self._make() for _ in prompts]
        logits = []
        for row, (reader, prompt) in enumerate(zip(joining, prompts, strict=True)):
            with self._adapters.only(row):
                logits.append(reader.join([prompt]))
        self._readers += joining
        return torch.cat(logits)

    def read(self, tokens_bs: Tensor) -> Tensor:
        """Logits (b, s, v) in float32 after each new token; the tokens join their rows."""
        logits = []
        for row, reader in enumerate(self._readers):
            with self._adapters.only(row):
                logits.append(reader.read(tokens_bs[row : row + 1]))
        return torch.cat(logits)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Cut each row back to its length."""
        for reader, length in zip(self._readers, lengths, strict=True):
            reader.truncate([length])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self._readers = [self._readers[row] for row in rows]
