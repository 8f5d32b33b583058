"""A quantized cache in captured graphs: rows of one size, whose codes a kernel reads and adds to.

A row holds what a row of `cache` holds, to the rounding of its keys; prompts are read whole and in full precision, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hayless.core.cache_form import CacheForm
from hayless.decode.cache import Attend, attend
from hayless.decode.program import Program
from hayless.kernels.attention import Scratch
from hayless.kernels.linear import Norm
from hayless.kernels.quantized_attention import quantized_attention
from hayless.kernels.quantized_cache import Held, fill


class CodedCache:
    """Rows with room for `capacity` tokens each; how many they hold is known to whoever launches the kernel."""

    def __init__(self, form: CacheForm, program: Program, rows: int, capacity: int) -> None:
        dims = program.dims
        self.capacity = capacity
        self._program = program
        self.held = Held.empty(
            (dims.num_layers, rows, dims.num_kv_heads),
            -(-capacity // form.residual) * form.residual,
            dims.head_dim,
            bits=form.bits,
            group=form.group_size,
            channels=form.channels(dims.head_dim),
            residual=form.residual,
            dtype=program.dtype,
            device=program.device,
        )

    @property
    def bytes(self) -> int:
        """Size of keys and values."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.held.tensors)

    @torch.inference_mode()
    def prefill(self, row: int, prompt: Sequence[int]) -> Tensor:
        """Read a prompt into an empty row; its last hidden state (1, h)."""
        ids = torch.tensor([list(prompt)], device=self._program.device)
        return self._program.forward(ids, _Row(self.held, row))[:, -1]

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        lengths_b: Tensor,
        out: Tensor,
        scratch: Scratch,
        *,
        q_norm: Norm | None,
        k_norm: Norm | None,
        overlap: bool,
    ) -> None:
        """Launch the attention of one new token of each row, which joins the cache."""
        quantized_attention(
            q, k, v, cos, sin, lengths_b, self.held[layer], out, scratch, q_norm=q_norm, k_norm=k_norm, overlap=overlap
        )


class _Row:
    """An empty row, which a whole prompt joins."""

    def __init__(self, held: Held, row: int) -> None:
        self.lengths = [0]
        self.held, self._row = held, row

    def entering(self, _new: int) -> Attend:
        """All attend to each other as they are, and are put away."""

        def attend_layer(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            fill(self.held[layer, self._row], k[0], v[0])
            return attend(q, k, v, None)

        return attend_layer

    def advance(self, new: int) -> None:
        """The tokens have joined in every layer."""
        self.lengths = [new]
