"""Early exit and self-speculation with a model that LayerSkip trained, beside the engine with all its layers.

`--input layerskip=FOLDER` has the model: `model/` of a run of recipes/layerskip.yaml. On a GPU the engine with all
layers and self-speculation run in captured graphs, and early exit on the host's schedule; on a CPU all have one thread.
"""

from functools import partial

from parts.leaving import Leaving, no_worse, prompts, trained, trained_device
from parts.speculation import Speculation

from hayless.core.measurement import Goal
from hayless.study.bench.gate import as_exact
from hayless.study.bench.spec import TIME, Contender, Spec, Work

_DEVICE, _TOKENS, _RISE = trained_device(), 96, 0.01
_PLAIN = "hayless, all layers"
_MODEL = partial(trained, _DEVICE)
_NAME = f"LayerSkip-trained model, {'fp32, one thread' if _DEVICE == 'cpu' else 'bf16'}, batch 1, {_TOKENS} tokens"


def _leaving(**options: object) -> Leaving:
    return Leaving(_MODEL, _TOKENS, _RISE, tuple(options.items()) if options else None)


def _exit(name: str, **options: object) -> Contender:
    goal = Goal(op=">=", against=_PLAIN, ratio=1.25)
    return Contender(f"hayless, early exit by {name}", _leaving(**options).prepared, goals={TIME: goal})


def _self(layers: int) -> Contender:
    pair = Speculation(_MODEL, _MODEL, prompts, tokens=_TOKENS)
    goal = Goal(op=">=", against=_PLAIN, ratio=1.15)
    return Contender(
        f"hayless, first {layers} layers draft", partial(pair.drafted, draft="self", layers=layers), goals={TIME: goal}
    )


SPEC = Spec(
    name="early_exit",
    device="cuda" if _DEVICE == "cuda" else "cpu",
    threads=1 if _DEVICE == "cpu" else None,
    works=[
        Work(
            f"{_NAME}, at most {_RISE:.0%} more bits per byte",
            [
                Contender(_PLAIN, _leaving().prepared),
                _exit("softmax", confidence="softmax"),
                _exit("softmax, behind every second layer", confidence="softmax", every=2),
                _exit("state", confidence="state"),
                _exit("classifier", confidence="classifier"),
                _exit("classifier, heads learnt", confidence="classifier", heads="learnt"),
                _exit("schedule", confidence="schedule"),
            ],
            same=no_worse(_RISE),
            piece="token",
            pieces=_TOKENS * 4,
            repeats=5,
            warmup=0,  # all have answered by then
            peaks=False,
        ),
        Work(
            f"{_NAME}, without loss",
            [
                Contender(_PLAIN, Speculation(_MODEL, _MODEL, prompts, tokens=_TOKENS).plain),
                _self(1),
                _self(2),
                _self(3),
            ],
            same=as_exact(),
            piece="token",
            pieces=_TOKENS * 4,
            repeats=5,
            warmup=0,
            peaks=False,
        ),
    ],
)
