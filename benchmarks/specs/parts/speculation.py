"""Contenders of speculative sampling on a pair of models, one text after the other, past any end.

What they must agree on is how far the log-probabilities of their own tokens are from the model in float32 and, where
the likeliest token is asked for, how far those tokens are from the likeliest there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from parts.decoding import Tokens, judged
from parts.models import trained_folder
from torch import Tensor

from hayless.core.measurement import Goal
from hayless.data import stdlib
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.methods.decoding.speculative.accept import Accept, accept, first_false
from hayless.methods.decoding.speculative.config import SpeculativeConfig
from hayless.methods.decoding.speculative.part import Speculative
from hayless.methods.decoding.speculative.predict import expected_tokens
from hayless.methods.decoding.speculative.preflight import Preflight
from hayless.study.bench.gate import SHORTFALL, Answer, as_exact
from hayless.study.bench.spec import TIME, Bound, Contender, Limit, Prepared, Work

_PLAIN, _PEER, _FORMULA = "hayless without drafts", "transformers, assisted", "E/(γc + v)"
_PEER_REPEATS = 2
"""It takes 100 times as long as the others, which have more."""
_NOISE = 0.98
"""A preflight that turns drafts off leaves the same work; times of the same work differ by so much."""
_MODULES = ("argparse", "contextlib", "statistics", "textwrap")


@dataclass(frozen=True)
class Speculation:
    """`tokens` tokens after each prompt, by `target` with the help of `draft`.

    `judged` is False where a rule other than the papers' says what is kept, so that texts are not the model's.
    """

    target: Callable[[], transformers.PreTrainedModel]
    draft: Callable[[], transformers.PreTrainedModel]
    prompts: Callable[[], Tokens]
    tokens: int
    temperature: float = 0.0
    rule: Accept = accept
    judged: bool = True

    def plain(self) -> Prepared:
        """The engine without drafts."""
        return self._prepared(Engine(self.target()))

    def drafted(self, **options: Any) -> Prepared:
        """The engine with a draft; `options` are those of the method."""
        return self._prepared(self._engine(**options))

    def formula(self, drafted: int, **options: Any) -> Bound:
        """E/(γc + v) from the engine's time a token without drafts, and c, v and α as measured here."""
        plain, engine = Engine(self.target()), self._engine(tokens=drafted, preflight=False, **options)
        for one in (plain, engine):
            self._run(one, self.tokens)
        seconds = [one.seconds_per_token for one in self._run(plain, self.tokens)]
        measured = self._measured(drafted, **options)
        part = engine.draft
        assert isinstance(part, Speculative) and part.tally.acceptance is not None
        expected = expected_tokens(part.tally.acceptance, drafted)
        gain = expected / (drafted * measured.cost + measured.verify)
        return Bound(
            float(np.median([one for one in seconds if one is not None])) / gain,
            f"γ {drafted}, c {measured.cost:.3g}, v {measured.verify:.3g}, α {part.tally.acceptance:.3g}:"
            f" E {expected:.3g}, {gain:.3g} times as fast as without",
        )

    def assisted(self) -> Prepared:
        """transformers' assisted generation at its defaults."""
        target, draft = self.target(), self.draft()
        target.generation_config.eos_token_id = None

        def run(count: int, **wanted: Any) -> list[Any]:
            found = []
            for seed, prompt in enumerate(self.prompts()):
                ids = torch.tensor([prompt], device=target.device)
                torch.manual_seed(seed)
                one = target.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    assistant_model=draft,
                    do_sample=self.temperature > 0,
                    top_k=0,  # its default would keep 50
                    max_new_tokens=count,
                    pad_token_id=0,
                    **wanted,
                )
                found.append(one if wanted else one.tolist())
            return found

        def answer() -> Answer:
            found = run(self.tokens, output_logits=True, return_dict_in_generate=True)
            prompts = self.prompts()
            tokens = [one.sequences[0, len(prompt) :].tolist() for one, prompt in zip(found, prompts, strict=True)]
            logits = [torch.cat(one.logits).float().log_softmax(-1).cpu() for one in found]
            logprobs = [
                each[: len(made)].gather(-1, torch.tensor(made)[:, None])[:, 0].tolist()
                for each, made in zip(logits, tokens, strict=True)
            ]
            return self._answer(tokens, logprobs)

        return Prepared(lambda: run(self.tokens), answer, lambda: run(1))

    def _engine(self, **options: Any) -> Engine:
        target = self.target()
        config = SpeculativeConfig(**{"draft": "given", **options})
        draft = self.draft() if config.draft == "given" else None
        return Engine(target, draft=Speculative(config, target, draft=draft, rule=self.rule))

    def _measured(self, drafted: int, **options: Any) -> Preflight:
        """c and v, from a preflight with so many drafted tokens."""
        engine = self._engine(tokens=drafted, **options)
        self._run(engine, self.tokens, self.prompts()[:1])
        part = engine.draft
        assert isinstance(part, Speculative)
        return next(iter(part.preflights.values()))

    def _prepared(self, engine: Engine) -> Prepared:
        def answer() -> Answer:
            found = self._run(engine, self.tokens)
            return self._answer([one.tokens for one in found], [one.logprobs for one in found])

        return Prepared(lambda: self._run(engine, self.tokens), answer, lambda: self._run(engine, 1))

    def _run(self, engine: Engine, count: int, prompts: Tokens | None = None) -> list[Any]:
        prompts = self.prompts() if prompts is None else prompts
        options = [
            SamplingOptions(temperature=self.temperature, seed=seed, max_tokens=count, ignore_end=True)
            for seed in range(len(prompts))
        ]
        return engine.generate(prompts, options, batch_size=1)

    def _answer(self, tokens: Tokens, logprobs: Sequence[Sequence[float]]) -> Answer:
        if not self.judged:
            return {}
        found = judged(self.target(), self.prompts(), tokens, logprobs)
        return {name: numbers for name, numbers in found.items() if name != SHORTFALL or self.temperature == 0}


def coin(acceptance: float) -> Accept:
    """Keeps each drafted token with this chance, whatever it is: for times at an acceptance, not for texts."""

    def rule(
        target_bkv: Tensor, draft_bkv: Tensor, tokens_bk: Tensor, keep_bk: Tensor, last_bk: Tensor
    ) -> tuple[Tensor, Tensor]:
        kept_b = first_false(keep_bk < acceptance)
        likeliest_bk = target_bkv.argmax(-1)
        return kept_b, likeliest_bk.gather(1, kept_b[:, None])[:, 0]

    return rule


@cache
def code(length: int) -> Tokens:
    """The first tokens of modules of Python's standard library, as the trained models read them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained_folder("target"))
    library = stdlib.places().library
    texts = [Path(library / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES]
    return [tokenizer(text)["input_ids"][:length] for text in texts]


@cache
def shape(layers: int, **wanted: int) -> transformers.PreTrainedModel:
    """A Llama of some layers with random weights in bf16, made on the GPU."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", num_hidden_layers=layers, vocab_size=32_000, **wanted)
    with torch.device("cuda"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
"""A block of Llama-70B's shape; the one of 7B's is transformers' default."""


def random(length: int, vocabulary: int) -> Tokens:
    """One prompt of random tokens, the same each time."""
    return torch.randint(3, vocabulary, (1, length), generator=torch.Generator().manual_seed(0)).tolist()


def works(pair: Speculation, name: str, *, drafted: int, times: float, repeats: int) -> list[Work]:
    """Greedy, and sampled at temperature 1. The formula is held against `drafted` tokens a pass without a preflight;
    with one, the engine must be `times` as fast as transformers, and never slower than without drafts."""
    name = f"{name}, {pair.tokens} tokens after code"
    sampled = replace(pair, temperature=1.0)
    return [
        _work(pair, f"{name}, greedy", drafted, times, repeats),
        _work(sampled, f"{name}, temperature 1", drafted, times, repeats),
    ]


def _work(pair: Speculation, name: str, drafted: int, times: float, repeats: int) -> Work:
    held = (Goal(op=">=", against=_PEER, ratio=times), Goal(op=">=", against=_PLAIN, ratio=_NOISE))
    return Work(
        name,
        [
            Contender(_PLAIN, pair.plain),
            Contender("hayless, draft model", pair.drafted, goals={TIME: held}),
            Contender("hayless, lookup", partial(pair.drafted, draft="lookup"), goals={TIME: held}),
            _always(pair, drafted),
            Contender(_PEER, pair.assisted, repeats=_PEER_REPEATS),
        ],
        same=as_exact(rounding=2**-3),  # peers' logits are bf16, which lie so far apart from 16 on
        piece="token",
        pieces=pair.tokens * len(_MODULES),
        repeats=repeats,
        warmup=0,  # all have answered by then
        peaks=False,
        limit=Limit(_FORMULA, partial(pair.formula, drafted)),
    )


def imposed(pair: Speculation, name: str, drafted: int) -> Work:
    """Times where a coin says what is kept: nobody's text is judged, since it is nobody's."""
    return Work(
        name,
        [Contender(_PLAIN, pair.plain), _always(pair, drafted)],
        same=lambda reference, other: "",
        piece="token",
        pieces=pair.tokens,
        repeats=5,
        warmup=0,
        peaks=False,
        limit=Limit(_FORMULA, partial(pair.formula, drafted)),
    )


def _always(pair: Speculation, drafted: int) -> Contender:
    goal = Goal(op=">=", against=_FORMULA, ratio=0.9)
    name = f"hayless, draft model, always {drafted} tokens"
    return Contender(name, partial(pair.drafted, tokens=drafted, preflight=False), goals={TIME: goal})
