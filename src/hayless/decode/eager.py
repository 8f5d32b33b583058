"""A running batch without graphs: through transformers' own modules, or through a decode program.

A request that ends leaves the batch. Shapes: b requests, s tokens, v entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hayless.decode.cache import StaticCache
from hayless.decode.program import Program
from hayless.decode.request import Request
from hayless.decode.sampling import distribution, draw
from hayless.decode.step import Step

_CHUNK = 512


class Source(Protocol):
    """Where logits come from: prompts go in once, then the chosen tokens."""

    def logits(self) -> Tensor:
        """Logits (b, v) of the next token of every row, in float32."""

    def advance(self, tokens_b: Tensor, going: Sequence[int]) -> None:
        """Make the chosen tokens the next inputs, of the rows that go on; the others leave."""


class EagerBatch:
    """Chooses each token on the host's schedule."""

    def __init__(self, source: Source, requests: Sequence[Request]) -> None:
        self.active = list(requests)
        self._source = source

    def next(self) -> list[tuple[int, float]]:
        """The next token of each active request, and its log-probability."""
        self._tokens_b, logprobs_b = choose(self._source.logits(), self.active)
        return list(zip(self._tokens_b.tolist(), logprobs_b.tolist(), strict=True))

    def drop_ended(self) -> None:
        """Let requests with a `finish` leave; the others go on from the tokens they got."""
        going = [row for row, request in enumerate(self.active) if request.finish is None]
        self.active = [self.active[row] for row in going]
        if going:
            self._source.advance(self._tokens_b, going)


class ProgramSource:
    """Through a decode program over a static cache; rows of any length lie side by side without padding."""

    def __init__(self, program: Program, prompts: Sequence[Sequence[int]]) -> None:
        self._program = program
        self._prompts: list[list[int]] | None = [list(prompt) for prompt in prompts]
        capacity = max(map(len, prompts)) + 1
        self._cache = StaticCache(program.dims, len(prompts), capacity, program.dtype, program.device)
        self._step = Step(program, self._cache)

    def logits(self) -> Tensor:
        """Logits (b, v) of the next token of every row, in float32."""
        if self._prompts is not None:
            last_bh = self._program.prefill(self._prompts, self._cache, _CHUNK)
            self._prompts = None
        else:
            last_bh = self._step(self._tokens_b)
        return self._program.logits(last_bh)

    def advance(self, tokens_b: Tensor, going: Sequence[int]) -> None:
        """Make the chosen tokens the next inputs, of the rows that go on; the others leave the cache."""
        if len(going) < len(tokens_b):
            self._cache.select(going)
            tokens_b = tokens_b[torch.tensor(going, device=tokens_b.device)]
        self._tokens_b = tokens_b


class ModuleSource:
    """Through transformers' own modules and a growing cache, with prompts padded on the left."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        device = model.device
        longest = max(map(len, prompts))
        ids_bs = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask_bs = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_bs[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_bs[row, longest - len(prompt) :] = 1
        self._ids_bs = ids_bs.to(device)
        self._mask_bs = mask_bs.to(device)
        self._positions_bs = (self._mask_bs.cumsum(-1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=model.config)

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Logits (b, v) of the next token of every row, in float32."""
        output = self._model(
            input_ids=self._ids_bs,
            attention_mask=self._mask_bs,
            position_ids=self._positions_bs,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    @torch.inference_mode()
    def advance(self, tokens_b: Tensor, going: Sequence[int]) -> None:
        """Make the chosen tokens the next inputs, of the rows that go on; the others leave the cache."""
        if len(going) < len(tokens_b):
            rows = torch.tensor(going, dtype=torch.long, device=tokens_b.device)
            self._cache.batch_select_indices(rows)
            tokens_b, self._mask_bs = tokens_b[rows], self._mask_bs[rows]
            self._positions_bs = self._positions_bs[rows]
        self._ids_bs = tokens_b[:, None]
        self._positions_bs = self._positions_bs[:, -1:] + 1
        self._mask_bs = torch.cat([self._mask_bs, self._mask_bs.new_ones(len(going), 1)], dim=1)


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
