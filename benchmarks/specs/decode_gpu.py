"""Decoding on one GPU, beside transformers.generate and the limit of memory; about two minutes.

`--input models=FOLDER` has the trained model.
"""

from functools import partial

import torch
from parts.decoding import Decoding, code_prompt, random_prompts
from parts.limits import reading_weights
from parts.models import llama_7b, trained
from parts.steps import Step

from hayless.core.measurement import Goal
from hayless.study.bench.gate import as_exact
from hayless.study.bench.spec import TIME, Contender, Limit, Spec, Work

_TOKENS = 64
_LIMIT, _PEER = "limit of memory", "transformers.generate"


def _against_generate(name: str, decoding: Decoding, limit: Limit, goals: tuple[Goal, ...]) -> Work:
    return Work(
        name,
        [Contender(_PEER, decoding.transformers), Contender("hayless", decoding.hayless, goals={TIME: goals})],
        same=as_exact(),
        piece="token",
        pieces=_TOKENS,
        repeats=3,
        warmup=0,  # all have answered by then
        peaks=False,
        limit=limit,
    )


def _llama_7b(rows: int, context: int, share: float, times: float | None = None) -> Work:
    """`context` is that in the middle of what is timed."""
    decoding = Decoding(llama_7b, random_prompts(rows, context - _TOKENS // 2), _TOKENS, after_first=True, judged=True)
    goals = [Goal(op=">=", against=_LIMIT, ratio=share)]
    goals += [Goal(op=">=", against=_PEER, ratio=times)] if times else []
    return _against_generate(
        f"Llama-7B shape, random weights, bf16, batch {rows}, context {context}",
        decoding,
        Limit(_LIMIT, lambda: reading_weights(llama_7b(), rows, context)),
        tuple(goals),
    )


def _target() -> Work:
    model = partial(trained, "target", torch.bfloat16, "cuda")
    decoding = Decoding(model, code_prompt(64), _TOKENS, after_first=True, judged=True)
    return _against_generate(
        "trained target (16M), bf16, batch 1, 64 tokens of code before",
        decoding,
        Limit(_LIMIT, lambda: reading_weights(model(), 1, 64 + _TOKENS / 2)),
        (Goal(op=">=", against=_PEER, ratio=50),),
    )


def _step(rows: int) -> Work:
    step = Step(llama_7b, rows, 512)
    return Work(
        f"a step of {rows} row{'s' * (rows > 1)} on the device, Llama-7B shape, random weights, bf16, 512 tokens in the"
        " cache",
        [
            Contender("plain PyTorch", step.plain),
            Contender("hayless", step.captured),
            Contender("hayless, deterministic", partial(step.captured, invariant=True)),
        ],
        same=as_exact(),
        piece="step",
        repeats=30,
        warmup=5,
        peaks=False,
        limit=Limit(_LIMIT, lambda: reading_weights(llama_7b(), rows, 512)),
        clock="device",
    )


SPEC = Spec(
    name="decode_gpu",
    device="cuda",
    works=[
        _llama_7b(1, 512, 0.85, 14),
        _llama_7b(32, 512, 0.70),
        _llama_7b(1, 8192, 0.70),
        *(_step(rows) for rows in (1, 2, 4, 8, 16)),
        _target(),
    ],
)
