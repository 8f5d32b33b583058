"""Reading into a quantized cache, through a program or through transformers' own modules.

Every prompt is read alone. Shapes: b rows, s new tokens, t tokens of the longest row, v entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from hayless.core.errors import NotSupported
from hayless.decode.products import RowSlots
from hayless.decode.program import Program
from hayless.methods.decoding.kv.cache import QuantizedCache
from hayless.methods.decoding.kv.config import KVConfig

Pass = Callable[[Tensor, QuantizedCache, int], Tensor]
"""Logits (b, last, v) of the last of new tokens (b, s), which join a cache."""


class QuantizedReader:
    """A model that reads into a quantized cache. `adapters` are those of the rows."""

    keeps_all = True

    def __init__(
        self,
        run: Pass,
        empty: Callable[[int], QuantizedCache],
        device: torch.device,
        adapters: RowSlots | None = None,
    ) -> None:
        self._run, self._empty, self._device = run, empty, device
        self._adapters = adapters or RowSlots()
        self.cache = empty(0)

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row holds."""
        return self.cache.lengths

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Add rows behind those there are; logits (b, v) in float32 after each of their prompts."""
        found = []
        for row, prompt in enumerate(prompts):
            joining = self._empty(1)
            with self._adapters.only(row):
                found.append(self._run(torch.tensor([list(prompt)], device=self._device), joining, 1)[:, -1])
            self.cache.append(joining)
        return torch.cat(found)

    def read(self, tokens_bs: Tensor) -> Tensor:
        """Logits (b, s, v) in float32 after each new token; the tokens join their rows."""
        return self._run(tokens_bs, self.cache, tokens_bs.shape[1])

    def truncate(self, lengths: Sequence[int]) -> None:
        """NotSupported where a row would be cut back: what is quantized has lost what it was."""
        if list(lengths) != self.lengths:
            raise NotSupported(
                "A quantized cache cannot be cut back.", hint="Decode without drafts, or without a quantized cache."
            )

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self.cache.select(rows)


def through_program(program: Program, config: KVConfig, adapters: RowSlots | None = None) -> QuantizedReader:
    """A reader through a decode program."""

    def run(tokens_bs: Tensor, cache: QuantizedCache, last: int) -> Tensor:
        return program.logits(program.forward(tokens_bs, cache)[:, -last:])

    def empty(rows: int) -> QuantizedCache:
        return QuantizedCache(config, program.dims.num_layers, rows)

    return QuantizedReader(run, empty, program.device, adapters)


def through_modules(model: PreTrainedModel, config: KVConfig, adapters: RowSlots | None = None) -> QuantizedReader:
    """A reader through transformers' own modules. NotSupported where a layer holds anything but keys and values.

    A layer that attends within a window holds the tokens outside of it too.
    """
    layers = DynamicCache(config=model.config).layers
    other = next((type(layer).__name__ for layer in layers if not isinstance(layer, DynamicLayer)), None)
    if other is not None:
        raise NotSupported(
            f"A quantized cache is for keys and values; this {type(model).__name__} also holds a {other}.",
            hint="Decode it without one.",
        )

    @torch.inference_mode()
    def run(tokens_bs: Tensor, cache: QuantizedCache, last: int) -> Tensor:
        s, longest = tokens_bs.shape[1], max(cache.lengths)
        lengths_b1 = torch.tensor(cache.lengths, device=tokens_bs.device)[:, None]
        output = model(
            input_ids=tokens_bs,
            attention_mask=(torch.arange(longest + s, device=tokens_bs.device) >= longest - lengths_b1).long(),
            position_ids=lengths_b1 + torch.arange(s, device=tokens_bs.device),
            past_key_values=Cache(layers=[_Layer(cache, number) for number in range(len(layers))]),
            use_cache=True,
            logits_to_keep=last,
        )
        cache.advance(s)
        return output.logits.float()

    return QuantizedReader(run, lambda rows: QuantizedCache(config, len(layers), rows), model.device, adapters)


class _Layer(DynamicLayer):
    """A layer of a quantized cache as transformers' modules see it during one pass."""

    def __init__(self, cache: QuantizedCache, number: int) -> None:
        super().__init__()
        self._cache, self._number = cache, number

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """What the new tokens find, which are held then."""
        return self._cache.extend(self._number, key_states, value_states)

    def get_seq_length(self, *_args: Any) -> int:
        """Tokens of the longest row before this pass."""
        return max(self._cache.lengths)
