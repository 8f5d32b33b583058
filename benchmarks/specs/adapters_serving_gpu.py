"""64 rows with 64 different adapters in one decode batch, beside the base without any and PEFT's mixed batch."""

from functools import partial

from parts.adapters import Mixed
from parts.models import llama_7b

from hayless.core.measurement import Goal
from hayless.study.bench.gate import as_exact
from hayless.study.bench.spec import RATE, Contender, Limit, Spec, Work

_ROWS, _CONTEXT, _RANK = 64, 512, 16
_BASE, _PEER = "hayless, the base without adapters", "PEFT, adapter_names"


def _work(name: str, mixed: Mixed, other: Contender, goal: Goal) -> Work:
    return Work(
        name,
        [other, Contender("hayless", mixed.hayless, goals={RATE: goal})],
        same=as_exact(),
        piece="step",
        pieces=mixed.steps,
        tokens=_ROWS,
        repeats=mixed.repeats,
        warmup=0,  # all have made tokens for the gate by then
        peaks=False,
        limit=Limit("limit of memory", mixed.bound),
    )


_beside = Mixed(llama_7b, _ROWS, _CONTEXT, _RANK, steps=4, repeats=8)
_few = Mixed(llama_7b, _ROWS, _CONTEXT, _RANK, steps=1, repeats=3)

SPEC = Spec(
    name="adapters_serving_gpu",
    device="cuda",
    works=[
        _work(
            f"a step of {_ROWS} rows without and with {_ROWS} adapters of rank {_RANK} on all linears, Llama-7B shape,"
            f" random weights, bf16, context {_CONTEXT}",
            _beside,
            Contender(_BASE, partial(_beside.hayless, adapted=False)),
            Goal(op=">=", against=_BASE, ratio=0.7),
        ),
        _work(
            f"a step of {_ROWS} rows with {_ROWS} adapters of rank {_RANK} on all linears, Llama-7B shape, random"
            f" weights, bf16, context {_CONTEXT}",
            _few,
            Contender(_PEER, _few.peft, needs=("peft",)),
            Goal(op=">=", against=_PEER, ratio=5),
        ),
    ],
)
