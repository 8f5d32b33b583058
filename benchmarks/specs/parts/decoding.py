"""Contenders of decoding: hayless's engine, and transformers.generate; greedy, a fixed number of tokens, past any end.

What they must agree on are the tokens and their log-probabilities; or, where arithmetic in 16 bits makes different
tokens right, how far each is from the same model in float32, over the tokens of its own choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from parts.models import in_float32, trained_folder

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.study.bench.gate import ERROR, SHORTFALL, Answer
from hayless.study.bench.spec import Prepared

Tokens = Sequence[Sequence[int]]
_JUDGED = 8
"""Rows of a batch that are computed again in float32."""


@dataclass(frozen=True)
class Decoding:
    """`tokens` tokens after prompts of one length, side by side. `model` makes the model, the same each time.

    With `after_first` the tokens that count are those after the first, whose time is mostly the prompt's. `judged`
    answers by float32.
    """

    model: Callable[[], transformers.PreTrainedModel]
    prompts: Callable[[transformers.PreTrainedModel], Tokens]
    tokens: int
    after_first: bool = False
    judged: bool = False

    def hayless(self) -> Prepared:
        """The engine, as it chooses to run the model."""
        model = self.model()
        engine, prompts = Engine(model), self.prompts(model)

        def run(count: int) -> Any:
            options = SamplingOptions(max_tokens=count, ignore_end=True)
            return engine.generate(prompts, options, batch_size=len(prompts))

        def answer() -> Answer:
            found = run(self._count)
            return self._answer(model, [one.tokens for one in found], [one.logprobs for one in found])

        return self._prepared(run, answer)

    def transformers(self) -> Prepared:
        """`generate` at its defaults."""
        model = self.model()
        # min_new_tokens would forbid the end token, and so compute something else.
        model.generation_config.eos_token_id = None
        ids = torch.tensor(self.prompts(model), device=model.device)
        mask = torch.ones_like(ids)

        def run(count: int, **wanted: Any) -> Any:
            found = model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=count, pad_token_id=0, **wanted
            )
            # Tokens are of use on the host, where the engine brings them too.
            return found if wanted else found.tolist()

        def answer() -> Answer:
            found = run(self._count, output_logits=True, return_dict_in_generate=True)
            tokens = found.sequences[:, ids.shape[1] :]
            logprobs = torch.stack(found.logits, 1).float().log_softmax(-1).gather(-1, tokens[..., None])
            return self._answer(model, tokens.tolist(), logprobs[..., 0].tolist())

        return self._prepared(run, answer)

    @property
    def _count(self) -> int:
        return self.tokens + self.after_first

    def _prepared(self, run: Callable[[int], object], answer: Callable[[], Answer]) -> Prepared:
        return Prepared(lambda: run(self._count), answer, (lambda: run(1)) if self.after_first else None)

    def _answer(
        self, model: transformers.PreTrainedModel, tokens: Tokens, logprobs: Sequence[Sequence[float]]
    ) -> Answer:
        if not self.judged:
            return {"tokens": tokens, "log-probabilities": logprobs}
        return judged(model, self.prompts(model), tokens, logprobs)


@torch.inference_mode()
def judged(
    model: transformers.PreTrainedModel, prompts: Tokens, tokens: Tokens, logprobs: Sequence[Sequence[float]]
) -> Answer:
    """How far log-probabilities are from the model in float32, and how far tokens are from the likeliest there."""
    exact = in_float32(model)
    errors, shortfalls = [], []
    for row in range(0, len(prompts), max(1, len(prompts) // _JUDGED)):
        ids = torch.tensor([[*prompts[row], *tokens[row]]], device=exact.device)
        judge = exact(ids, logits_to_keep=len(tokens[row]) + 1).logits[0, :-1].log_softmax(-1).cpu()
        right = judge.gather(-1, torch.tensor(tokens[row])[:, None])[:, 0]
        errors.append(torch.tensor(logprobs[row]) - right)
        shortfalls.append(judge.amax(-1) - right)
    return {ERROR: torch.cat(errors), SHORTFALL: torch.cat(shortfalls)}


def random_prompts(rows: int, length: int) -> Callable[[transformers.PreTrainedModel], Tokens]:
    """`rows` prompts of `length` random tokens, the same each time."""

    def prompts(model: transformers.PreTrainedModel) -> Tokens:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(3, model.config.vocab_size, (rows, length), generator=generator).tolist()

    return prompts


def code_prompt(length: int) -> Callable[[transformers.PreTrainedModel], Tokens]:
    """The first tokens of a module of Python's standard library, as the trained models read it."""

    def prompts(model: transformers.PreTrainedModel) -> Tokens:
        tokenizer = transformers.AutoTokenizer.from_pretrained(trained_folder("target"))
        return [tokenizer(Path(argparse.__file__).read_text(encoding="utf-8"))["input_ids"][:length]]

    return prompts
