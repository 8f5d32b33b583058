"""Contenders of decoding: hayless's engine, and transformers.generate; greedy, a fixed number of tokens.

What they must agree on are the tokens and their log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.study.bench.gate import Answer
from hayless.study.bench.spec import Prepared


@dataclass(frozen=True)
class Decoding:
    """`tokens` tokens after prompts of one length, side by side. `model` makes the model, the same each time."""

    model: Callable[[], transformers.PreTrainedModel]
    prompts: Callable[[transformers.PreTrainedModel], Sequence[list[int]]]
    tokens: int

    def hayless(self) -> Prepared:
        """The engine, as it chooses to run the model."""
        model = self.model()
        engine, prompts = Engine(model), self.prompts(model)
        options = SamplingOptions(max_tokens=self.tokens, ignore_end=True)

        def run() -> Answer:
            found = engine.generate(prompts, options, batch_size=len(prompts))
            return {"tokens": [one.tokens for one in found], "log-probabilities": [one.logprobs for one in found]}

        return Prepared(run, run)

    def transformers(self) -> Prepared:
        """`generate` at its defaults, past any end token."""
        model = self.model()
        # min_new_tokens would forbid the end token, and so compute something else.
        model.generation_config.eos_token_id = None
        ids = torch.tensor(self.prompts(model))

        def run(**wanted: Any) -> Any:
            return model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=self.tokens,
                pad_token_id=0,
                **wanted,
            )

        def answer() -> Answer:
            found = run(output_logits=True, return_dict_in_generate=True)
            tokens = found.sequences[:, ids.shape[1] :]
            logprobs = torch.stack(found.logits, 1).float().log_softmax(-1)
            return {"tokens": tokens, "log-probabilities": logprobs.gather(-1, tokens[..., None])[..., 0]}

        return Prepared(run, answer)


def random_prompts(rows: int, length: int) -> Callable[[transformers.PreTrainedModel], Sequence[list[int]]]:
    """`rows` prompts of `length` random tokens, the same each time."""

    def prompts(model: transformers.PreTrainedModel) -> Sequence[list[int]]:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(3, model.config.vocab_size, (rows, length), generator=generator).tolist()

    return prompts
