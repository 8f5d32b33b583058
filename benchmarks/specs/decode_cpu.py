"""Decoding with the demo's model on the CPU, beside transformers.generate."""

from functools import partial

from parts.decoding import Decoding, random_prompts
from parts.demo import config

from hayless.measure.rehearsal import rehearse_decoding
from hayless.model.build import build_model
from hayless.study.bench.gate import close
from hayless.study.bench.spec import Contender, Spec, Work

_PROMPT, _TOKENS = 32, 64


def _demo(rows: int) -> Work:
    decoding = Decoding(partial(build_model, config("target")), random_prompts(rows, _PROMPT), _TOKENS)
    return Work(
        "decoding, the demo's Llama (4 layers, 128 wide, vocabulary 2048), random weights, fp32,"
        f" {_TOKENS} tokens after {_PROMPT}, batch {rows}, one thread",
        [Contender("transformers.generate", decoding.transformers), Contender("hayless", decoding.hayless)],
        same=close(absolute=1e-3),
        piece="token",
        pieces=_TOKENS,
        tokens=rows,
        repeats=40,
        warmup=2,
        rehearse=partial(rehearse_decoding, "cpu"),
    )


SPEC = Spec(name="decode_cpu", threads=1, works=[_demo(1), _demo(8)])
