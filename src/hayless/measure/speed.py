"""How fast a model decodes and trains, as medians with the 20th and 80th percentile, after a warm-up."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from hayless.core.errors import RequestError, bad_value
from hayless.decode.engine import Backend, Engine, Generation, Path
from hayless.decode.options import SamplingOptions
from hayless.decode.slots import CachePart, DraftPart, ExitPart

_WARMUP_TOKENS = 8
_WARMUP_STEPS = 2


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of repeated timings, and their 20th and 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of repeated timings."""
        p20, median, p80 = np.percentile(values, [20, 50, 80])
        return cls(float(median), float(p20), float(p80))

    @classmethod
    def single(cls, value: float) -> Spread:
        """That of one figure, which was not repeated."""
        return cls(value, value, value)

    def scaled(self, factor: float) -> Spread:
        """The same in another unit."""
        return Spread(self.median * factor, self.p20 * factor, self.p80 * factor)

    def rate(self, work: float) -> Spread:
        """`work` a unit of this time: the slow end of the times is the low end of the rates."""
        return Spread(work / self.median, work / self.p80, work / self.p20)


@dataclass(frozen=True, slots=True)
class DecodeSpeed:
    """Greedy decoding of one batch.

    `first_token` is seconds from the prompt (on the host) to the first token (on the host); `token` is seconds of each
    token after it, in a run's mean where drafts give several at once; `tokens_per_second` is over all rows of the
    batch, after the first token. `drafts` says what came of drafts, `cache` in what form it was; empty without.
    """

    first_token: Spread
    token: Spread
    tokens_per_second: Spread
    rows: int
    prompt_tokens: int
    tokens: int
    repeats: int
    threads: int
    path: Path
    drafts: str = ""
    exits: str = ""
    cache: str = ""


@dataclass(frozen=True, slots=True)
class TrainSpeed:
    """Bare training steps: forward, loss, backward, AdamW. `step` is seconds; tokens are those of the batch."""

    step: Spread
    tokens_per_second: Spread
    tokens: int
    steps: int
    threads: int


def decode_speed(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    tokens: int = 64,
    repeats: int = 3,
    *,
    backend: Backend | Literal["auto"] = "auto",
    draft: DraftPart | None = None,
    exit: ExitPart | None = None,
    cache: CachePart | None = None,
) -> DecodeSpeed:
    """Time greedy decoding of `tokens` tokens after `prompts` (token ids, side by side), past any end token.

    RequestError when prompt and tokens do not fit the model's context. Every token is brought to the host, so the
    clock is read when it is really there. `backend`, `draft`, `exit` and `cache` are the engine's; what a draft or an
    exit finds out first is not in the times.
    """
    if tokens < 2:
        raise bad_value("tokens", tokens, allowed="2 or more, to time those after the first")
    if repeats < 1:
        raise bad_value("repeats", repeats, allowed="1 or more")
    if not prompts:
        raise RequestError("There is no prompt to decode from.")
    engine = Engine(model, backend=backend, draft=draft, exit=exit, cache=cache)
    longest = max(map(len, prompts))
    if engine.context is not None and longest + tokens > engine.context:
        raise RequestError(
            f"{longest} tokens of prompt and {tokens} to decode do not fit the model's context of {engine.context}.",
            hint="Ask for fewer tokens, or give a shorter prompt.",
        )

    def run(count: int) -> list[Generation]:
        _synchronize(model.device)
        options = SamplingOptions(max_tokens=count, ignore_end=True)
        return engine.generate(prompts, options, batch_size=len(prompts))

    # Captured graphs are made for a number of tokens, and drafts chosen by it, so there the warm-up has as many.
    whole = engine.path.backend == "graphs" or draft is not None
    run(tokens if whole else min(tokens, _WARMUP_TOKENS))
    runs = [run(tokens) for _ in range(repeats)]
    if draft is None:
        each = [later - earlier for rows in runs for earlier, later in itertools.pairwise(rows[0].times)]
    else:
        each = [(max(row.times[-1] for row in rows) - rows[0].times[0]) / (tokens - 1) for rows in runs]
    token = Spread.of(each)
    return DecodeSpeed(
        first_token=Spread.of([rows[0].first_token_seconds for rows in runs]),
        token=token,
        tokens_per_second=token.rate(len(prompts)),
        rows=len(prompts),
        prompt_tokens=longest,
        tokens=tokens,
        repeats=repeats,
        threads=torch.get_num_threads(),
        path=engine.path,
        drafts=str(draft) if draft else "",
        exits=str(exit) if exit else "",
        cache=str(cache) if cache else "",
    )


def train_speed(model: PreTrainedModel, batch_bs: Tensor, steps: int = 10) -> TrainSpeed:
    """Time whole training steps on token ids (b, s), in the model's dtype, with torch's AdamW and no accumulation.

    The learning rate is 0, which costs the same and leaves the weights as they are (while gradients are finite).
    Gradients are freed afterwards.
    """
    if steps < 1:
        raise bad_value("steps", steps, allowed="1 or more")
    if batch_bs.dim() != 2 or batch_bs.shape[1] < 2:
        raise RequestError(f"The batch has shape {tuple(batch_bs.shape)}; needed: (sequences, at least 2 tokens).")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise RequestError("No parameter of the model is trainable.", hint="Apply an adapter, or unfreeze weights.")
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and batch_bs.shape[1] > limit:
        raise RequestError(f"Sequences of {batch_bs.shape[1]} tokens do not fit the model's context of {limit}.")
    before = {module: module.training for module in model.modules()}
    batch_bs = batch_bs.to(model.device)
    optimizer = torch.optim.AdamW(trained, lr=0.0)

    def step() -> float:
        _synchronize(model.device)
        start = time.perf_counter()
        logits = model(input_ids=batch_bs, use_cache=False).logits[:, :-1].float()
        F.cross_entropy(logits.flatten(0, 1), batch_bs[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _synchronize(model.device)
        return time.perf_counter() - start

    model.train()
    try:
        for _ in range(_WARMUP_STEPS):
            step()
        spread = Spread.of([step() for _ in range(steps)])
    finally:
        for module, mode in before.items():
            module.training = mode
    return TrainSpeed(spread, spread.rate(batch_bs.numel()), batch_bs.numel(), steps, torch.get_num_threads())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
