"""A program's forward pass in Triton kernels, as a captured graph runs it.

Every row takes `positions` new tokens behind what it holds by `lengths_b`, which lies on the device. One token, or a
few of a small model, run in `hayless.kernels.linear.gemv`, each kernel begun while the one before it ends; more in
cuBLAS with the other kernels around it. Without a CUDA device all of it runs in Triton's interpreter, for tests.
Shapes: b rows, s positions, n = b·s tokens, row by row; h hidden, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hayless.core.packing import FEW as FEW_PACKED
from hayless.decode.cache import KernelCache, StaticCache
from hayless.decode.products import (
    AnyProduct,
    Linear,
    PackedProduct,
    add_beside,
    base_of,
    into_each,
    normed_into_each,
)
from hayless.decode.program import Layer, Program
from hayless.kernels import clustered_attention as clustered
from hayless.kernels.attention import Scratch, decode_attention, splits_for
from hayless.kernels.compiled import is_recent
from hayless.kernels.invariant import SPLITS, linear
from hayless.kernels.linear import FEW, Norm, few, gemv, rms_norm, swiglu


class KernelPass:
    """Buffers of a pass over all rows of `cache`: states `x` (n, h), and `logits_nv` (n, v) in float32.

    With `last`, logits are of each row's last position only (b, v). With `invariant`, a row's bits do not depend on how
    many rows there are, nor on the cache's capacity: products and attention are cut up in one way, whatever the shape.
    A cache that brings its own kernel takes one position.
    """

    @torch.inference_mode()
    def __init__(
        self,
        program: Program,
        cache: StaticCache | KernelCache,
        lengths_b: Tensor,
        *,
        positions: int = 1,
        last: bool = False,
        invariant: bool = False,
    ) -> None:
        assert positions == 1 or isinstance(cache, StaticCache)
        dims, device, dtype = program.dims, program.device, program.dtype
        rows, tokens = len(lengths_b), len(lengths_b) * positions
        self.program = program
        self._cache, self._lengths_b, self._positions, self._last = cache, lengths_b, positions, last
        cuda = device.type == "cuda"
        processors = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1
        splits = SPLITS if invariant else splits_for(rows, dims.num_kv_heads, cache.capacity, processors)
        if not isinstance(cache, StaticCache):
            splits = max(2, splits)  # codes, and the latest tokens
        self._scratch = Scratch(rows, dims.num_heads * positions, dims.num_kv_heads, dims.head_dim, splits, device)
        cos, sin = program.rope(cache.capacity)
        half = dims.head_dim // 2
        self.cos, self.sin = cos[:, half:].contiguous(), sin[:, half:].contiguous()
        self.x = torch.empty(tokens, dims.hidden_size, dtype=dtype, device=device)
        self._y = torch.empty_like(self.x)
        self._qkv = torch.empty(tokens, dims.q_width + 2 * dims.kv_width, dtype=dtype, device=device)
        self._mixed = torch.empty(tokens, dims.q_width, dtype=dtype, device=device)
        self._wide = torch.empty(tokens, dims.intermediate_size, dtype=dtype, device=device)
        self.logits_nv = torch.empty(rows if last else tokens, dims.vocab_size, dtype=torch.float32, device=device)
        widths = (dims.hidden_size, dims.q_width, dims.intermediate_size)
        small = tokens == 1 or (tokens <= FEW and all(few(width) for width in widths))
        self._invariant = invariant
        self.fused = small and program.plain and not invariant
        self._packed = program.packed and tokens <= FEW_PACKED and not invariant
        self.overlap = is_recent(self.x) and (self.fused or self._packed)
        self._small = small
        self._clusters = 0
        if isinstance(cache, StaticCache) and not invariant:
            q, first = self._qkv[:, : dims.q_width], cache.k[0]
            if not clustered.unsupported(q, first, processors):
                self._clusters = clustered.splits_for(rows, dims.num_kv_heads, cache.capacity, processors)

    @torch.inference_mode()
    def launch(self, tokens_n: Tensor, offset: int = 0) -> Tensor:
        """Launch the pass on tokens (n,), `offset` places behind the rows' lengths; returns its logits."""
        self.enter(tokens_n)
        self.through(0, len(self.program.layers), offset)
        return self.speak(self.x.unflatten(0, (-1, self._positions))[:, -1].contiguous() if self._last else self.x)

    def enter(self, tokens_n: Tensor) -> None:
        """Make the states those of tokens (n,) before the first layer."""
        torch.index_select(self.program.embedding, 0, tokens_n, out=self.x)

    def through(self, first: int, end: int, offset: int = 0) -> None:
        """Take the states from before layer `first` to before layer `end`, counted from 0."""
        layer = self._fused_layer if self.fused else self._layer
        for index in range(first, end):
            layer(index, self.program.layers[index], offset)

    @torch.inference_mode()
    def speak(self, x: Tensor) -> Tensor:
        """The logits of states as they are before the last norm."""
        norm = Norm(self.program.final_gain, self.program.eps)
        if self._small and (self.fused or self._packed):
            gemv(x, [self.program.head], self.logits_nv, norm=norm, overlap=self.overlap)
        else:
            self._head(rms_norm(x, norm, self._y[: len(x)]))
        return self.logits_nv

    def _fused_layer(self, index: int, layer: Layer, offset: int) -> None:
        """A block in five kernels, each begun while the one before it ends."""
        eps, overlap = self.program.eps, self.overlap
        parts = [layer.q, layer.k, layer.v]
        _gemv(self.x, parts, self._qkv, norm=Norm(layer.input_gain, eps), overlap=overlap)
        self._attend(index, layer, offset)
        _gemv(self._mixed, [layer.o], self.x, residual=self.x, overlap=overlap)
        wide = [layer.gate, layer.up]
        _gemv(self.x, wide, self._wide, norm=Norm(layer.post_gain, eps), gated=True, overlap=overlap)
        _gemv(self._wide, [layer.down], self.x, residual=self.x, overlap=overlap)

    def _layer(self, index: int, layer: Layer, offset: int) -> None:
        """A block with matrix products by cuBLAS, by its packings, or by the kernel whose rows are their own."""
        parts, norm = (layer.q, layer.k, layer.v), Norm(layer.input_gain, self.program.eps)
        if not (self._packed and normed_into_each(parts, self._qkv_views(), self.x, norm, overlap=self.overlap)):
            self._into(parts, self._qkv_views(), rms_norm(self.x, norm, self._y))
        self._attend(index, layer, offset)
        self._onto(layer.o, self.x, self._mixed)
        self._gated((layer.gate, layer.up), Norm(layer.post_gain, self.program.eps))
        self._onto(layer.down, self.x, self._wide)

    def _gated(self, parts: tuple[AnyProduct, AnyProduct], norm: Norm) -> None:
        """The wide states: silu(gate) · up of the normalized states."""
        outs, overlap = (self._wide, self._wide), self.overlap
        if self._packed and normed_into_each(parts, outs, self.x, norm, gated=True, overlap=overlap):
            return
        y = rms_norm(self.x, norm, self._y)
        if self._invariant or self._packed:
            gate, up = torch.empty_like(self._wide), torch.empty_like(self._wide)
            self._into(parts, (gate, up), y)
        else:
            gate, up = (base_of(part)(y) for part in parts)
            add_beside(parts, (gate, up), y)
        swiglu(gate, up, self._wide)

    def _into(self, parts: Sequence[AnyProduct], outs: Sequence[Tensor], x: Tensor) -> None:
        """outs ← x·Wᵀ + b of each part."""
        if not self._invariant:
            into_each(parts, outs, x)
            return
        for part, out in zip(parts, outs, strict=True):
            base = _as_it_is(part)
            linear(x, base.weight, out, bias=base.bias)
        add_beside(parts, outs, x)

    def _onto(self, part: AnyProduct, out: Tensor, x: Tensor) -> None:
        """out ← out + x·Wᵀ + b."""
        base = base_of(part)
        if self._invariant:
            base = _as_it_is(part)
            linear(x, base.weight, out, bias=base.bias, residual=out)
        elif isinstance(base, PackedProduct):
            base.onto(out, x, overlap=self.overlap)
        else:
            base.onto(out, x)
        add_beside([part], [out], x)

    def _head(self, y: Tensor) -> None:
        if self._invariant:
            linear(y, self.program.head, self.logits_nv)
        else:
            self.logits_nv.copy_(torch.mm(y, self.program.head.T))

    def _attend(self, index: int, layer: Layer, offset: int) -> None:
        q_norm = None if layer.q_gain is None else Norm(layer.q_gain, self.program.eps)
        k_norm = None if layer.k_gain is None else Norm(layer.k_gain, self.program.eps)
        new = *self._qkv_views(), self.cos, self.sin, self._lengths_b
        out, cache, overlap = (self._mixed, self._scratch), self._cache, self.overlap
        if not isinstance(cache, StaticCache):
            assert offset == 0
            cache.attend(index, *new, *out, q_norm=q_norm, k_norm=k_norm, overlap=overlap)
            return
        k_cache, v_cache = cache.k[index], cache.v[index]
        if self._clusters:
            clustered.clustered_attention(
                *new,
                k_cache,
                v_cache,
                self._mixed,
                splits=self._clusters,
                q_norm=q_norm,
                k_norm=k_norm,
                overlap=overlap,
                offset=offset,
            )
            return
        decode_attention(*new, k_cache, v_cache, *out, q_norm=q_norm, k_norm=k_norm, overlap=overlap, offset=offset)

    def _qkv_views(self) -> tuple[Tensor, Tensor, Tensor]:
        dims = self.program.dims
        q, k, v = self._qkv.split([dims.q_width, dims.kv_width, dims.kv_width], 1)
        return q, k, v


def _as_it_is(part: AnyProduct) -> Linear:
    base = base_of(part)
    assert isinstance(base, Linear), "the engine has packed weights run in another way"
    return base


def captured(run: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    """`run`, compiled by being run once, as a graph."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def _gemv(
    x: Tensor,
    parts: Sequence[AnyProduct],
    out: Tensor,
    *,
    norm: Norm | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
    overlap: bool,
) -> None:
    biases = [part.bias for part in parts] if any(part.bias is not None for part in parts) else []
    weights = [part.weight for part in parts if isinstance(part, Linear)]
    gemv(x, weights, out, biases=biases, norm=norm, gated=gated, residual=residual, overlap=overlap)
