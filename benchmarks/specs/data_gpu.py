"""Whether data keeps up with a GPU, and what packed rows cost by their lengths and under masks; about two minutes."""

from functools import partial

from parts.models import LLAMA_1B
from parts.packing import WAITING, Text, packed_step, training_loop
from parts.training import Training

from hayless.core.measurement import Goal
from hayless.study.bench.gate import close
from hayless.study.bench.spec import TIME, Contender, Spec, Work

_STEPS, _REPEATS = 6, 6
_STEP = Training(LLAMA_1B, rows=8, length=2048, precision="bf16", device="cuda")
_SHAPE = "Llama-1B shape, random weights, all bf16, AdamW, 8 × 2048 tokens"
_loop = partial(training_loop, _STEP, _STEPS, _REPEATS + 1)


def _packed(what: str, text: Text, *, peaks: bool) -> Work:
    """The same rows under a mask and by their lengths."""
    return Work(
        f"training step, {_SHAPE} of {what}",
        [
            Contender("sdpa, an explicit mask", partial(packed_step, _STEP, text, "sdpa")),
            Contender("varlen, cumulative lengths", partial(packed_step, _STEP, text, "varlen")),
        ],
        # bf16 keeps 8 bits, of a norm too.
        same=close(relative=0.01),
        piece="step",
        tokens=_STEP.tokens,
        repeats=10,
        warmup=2,
        peaks=peaks,
    )


SPEC = Spec(
    name="data_gpu",
    device="cuda",
    works=[
        Work(
            f"the trainer's loop, {_SHAPE} of Python's library, packed",
            [
                Contender("batches made before", partial(_loop, made_before=True)),
                Contender(
                    "batches made as they are needed",
                    partial(_loop, made_before=False),
                    goals={
                        TIME: Goal(op=">=", against="batches made before", ratio=0.98),
                        WAITING: Goal(op="<=", value=0.02),
                    },
                ),
            ],
            same=close(relative=1e-5),
            piece="step",
            pieces=_STEPS,
            tokens=_STEP.tokens,
            repeats=_REPEATS,
            warmup=1,
            peaks=False,
        ),
        _packed("Python's library (1 to 3 documents a row)", "stdlib", peaks=True),
        _packed("what its signatures do (about 35 examples a row)", "stdlib_instructions", peaks=False),
    ],
)
