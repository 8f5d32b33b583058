"""Trained parameters and files of every kind of adapter, against what is predicted before anything is there.

`--input models=FOLDER` has the trained target; the other model has biases, and random weights.
"""

from functools import partial

from parts.sizes import GPT2, contender, random_base, trained_base

from hayless.core.registry import configure
from hayless.study.bench.gate import close
from hayless.study.bench.spec import Spec, Work

_CONFIGS = {
    "lora": configure("lora"),
    "lora, attention alone, rank 16": configure("lora", rank=16, targets="attention"),
    "lora, ranks of their own, norms too": configure("lora", ranks={"down": 2}, whole="norm"),
    "dora": configure("lora", dora=True),
    "pissa": configure("lora", initial="pissa"),
    "lora_moe": configure("lora_moe"),
    "bottleneck": configure("bottleneck"),
    "bottleneck, parallel, feed-forward": configure("bottleneck", sublayers="feed_forward", form="parallel"),
    "prefix": configure("prefix"),
    "prefix, trained as it is": configure("prefix", projection=None),
    "prompt": configure("prompt"),
    "ia3": configure("ia3"),
}

_work = partial(Work, same=close(), piece="adapter", repeats=1, warmup=0, peaks=False, timed=False, compared=False)

SPEC = Spec(
    name="adapters_sizes_cpu",
    threads=1,
    works=[
        _work(
            "trained target (16M), adapters",
            [contender(name, trained_base, config) for name, config in _CONFIGS.items()],
        ),
        _work(
            f"GPT-2's shape with {GPT2['n_layer']} layers {GPT2['n_embd']} wide, random weights, adapters",
            [
                contender(name, random_base, config)
                for name, config in {**_CONFIGS, "bitfit": configure("bitfit")}.items()
            ],
        ),
    ],
)
