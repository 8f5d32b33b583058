"""A running batch without graphs: through transformers' own modules, or through a decode program.

A request that ends leaves the batch, and others may join it between two tokens. Shapes: b requests, s tokens, v entries
of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from hayless.decode.cache import StaticCache, keeps_all
from hayless.decode.program import Program
from hayless.decode.request import Request
from hayless.decode.sampling import distribution, draw
from hayless.decode.step import Step

_CHUNK = 512


class Source(Protocol):
    """Where logits come from: prompts go in once, then the chosen tokens."""

    @property
    def joinable(self) -> bool:
        """Whether prompts can join while others run."""

    def join(self, prompts: Sequence[Sequence[int]]) -> None:
        """Add rows behind those there are. Their prompts are read by the next call of `logits`."""

    def logits(self) -> Tensor:
        """Logits (b, v) of the next token of every row, in float32."""

    def advance(self, tokens_b: Tensor, going: Sequence[int]) -> None:
        """Make the chosen tokens the next inputs, of the rows that go on; the others leave."""


class EagerBatch:
    """Chooses each token on the host's schedule."""

    def __init__(self, source: Source, requests: Sequence[Request]) -> None:
        self.active: list[Request] = []
        self._source = source
        self.join(requests)

    @property
    def joinable(self) -> bool:
        """Whether requests can join while others run."""
        return self._source.joinable

    def join(self, requests: Sequence[Request]) -> None:
        """Let requests join those that run; never between `next` and `drop_ended`."""
        self.active += requests
        self._source.join([request.prompt for request in requests])

    def next(self) -> list[list[tuple[int, float]]]:
        """The next token of each active request, and its log-probability."""
        self._tokens_b, logprobs_b = choose(self._source.logits(), self.active)
        return [[one] for one in zip(self._tokens_b.tolist(), logprobs_b.tolist(), strict=True)]

    def drop_ended(self) -> None:
        """Let requests with a `finish` leave; the others go on from the tokens they got."""
        going = [row for row, request in enumerate(self.active) if request.finish is None]
        self.active = [self.active[row] for row in going]
        self._source.advance(self._tokens_b, going)


class ProgramSource:
    """Through a decode program over a static cache; rows of any length lie side by side without padding."""

    joinable = True

    def __init__(self, program: Program) -> None:
        self._program = program
        self._joining: list[list[int]] = []
        self._cache = self._empty_cache(0, 0)
        self._step = Step(program, self._cache)
        self._tokens_b = torch.zeros(0, dtype=torch.long, device=program.device)

    def join(self, prompts: Sequence[Sequence[int]]) -> None:
        """Add rows behind those there are. Their prompts are read by the next call of `logits`."""
        self._joining += map(list, prompts)

    def logits(self) -> Tensor:
        """Logits (b, v) of the next token of every row, in float32."""
        last_bh = [self._step(self._tokens_b)] if len(self._tokens_b) else []
        if self._joining:
            joined = self._empty_cache(len(self._joining), max(map(len, self._joining)) + 1)
            last_bh.append(self._program.prefill(self._joining, joined, _CHUNK))
            self._cache.append(joined)
            self._joining = []
        return self._program.logits(torch.cat(last_bh))

    def advance(self, tokens_b: Tensor, going: Sequence[int]) -> None:
        """Make the chosen tokens the next inputs, of the rows that go on; the others leave the cache."""
        if len(going) < len(tokens_b):
            self._cache.select(going)
            tokens_b = tokens_b[torch.tensor(going, dtype=torch.long, device=tokens_b.device)]
        self._tokens_b = tokens_b

    def _empty_cache(self, rows: int, capacity: int) -> StaticCache:
        program = self._program
        return StaticCache(program.dims, rows, capacity, program.dtype, program.device)


class ModuleSource:
    """Through transformers' own modules and a growing cache, with prompts padded on the left."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._running: _Rows | None = None
        self._joining: _Rows | None = None

    @property
    def joinable(self) -> bool:
        """Whether prompts can join while others run: not where layers keep a window, or states, instead of all keys."""
        return keeps_all(DynamicCache(config=self._model.config))

    def join(self, prompts: Sequence[Sequence[int]]) -> None:
        """Add rows behind those there are. Their prompts are read by the next call of `logits`."""
        if prompts:
            assert self._joining is None and (self._running is None or self.joinable)
            self._joining = _Rows(self._model, prompts)

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits (b, v) of the next token of every row, in float32."""
        parts = [rows for rows in (self._running, self._joining) if rows is not None]
        logits_bv = torch.cat([rows.logits(self._model) for rows in parts])
        if len(parts) == 2:
            parts[0].append(parts[1])
        self._running, self._joining = parts[0], None
        return logits_bv

    @torch.inference_mode()
    def advance(self, tokens_b: Tensor, going: Sequence[int]) -> None:
        """Make the chosen tokens the next inputs, of the rows that go on; the others leave the cache."""
        if not going:
            self._running = None
        elif self._running is not None:
            self._running.advance(tokens_b, going)


class _Rows:
    """Rows of one forward pass: the next inputs, what is padding, positions, and a growing cache."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, prompts))
        ids_bs = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask_bs = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_bs[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_bs[row, longest - len(prompt) :] = 1
        self._ids_bs = ids_bs.to(model.device)
        self._mask_bs = mask_bs.to(model.device)
        self._positions_bs = (self._mask_bs.cumsum(-1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=model.config)

    def logits(self, model: PreTrainedModel) -> Tensor:
        """Logits (b, v) of the next token of every row, in float32."""
        output = model(
            input_ids=self._ids_bs,
            attention_mask=self._mask_bs,
            position_ids=self._positions_bs,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._positions_bs = self._positions_bs[:, -1:]
        return output.logits[:, -1].float()

    def append(self, other: _Rows) -> None:
        """Take another's rows behind these, after both went through the model; the shorter get more padding."""
        longest = max(self._mask_bs.shape[1], other._mask_bs.shape[1])
        for rows in (self, other):
            rows._pad(longest - rows._mask_bs.shape[1])
        self._mask_bs = torch.cat([self._mask_bs, other._mask_bs])
        self._positions_bs = torch.cat([self._positions_bs, other._positions_bs])
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            mine.keys = torch.cat([mine.keys, theirs.keys])
            mine.values = torch.cat([mine.values, theirs.values])

    def advance(self, tokens_b: Tensor, going: Sequence[int]) -> None:
        """Make the chosen tokens the next inputs, of the rows that go on; the others leave."""
        if len(going) < len(tokens_b):
            rows = torch.tensor(going, dtype=torch.long, device=tokens_b.device)
            self._cache.batch_select_indices(rows)
            tokens_b, self._mask_bs = tokens_b[rows], self._mask_bs[rows]
            self._positions_bs = self._positions_bs[rows]
            if keeps_all(self._cache):
                # Padding that no row needs any more; without this, a batch that never ends would grow for ever.
                self._pad(-int(self._mask_bs.any(0).int().argmax()))
        self._ids_bs = tokens_b[:, None]
        self._positions_bs = self._positions_bs + 1
        self._mask_bs = pad(self._mask_bs, (0, 1), value=1)

    @property
    def _layers(self) -> list[Any]:
        """The layers of a cache that `keeps_all`: each has keys and values (b, kv_heads, s, head_dim)."""
        return list(self._cache.layers)

    def _pad(self, more: int) -> None:
        """More padding on the left, or less where `more` is negative."""
        self._mask_bs = pad(self._mask_bs, (more, 0))
        for layer in self._layers:
            layer.keys, layer.values = (pad(held, (0, 0, more, 0)) for held in (layer.keys, layer.values))


@torch.inference_mode()
def choose(logits_bv: Tensor, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
    """The next token (b,) of each request, and its log-probability (b,) under the model as it is."""
    tokens_b = logits_bv.max(-1).indices  # twice as fast as argmax on a CPU
    for options in dict.fromkeys(request.options for request in requests if request.options.temperature > 0):
        rows = [row for row, request in enumerate(requests) if request.options == options]
        probs_bv = distribution(logits_bv[rows], options)
        tokens_b[rows] = draw(probs_bv, [requests[row].generator for row in rows])
    logprobs_b = logits_bv.log_softmax(-1).gather(-1, tokens_b[:, None]).squeeze(1)
    return tokens_b, logprobs_b
