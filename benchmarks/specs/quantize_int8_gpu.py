"""LLM.int8() on one GPU: one token, 16 and 4096 through two matrices, with 1% of the input's columns outlying; minutes.

Weights are read in turn, more than the L2 cache holds. What can be captured is one CUDA graph; bitsandbytes' product
waits for the number of outliers, and runs as its users run it. Quantized inputs give other numbers than fp16: each is
held to its distance from it. That the kernels compute what the formula says is tested by themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from parts.graphs import Graph
from parts.limits import moving
from torch import Tensor, nn
from torch.nn import functional as F

from hayless.core.measurement import Goal
from hayless.kernels import fp8
from hayless.kernels.int8 import plain
from hayless.study.bench.gate import Plain
from hayless.study.bench.spec import TIME, Contender, Limit, Prepared, Spec, Unavailable, Work

_THRESHOLD = 6.0
_FP16, _BITSANDBYTES, _INT_MM = "fp16 cuBLAS", "bitsandbytes int8", "torch._int_mm alone"
_LEAST = 17
"""Rows that `torch._int_mm` wants at least."""
_SHOWN = 64
"""Tokens of an answer."""
_APART = 0.06
"""How far a quantized product may be from fp16's: root mean square of the difference, of that of fp16's. Rounding both
factors to 3 bits of mantissa makes 0.037 of it, to 8 bits by rows 0.013."""

Multiply = Callable[[Tensor], Tensor]
Maker = Callable[[Tensor], Multiply]
"""From a weight (out, in) in fp16 what multiplies x (tokens, in) by it."""


@dataclass(frozen=True)
class _Product:
    """`tokens` times `copies` matrices (rows, width) in turn."""

    width: int
    rows: int
    tokens: int
    copies: int

    def by(self, make: Maker, *, captured: bool = True) -> Prepared:
        """The products that `make` gives."""
        torch.manual_seed(0)
        x = torch.randn(self.tokens, self.width, device="cuda").clamp(-5.5, 5.5)
        x[:, torch.randperm(self.width, device="cuda")[: self.width // 100]] *= 20
        x = x.half()
        products = []
        for _ in range(self.copies):
            weight = torch.randn(self.rows, self.width, device="cuda", dtype=torch.float16) * self.width**-0.5
            products.append(make(weight))
            del weight

        @torch.no_grad()  # what inference mode makes cannot be written over outside of it
        def run() -> list[Tensor]:
            return [multiply(x) for multiply in products]

        graph = Graph(run) if captured else None

        def answer() -> dict[str, Tensor]:
            outputs = graph.outputs() if graph else run()
            return {str(number): found[: min(_SHOWN, self.tokens)] for number, found in enumerate(outputs)}

        return Prepared(graph.replay if graph else run, answer)

    def int_mm(self) -> Prepared:
        """The product of codes alone, without quantization, scales or outliers: it can only be judged by its time."""
        torch.manual_seed(0)
        x = torch.randint(-127, 128, (max(_LEAST, self.tokens), self.width), dtype=torch.int8, device="cuda")
        shape = (self.rows, self.width)
        weights = [torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda") for _ in range(self.copies)]
        graph = Graph(lambda: [torch._int_mm(x, weight.T) for weight in weights])
        return Prepared(graph.replay, dict)

    def work(self, fp16: float, bitsandbytes: float) -> Work:
        """Ours held to so many times the speed of each."""
        goals = (
            Goal(op=">=", against=_FP16, ratio=fp16),
            Goal(op=">=", against=_BITSANDBYTES, ratio=bitsandbytes),
        )
        few = self.tokens <= 16
        size = self.rows * self.width + 2 * self.tokens * (self.rows + self.width)
        return Work(
            f"{self.tokens} token{'s' if self.tokens > 1 else ''}, {self.width} → {self.rows}, 1% of columns outlying",
            [
                Contender(_FP16, lambda: self.by(_cublas)),
                Contender("hayless int8", lambda: self.by(_int8), ("triton",), {TIME: goals}),
                Contender("hayless int8, no graph", lambda: self.by(_int8, captured=False), ("triton",)),
                Contender("hayless fp8", lambda: self.by(_fp8)),
                Contender(_INT_MM, self.int_mm),
                Contender(_BITSANDBYTES, lambda: self.by(_bitsandbytes, captured=False), ("bitsandbytes",)),
            ],
            same=_near_enough,
            piece="product",
            pieces=self.copies,
            repeats=50 if few else 20,
            warmup=5,
            peaks=False,
            limit=Limit("limit of memory", lambda: moving(size)) if few else None,
        )


def _near_enough(reference: Plain, other: Plain) -> str:
    """Every product within `_APART` of the reference's; what has no answer is not judged."""
    for name, wanted in reference.items() if other else ():
        found = other[name]
        if found.shape != wanted.shape or not np.isfinite(found).all():
            return f"product {name} is not finite, or of shape {found.shape} instead of {wanted.shape}"
        apart = float(np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()))
        if apart > _APART:
            return f"product {name} is {apart:.3g} of its size apart; allowed: {_APART:g}"
    return ""


def _cublas(weight: Tensor) -> Multiply:
    return lambda x: F.linear(x, weight)


def _int8(weight: Tensor) -> Multiply:
    from hayless.kernels.int8.backend import product_for

    codes, scale = plain.rows_quantized(weight.float())
    return lambda x: product_for(x, codes, scale, _THRESHOLD)(x, codes, scale, None, _THRESHOLD)


def _fp8(weight: Tensor) -> Multiply:
    codes, scale = fp8.rows_quantized(weight)
    if not fp8.has_kernel(weight, codes):
        raise Unavailable("this GPU has no units for e4m3")
    return lambda x: fp8.product(x, codes, scale, None)


def _bitsandbytes(weight: Tensor) -> Multiply:
    """Its Linear8bitLt, at its default but for the threshold."""
    import bitsandbytes as bnb

    rows, width = weight.shape
    layer = bnb.nn.Linear8bitLt(width, rows, bias=False, has_fp16_weights=False, threshold=_THRESHOLD, device="meta")
    layer.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    found: nn.Module = layer.cuda()
    return found


SPEC = Spec(
    name="quantize_int8_gpu",
    device="cuda",
    clock="device",
    works=[
        _Product(4096, 16384, 1, 4).work(1.5, 10),
        _Product(4096, 16384, 16, 4).work(1.5, 10),
        _Product(8192, 28672, 1, 2).work(1.5, 5),
        _Product(8192, 28672, 16, 2).work(1.5, 5),
        _Product(4096, 16384, 4096, 2).work(1.2, 2),
        _Product(8192, 28672, 4096, 1).work(1.5, 2),
    ],
)
