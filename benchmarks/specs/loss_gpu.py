"""The loss of a long vocabulary, forward and backward, on one GPU: all logits, by chunks, and peers; about a minute."""

from functools import partial

from parts.losses import Head
from torch.nn import functional as F

from hayless.core.measurement import Goal
from hayless.study.bench.spec import PEAK, TIME, Contender, Spec, Work

_HEAD = Head(tokens=16_384, width=3584, entries=152_064)
_LIGER, _TORCH, _CUT = "Liger's fused linear cross-entropy", "torch's F.linear_cross_entropy", "cut-cross-entropy"
_PEERS = (_LIGER, _CUT, *[_TORCH] * hasattr(F, "linear_cross_entropy"))
# As fast as the best, in 1.1 of the memory that the best needs.
_BEST = {
    TIME: tuple(Goal(op=">=", against=name, ratio=1.0) for name in _PEERS),
    PEAK: tuple(Goal(op=">=", against=name, ratio=1 / 1.1) for name in _PEERS),
}

SPEC = Spec(
    name="loss_gpu",
    device="cuda",
    clock="device",
    works=[
        Work(
            f"loss of {_HEAD.name}, forward and backward, bf16, one target in ten masked",
            [
                Contender("PyTorch, all logits", _HEAD.plain),
                Contender(_LIGER, _HEAD.liger, needs=("liger_kernel",)),
                Contender(_CUT, _HEAD.cut, needs=("cut_cross_entropy",)),
                Contender(_TORCH, _HEAD.torch),
                *(
                    Contender(f"hayless, chunks of {chunk}", partial(_HEAD.hayless, chunk=chunk), goals=_BEST)
                    for chunk in (512, 1024)
                ),
            ],
            same=_HEAD.same,
            piece="loss",
            tokens=_HEAD.tokens,
            repeats=8,
            warmup=2,
        )
    ],
)
