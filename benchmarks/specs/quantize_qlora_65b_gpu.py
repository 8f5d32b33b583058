"""QLoRA at Llama's 65B shape under the limits of a card of 48 GB, packed while it is built; about two minutes."""

from dataclasses import replace

from parts.ways import BUILT, contender, under

from hayless.plan.grid import TrainCase
from hayless.study.bench.gate import Plain, close
from hayless.study.bench.spec import Contender, Spec, Work


def _large(rank: int, gib: float) -> Contender:
    """The 65B shape under a limit, while it is built too."""
    way = f"nf4+lora(rank={rank})+paged+checkpointing+chunked_loss+fused_kernels"
    found = contender(f"hayless, rank {rank}", TrainCase("llama-65b", way, 1, 512), peak=under(gib))
    return replace(found, goals={**found.goals, BUILT: under(gib)}, needs=("triton",))


def _begin_alike(reference: Plain, other: Plain) -> str:
    """B is zero at first, so that any rank begins as the same model; gradient norms are those of other parameters."""
    return close(relative=0.001)({"loss": reference["loss"]}, {"loss": other["loss"]})


SPEC = Spec(
    name="quantize_qlora_65b_gpu",
    device="cuda",
    turns="alone",
    works=[
        Work(
            "training step, LoRA on all linears in nf4 with double quantization, Llama-65B shape, random weights,"
            " AdamW in pages, 1 × 512 tokens, checkpointing, fused kernels, chunked loss",
            [_large(64, 44), _large(16, 38)],
            same=_begin_alike,
            piece="step",
            tokens=512,
            repeats=3,
            warmup=2,
        ),
    ],
)
