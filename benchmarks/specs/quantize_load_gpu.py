"""Packing a 7B shape to nf4 from 16-bit shards on disk, beside transformers with bitsandbytes; about two minutes.

13.5 GB of shards are left in `benchmarks/.cache`.
"""

from parts.loading import ANONYMOUS, SHARD_BYTES, Loading
from parts.models import LLAMA_7B

from hayless.core.measurement import Goal
from hayless.study.bench.gate import close
from hayless.study.bench.spec import TIME, Contender, Spec, Work

_PEER = "transformers and bitsandbytes"
_loading = Loading("llama-7b-shape", LLAMA_7B, "cuda")

SPEC = Spec(
    name="quantize_load_gpu",
    device="cuda",
    turns="alone",
    works=[
        Work(
            "loading a folder to the GPU in nf4 with double quantization, Llama-7B shape, random weights in bf16,"
            " shards of 2 GB in the system's cache",
            [
                Contender(_PEER, _loading.transformers, needs=("bitsandbytes", "accelerate")),
                Contender(
                    "hayless",
                    _loading.hayless,
                    goals={
                        TIME: Goal(op=">=", against=_PEER, ratio=1.0),
                        ANONYMOUS: Goal(op="<=", value=1.2 * SHARD_BYTES),
                    },
                ),
            ],
            # Where two values are equally near, kernels and the CPU need not choose the same.
            same=close(relative=1e-3),
            piece="load",
            repeats=3,
            warmup=0,
            peaks=True,
            rehearse=_loading.make,
        )
    ],
)
