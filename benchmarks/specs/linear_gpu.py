"""The matrix-vector products of a decode step on one GPU, with what is folded into them; some seconds.

Weights are rotated through more than the L2 cache holds, and each contender's products are one CUDA graph.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from parts.graphs import Graph
from parts.limits import moving
from torch import Tensor
from torch.nn import functional as F

from hayless.study.bench.gate import close
from hayless.study.bench.spec import Contender, Limit, Prepared, Spec, Work

_EPS = 1e-6


@dataclass(frozen=True)
class _Product:
    """`copies` times: matrices (n, width) of one input side by side, its RMSNorm before where it has one, SwiGLU after
    where they are gate and up."""

    name: str
    width: int
    sizes: tuple[int, ...]
    copies: int
    norm: bool = True
    gated: bool = False

    def work(self) -> Work:
        size = 2.0 * self.width * sum(self.sizes)
        shape = f"{self.width} → {' + '.join(map(str, self.sizes))}"
        return Work(
            f"{self.name} of one token, {shape}, bf16, {self.copies} matrices in turn",
            [Contender("PyTorch", self.pytorch), Contender("hayless", self.hayless, needs=("triton",))],
            same=close(absolute=0.05, relative=0.02),
            piece="product",
            pieces=self.copies,
            repeats=50,
            warmup=5,
            peaks=False,
            limit=Limit("limit of memory", lambda: moving(size)),
        )

    def pytorch(self) -> Prepared:
        """Merged weights in cuBLAS, what stands around them in PyTorch's own kernels."""
        x, gain, weights = self._made()
        merged = [torch.cat(parts) for parts in weights]

        def one(weight: Tensor) -> Tensor:
            y = F.linear(F.rms_norm(x, (self.width,), gain, _EPS) if self.norm else x, weight)
            if not self.gated:
                return y
            gate, up = y.chunk(2, -1)
            return F.silu(gate) * up

        return _graphed(lambda: [one(weight) for weight in merged])

    def hayless(self) -> Prepared:
        """The engine's kernel."""
        from hayless.kernels.linear import Norm, gemv

        x, gain, weights = self._made()
        columns = self.sizes[0] if self.gated else sum(self.sizes)
        outs = [torch.empty(1, columns, dtype=x.dtype, device=x.device) for _ in weights]
        norm = Norm(gain, _EPS) if self.norm else None

        def all_of_them() -> list[Tensor]:
            for parts, out in zip(weights, outs, strict=True):
                gemv(x, parts, out, norm=norm, gated=self.gated, overlap=True)
            return outs

        return _graphed(all_of_them)

    def _made(self) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """The input, the norm's gain, and the weights of each copy: such that outputs are of about 1."""
        torch.manual_seed(0)
        kind = {"device": "cuda", "dtype": torch.bfloat16}
        x, gain = torch.randn(1, self.width, **kind), torch.rand(self.width, **kind) + 0.5
        weights = [
            [torch.randn(n, self.width, **kind) * self.width**-0.5 for n in self.sizes] for _ in range(self.copies)
        ]
        return x, gain, weights


def _graphed(run: Callable[[], list[Tensor]]) -> Prepared:
    graph = Graph(run)
    return Prepared(graph.replay, lambda: {"outputs": torch.cat(list(graph.outputs()))})


SPEC = Spec(
    name="linear_gpu",
    device="cuda",
    clock="device",
    works=[
        product.work()
        for product in (
            _Product("q, k and v of Llama-7B's shape", 4096, (4096, 4096, 4096), 10),
            _Product("o of Llama-7B's shape", 4096, (4096,), 10, norm=False),
            _Product("gate and up of Llama-7B's shape", 4096, (11008, 11008), 10, gated=True),
            _Product("down of Llama-7B's shape", 11008, (4096,), 10, norm=False),
            _Product("head of Llama-7B's shape", 4096, (32000,), 10),
            _Product("q, k and v of 16M parameters", 384, (384, 128, 128), 400),
            _Product("gate and up of 16M parameters", 384, (1024, 1024), 100, gated=True),
            _Product("down of 16M parameters", 1024, (384,), 200, norm=False),
            _Product("head of 16M parameters", 384, (8192,), 20),
        )
    ],
)
