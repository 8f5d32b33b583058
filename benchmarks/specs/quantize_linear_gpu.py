"""Linear layers of few bits a weight on one GPU: a decode step's products at Llama-7B's shapes, and one large matrix;
some minutes. Weights of eight layers are read in turn, more than the L2 cache holds; each contender is one CUDA graph.

Every contender multiplies by weights of its own making from the same ones, and is judged by how far it is from
float32's product with those.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from parts import packed
from parts.graphs import Graph
from parts.limits import moving
from torch import Tensor

from hayless.core.measurement import Goal
from hayless.study.bench.gate import ERROR, as_exact
from hayless.study.bench.spec import TIME, Contender, Limit, Prepared, Spec, Work

_CUBLAS, _BITSANDBYTES, _TINYGEMM = "bf16 cuBLAS", "bitsandbytes nf4", "PyTorch tinygemm int4"
_TORCHAO, _GEMLITE, _MARLIN = "torchao int4", "GemLite int4", "Marlin int4"
_LIMIT = "limit of memory"

_LLAMA_7B = ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008))
"""q, k and v; o; gate and up; down: (out, in)."""


@dataclass(frozen=True)
class _Step:
    """`tokens` through products of `shapes`, `layers` times with other weights."""

    shapes: Sequence[tuple[int, int]]
    layers: int
    tokens: int

    def by(self, make: packed.Maker) -> Prepared:
        """The products that `make` gives, as one graph."""
        torch.manual_seed(0)
        products, exact = [], []
        for rows, width in list(self.shapes) * self.layers:
            weight = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16) * width**-0.5
            x = torch.randn(self.tokens, width, device="cuda", dtype=torch.bfloat16)
            product = make(weight)
            exact.append(x.float() @ product.weight.T)
            products.append((product.multiply, x.to(product.dtype)))

        @torch.no_grad()
        def run() -> list[Tensor]:
            return [multiply(x) for multiply, x in products]

        graph = Graph(run)

        def answer() -> dict[str, Tensor]:
            errors = [found.float() - wanted for found, wanted in zip(graph.outputs(), exact, strict=True)]
            return {ERROR: torch.cat([error.flatten() for error in errors])}

        return Prepared(graph.replay, answer)

    def contender(
        self, name: str, make: packed.Maker, needs: tuple[str, ...] = (), goals: tuple[Goal, ...] = ()
    ) -> Contender:
        return Contender(name, lambda: self.by(make), needs, {TIME: goals} if goals else {})

    def peers(self) -> list[Contender]:
        """Those that others made."""
        return [
            self.contender(_BITSANDBYTES, packed.bitsandbytes, ("bitsandbytes",)),
            self.contender(_TINYGEMM, packed.tinygemm),
            self.contender(_TORCHAO, packed.torchao, ("torchao",)),
            self.contender(_GEMLITE, packed.gemlite, ("gemlite",)),
            self.contender(_MARLIN, packed.marlin, ("marlin",)),
        ]

    def work(self, name: str, contenders: Sequence[Contender], limit: Limit | None = None) -> Work:
        return Work(
            name,
            [self.contender(_CUBLAS, packed.cublas), *contenders],
            same=as_exact(),
            piece="layer",
            pieces=self.layers,
            repeats=30,
            warmup=5,
            peaks=False,
            limit=limit,
        )


def _times(**ratios: float) -> tuple[Goal, ...]:
    names = {"cublas": _CUBLAS, "bitsandbytes": _BITSANDBYTES, "tinygemm": _TINYGEMM}
    names |= {"torchao": _TORCHAO, "gemlite": _GEMLITE, "marlin": _MARLIN}
    return tuple(Goal(op=">=", against=names[name], ratio=ratio) for name, ratio in ratios.items())


def _decode_step(tokens: int) -> Work:
    """A layer's products in every form, beside bf16 and all peers."""
    step = _Step(_LLAMA_7B, 8, tokens)
    int4, nf4, int8 = (2.5, 2.2, 1.7) if tokens == 1 else (1.8, 1.8, 1.8)
    ours = [
        step.contender(
            "hayless int4",
            packed.integers(4),
            ("triton",),
            _times(cublas=int4, tinygemm=1.4, torchao=1, gemlite=1, marlin=1),
        ),
        step.contender("hayless int4, Triton", packed.integers(4, triton=True), ("triton",)),
        step.contender("hayless nf4", packed.nf4(), ("triton",), _times(cublas=nf4, bitsandbytes=2.2)),
        step.contender("hayless nf4, double", packed.nf4(double=True), ("triton",), _times(cublas=nf4)),
        step.contender("hayless nf4, Triton", packed.nf4(triton=True), ("triton",)),
        step.contender("hayless int8", packed.integers(8), ("triton",), _times(cublas=int8)),
        step.contender("hayless int8, Triton", packed.integers(8, triton=True), ("triton",)),
    ]
    return step.work(
        f"a layer's products at Llama-7B's shape, {tokens} token{'s' if tokens > 1 else ''}, 8 layers in turn",
        [*ours, *step.peers()],
    )


def _bandwidth(form: str, make: packed.Maker, share: float, scale_bytes: float, peers: Sequence[str]) -> Work:
    """One token times 28672 × 8192: codes and scales are what must be read."""
    rows, width = shape = (28672, 8192)
    step = _Step([shape], 4, 1)
    size = rows * width * (0.5 + scale_bytes) + 2 * (rows + width)
    goal = Goal(op=">=", against=_LIMIT, ratio=share)
    ours = step.contender(f"hayless {form}", make, ("triton",), (goal,))
    others = [one for one in step.peers() if one.name in peers]
    limit = Limit(_LIMIT, lambda: moving(size))
    return step.work(f"one token, 8192 → 28672 in {form}, 4 matrices in turn", [ours, *others], limit)


SPEC = Spec(
    name="quantize_linear_gpu",
    device="cuda",
    clock="device",
    works=[
        _decode_step(1),
        _decode_step(16),
        _bandwidth("int4", packed.integers(4), 0.75, 2 / packed.GROUP, [_TINYGEMM, _TORCHAO, _GEMLITE, _MARLIN]),
        _bandwidth("nf4", packed.nf4(), 0.65, 4 / packed.BLOCK, [_BITSANDBYTES]),
    ],
)
