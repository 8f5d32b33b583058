"""Early exit and self-speculation with a model that LayerSkip trained, beside the engine with all its layers.

Two models, since layers learn either to let tokens leave or to draft: `--input layerskip=FOLDER` and
`--input layerskip_drafts=FOLDER` have them, each `model/` of a run of recipes/layerskip-target.yaml;
`--input models=FOLDER` has what they were before, in `target/`.
On a GPU all run in captured graphs, which branch on the device where tokens leave by confidence; on a CPU all have one
thread.
"""

from functools import partial

import torch
from parts.leaving import DRAFTING, LEAVING, Leaving, no_worse, prompts, trained, trained_device
from parts.models import trained as trained_pair
from parts.speculation import Speculation
from transformers import PreTrainedModel

from hayless.core.measurement import Goal
from hayless.study.bench.gate import as_exact
from hayless.study.bench.spec import TIME, Contender, Limit, Spec, Work

_DEVICE, _TOKENS, _RISE = trained_device(), 96, 0.01
_PLAIN, _FORMULA = "hayless, all layers", "E/(γc + v)"
_MODEL, _DRAFTS = partial(trained, LEAVING, _DEVICE), partial(trained, DRAFTING, _DEVICE)
_NAME = f"LayerSkip-trained model, {'fp32, one thread' if _DEVICE == 'cpu' else 'bf16'}, batch 1, {_TOKENS} tokens"


def _leaving(**options: object) -> Leaving:
    return Leaving(_MODEL, _TOKENS, _RISE, tuple(options.items()) if options else None)


def _exit(name: str, **options: object) -> Contender:
    goal = Goal(op=">=", against=_PLAIN, ratio=1.25)
    return Contender(f"hayless, early exit by {name}", _leaving(**options).prepared, goals={TIME: goal})


def _self(layers: int) -> Contender:
    goal = Goal(op=">=", against=_PLAIN, ratio=1.15)
    prepare = partial(_SELF.drafted, draft="self", layers=layers)
    return Contender(f"hayless, first {layers} layers draft", prepare, goals={TIME: goal})


def _always(layers: int, tokens: int) -> Contender:
    goal = Goal(op=">=", against=_FORMULA, ratio=0.9)
    prepare = partial(_SELF.drafted, draft="self", layers=layers, tokens=tokens, preflight=False)
    return Contender(f"hayless, first {layers} layers draft, always {tokens} tokens", prepare, goals={TIME: goal})


def _before() -> PreTrainedModel:
    return trained_pair("target", torch.float32 if _DEVICE == "cpu" else torch.bfloat16, _DEVICE)


_SELF = Speculation(_DRAFTS, _DRAFTS, prompts, tokens=_TOKENS)

SPEC = Spec(
    name="early_exit",
    device="cuda" if _DEVICE == "cuda" else "cpu",
    threads=1 if _DEVICE == "cpu" else None,
    works=[
        Work(
            f"{_NAME}, at most {_RISE:.0%} more bits per byte",
            [
                Contender(_PLAIN, _leaving().prepared),
                _exit("schedule, over 2 tokens", confidence="schedule", over=2),
                _exit("softmax behind layer 6", confidence="softmax", least=6, every=8),
                _exit("classifier behind layer 6", confidence="classifier", least=6, every=8),
                _exit("state behind layer 6", confidence="state", least=6, every=8),
                _exit("softmax behind layer 4", confidence="softmax", least=4, every=8),
                _exit(
                    "classifier behind layer 4, heads learnt", confidence="classifier", heads="learnt", least=4, every=8
                ),
            ],
            same=no_worse(_RISE),
            piece="token",
            pieces=_TOKENS * 4,
            repeats=15,
            peaks=False,
        ),
        Work(
            f"{_NAME}, without loss",
            [
                Contender(_PLAIN, _SELF.plain),
                _self(1),
                _self(2),
                _self(3),
                _always(2, 1),
            ],
            same=as_exact(),
            piece="token",
            pieces=_TOKENS * 4,
            repeats=15,
            warmup=0,
            peaks=False,
            limit=Limit(_FORMULA, partial(_SELF.formula, 1, draft="self", layers=2)),
        ),
        Work(
            "what LayerSkip's training changed, all layers",
            [
                Contender("before it", Leaving(_before, _TOKENS, _RISE).prepared),
                Contender("after it, to leave", _leaving().prepared),
                Contender("after it, to draft", Leaving(_DRAFTS, _TOKENS, _RISE).prepared),
            ],
            same=lambda reference, other: "",
            piece="token",
            timed=False,
            peaks=False,
        ),
    ],
)
