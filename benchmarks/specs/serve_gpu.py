"""Serving 64 clients that stream, on one GPU, beside one client alone and transformers' generate_batch."""

from parts.decoding import random_prompts
from parts.models import llama_7b
from parts.serving import ALONE, Serving

from hayless.core.measurement import Goal
from hayless.study.bench.gate import as_exact
from hayless.study.bench.spec import RATE, Contender, Spec, Work

_CLIENTS, _TOKENS = 64, 256
_PEER = "transformers.generate_batch"
_serving = Serving(llama_7b, random_prompts(_CLIENTS, _TOKENS), _CLIENTS, _TOKENS)

SPEC = Spec(
    name="serve_gpu",
    device="cuda",
    turns="alone",
    works=[
        Work(
            f"{_CLIENTS} clients at once, {_TOKENS} tokens in and out each, Llama-7B shape, random weights, bf16",
            [
                Contender(_PEER, _serving.generate_batch),
                Contender(
                    "hayless serve",
                    _serving.hayless,
                    needs=("fastapi", "uvicorn"),
                    goals={RATE: Goal(op=">=", against=_PEER, ratio=2), ALONE: Goal(op=">=", value=20)},
                ),
            ],
            same=as_exact(),
            piece="token",
            pieces=_CLIENTS * _TOKENS,
            tokens=1,
            repeats=3,
            warmup=1,
            peaks=False,
        )
    ],
)
