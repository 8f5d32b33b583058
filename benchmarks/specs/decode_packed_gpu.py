"""Decoding with packed weights on one GPU, beside the engine's own decoding in bf16; a minute and a half."""

from functools import partial
from typing import Any

import torch
import transformers
from parts.decoding import Decoding, random_prompts
from parts.models import LLAMA_7B
from parts.speculation import LLAMA_70B

from hayless.core.measurement import Goal
from hayless.core.registry import configure
from hayless.model.transform import apply
from hayless.study.bench.gate import as_exact
from hayless.study.bench.spec import TIME, Contender, Spec, Work

_TOKENS, _CONTEXT = 64, 512
_PLAIN = "hayless, bf16"
_WAYS = {
    "hayless, 4 bits, groups of 64": ("uniform", {"bits": 4, "group_size": 64}),
    "hayless, nf4": ("nf4", {}),
    "hayless, int8": ("int8", {}),
}


def _model(changes: dict[str, Any], method: str | None, options: dict[str, Any]) -> transformers.PreTrainedModel:
    """Llama-7B's shape with `changes`, random weights, packed by a method."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        config = transformers.AutoConfig.for_model(**(LLAMA_7B | changes))
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    if method is not None:
        apply(model, [configure(method, **options)])
    return model


def _contender(name: str, changes: dict[str, Any], way: tuple[str | None, dict[str, Any]], goals: Any) -> Contender:
    model = partial(_model, changes, *way)
    decoding = Decoding(model, random_prompts(1, _CONTEXT - _TOKENS // 2), _TOKENS, after_first=True, judged=True)
    return Contender(name, decoding.hayless, goals=goals)


def _work(shape: str, changes: dict[str, Any], times: float) -> Work:
    goal = {TIME: Goal(op=">=", against=_PLAIN, ratio=times)}
    contenders = [_contender(_PLAIN, changes, (None, {}), {})]
    contenders += [_contender(name, changes, way, {} if way[0] == "int8" else goal) for name, way in _WAYS.items()]
    return Work(
        f"{shape}, random weights, batch 1, context {_CONTEXT}",
        contenders,
        same=as_exact(times=8.0, worst=24.0),  # int8 rounds the inputs of prompts, and float32 rounds others
        piece="token",
        pieces=_TOKENS,
        repeats=5,
        peaks=False,
    )


SPEC = Spec(
    name="decode_packed_gpu",
    device="cuda",
    works=[
        _work("Llama-7B shape", {}, 2.2),
        _work("8 layers of Llama-70B's shape, vocabulary of 32,000", LLAMA_70B | {"num_hidden_layers": 8}, 2.6),
    ],
)
