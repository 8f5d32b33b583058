"""Inputs of checkpointed blocks in page-locked memory of the host, copied on a stream of their own.

Forward, a block's input goes to the host while the block computes, and is let go where the next block begins.
Backward, the input of the block before comes back while a block is computed again: two lie on the GPU at once, however
deep the model is. Copies keep every bit.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.methods.memory.offload import OffloadConfig
from hayless.train.blocks import Forward, mark_recomputed, recomputed, wrapped


class Offload:
    """Fills the memory slot."""

    @staticmethod
    def install(model: PreTrainedModel, config: OffloadConfig) -> AbstractContextManager[None]:
        """Keep what enters the blocks that are checkpointed now in the host's memory. RequestError where none is."""
        chosen = recomputed(model)
        if not chosen:
            raise RequestError(
                "offload moves what enters checkpointed blocks, and none is checkpointed before it.",
                hint="Put checkpointing before it: memory: [checkpointing, offload].",
            )
        return wrapped(chosen, partial(_offloaded, Traffic(model.device), chosen[0]))


@dataclass(eq=False)
class Stored:
    """A block's input: on the host, on the device (None where it is not there), or on its way between them.

    `arrived` is the event of the last copy; `before` is the input of the checkpointed block before.
    """

    host: Tensor
    device: Tensor | None
    arrived: Any
    before: Stored | None


class Traffic:
    """Moves tensors between a device and the host, beside what the device computes. Where the device is the host,
    tensors are copied."""

    def __init__(self, device: torch.device) -> None:
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._latest: Stored | None = None

    def put(self, x: Tensor, *, first: bool) -> Stored:
        """Begin to copy `x` to the host. `first`: no block before has an input that is needed after this one's."""
        before = None if first else self._latest
        if before is not None:
            self._let_go(before)
        pinned = self._stream is not None
        self._latest = Stored(torch.empty_like(x, device="cpu", pin_memory=pinned), x, None, before)
        self._latest.arrived = self._copy(self._latest.host, x)
        return self._latest

    def get(self, stored: Stored) -> Tensor:
        """The tensor on the device; the one before it is on its way from here on."""
        self._fetch(stored)
        if stored.before is not None:
            self._fetch(stored.before)
        if self._latest is stored:
            self._latest = None
        return self._let_go(stored)

    def _fetch(self, stored: Stored) -> None:
        if stored.device is None:
            there = torch.device("cpu") if self._stream is None else self._stream.device
            stored.device = torch.empty_like(stored.host, device=there)
            stored.arrived = self._copy(stored.device, stored.host)

    def _let_go(self, stored: Stored) -> Tensor:
        """Wait, on the device, for the last copy, and forget the tensor there; gives it."""
        found = stored.device
        assert found is not None, "it was fetched, or has not been let go since it was put"
        if stored.arrived is not None:
            torch.cuda.current_stream(found.device).wait_event(stored.arrived)
        stored.device = None
        return found

    def _copy(self, target: Tensor, source: Tensor) -> Any:
        """Copy once all that was asked of the device until now is done; gives the event of its end."""
        if self._stream is None:
            target.copy_(source)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        return self._stream.record_event()


def _offloaded(traffic: Traffic, first: nn.Module, block: nn.Module, forward: Forward) -> Forward:
    def run(x: Tensor, *inputs: Any, **options: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(x, *inputs, **options)

        # autograd keeps `pack` as long as what it packed: it must not hold `x`.
        where, shape = x.data_ptr(), x.shape

        def pack(tensor: Tensor) -> Any:
            # Masks and rotations are every block's, and stay.
            mine = tensor.data_ptr() == where and tensor.shape == shape
            return traffic.put(tensor.detach(), first=block is first) if mine else tensor

        def unpack(packed: Any) -> Tensor:
            return traffic.get(packed) if isinstance(packed, Stored) else packed

        with saved_tensors_hooks(pack, unpack):
            return forward(x, *inputs, **options)

    # Hooks are no part of a compiled graph; the block that they stand around is.
    return mark_recomputed(torch.compiler.disable(run, recursive=False))
