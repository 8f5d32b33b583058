"""Decoding with small trained models on one CPU thread, beside transformers.generate.

`--input stories=FILE` and `--input models=FOLDER` have the models.
"""

from functools import partial

import torch
from parts.decoding import Decoding, code_prompt
from parts.models import stories, trained

from hayless.core.measurement import Goal
from hayless.study.bench.gate import close
from hayless.study.bench.spec import TIME, Contender, Spec, Work

_TOKENS = 200


def _trained(name: str, decoding: Decoding) -> Work:
    goal = Goal(op=">=", against="transformers.generate", ratio=2.5)
    return Work(
        f"{name}, fp32, batch 1, one thread",
        [
            Contender("transformers.generate", decoding.transformers),
            Contender("hayless", decoding.hayless, goals={TIME: goal}),
        ],
        same=close(absolute=1e-3),
        piece="token",
        pieces=_TOKENS,
        repeats=9,
        warmup=1,
        peaks=False,
    )


_STORIES = Decoding(stories, lambda model: [[1]], _TOKENS, after_first=True)
_DRAFT = Decoding(partial(trained, "draft", torch.float32, "cpu"), code_prompt(64), _TOKENS, after_first=True)

SPEC = Spec(
    name="decode_trained_cpu",
    threads=1,
    works=[
        _trained("TinyStories (260K), after its begin token", _STORIES),
        _trained("trained draft (2.4M), 64 tokens of code before", _DRAFT),
    ],
)
