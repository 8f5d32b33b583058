"""One update of the weights from gradients: what surrounds it in `master` and `fp16`, and which updater serves whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from hayless.core.method import MethodConfig
from hayless.core.registry import method_of
from hayless.train.fused import FusedUpdater
from hayless.train.precision import cast_weights, trainables
from hayless.train.settings import Precision
from hayless.train.slots import OptimizerPart, Trainable
from hayless.train.updater import Updater, check_scale, shrink_for, shrinking

_CHUNK_BYTES = 64 * 2**20
"""fp32 gradients that exist at once in `master` (a larger tensor stands alone)."""


def make_updater(model: nn.Module, precision: Precision, config: MethodConfig) -> Updater:
    """Give the model's weights the dtype of `precision` and build the optimizer of `config` over the trained ones."""
    parameters = moved = trainables(model)
    part: OptimizerPart = method_of(config).load()
    if precision == "master":
        # The masters are taken before weights are rounded; an fp32 weight's own storage becomes its master.
        moved = [replace(item, tensor=nn.Parameter(item.tensor.detach().float())) for item in parameters]
    cast_weights(model, precision)
    scaler = GradScaler(parameters[0].tensor.device.type) if precision == "fp16" else None
    if part.fused:
        return FusedUpdater(parameters, moved, part, config, scaler)
    if precision == "master":
        return MasterUpdater(parameters, moved, part, config)
    return (ScaledUpdater if scaler else Updater)(parameters, moved, part, config, scaler)


class ScaledUpdater(Updater):
    """fp16 arithmetic on fp32 weights: the loss is scaled up so that small gradients do not vanish.

    An update whose gradients overflow is left out and the scale halved; after 2000 good ones it doubles.
    """

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scaled loss."""
        assert self._scaler
        self._scaler.scale(loss).backward()

    def norm(self) -> Tensor:
        """The norm of the true gradients; not finite where they overflowed."""
        assert self._scaler
        self._scaler.unscale_(self._optimizers[0])
        return super().norm()

    def step(self, norm: Tensor) -> bool:
        """Move the weights, or halve the scale. WorkError when gradients overflow even unscaled."""
        assert self._scaler
        check_scale(self.scale(), norm)
        self._clip(norm)
        self._scaler.step(self._optimizers[0])
        self._scaler.update()
        self.drop_gradients()
        return bool(torch.isfinite(norm))


class MasterUpdater(Updater):
    """16-bit weights and gradients, fp32 masters and moments.

    One optimizer serves each chunk of parameters, so that fp32 copies of gradients exist for one chunk at a time and
    never for the whole model.
    """

    def step(self, norm: Tensor) -> bool:
        """Move the masters chunk by chunk and round them into the weights."""
        factor = 1.0 if self._clip_norm is None else shrinking(norm, self._clip_norm)
        weights = {item.name: item.tensor for item in self._parameters}
        for optimizer, chunk in zip(self._optimizers, self._chunks(), strict=True):
            for master in chunk:
                weight = weights[master.name]
                if weight.grad is not None:
                    # No other name may hold this fp32 copy: it would outlive its chunk.
                    master.tensor.grad = weight.grad.float()
                    weight.grad = None
            # Clipped with 32 bits, so that nothing is rounded twice.
            shrink_for(optimizer, factor)
            optimizer.step()
            for master in chunk:
                master.tensor.grad = None
        self._round()
        return True

    def _chunks(self) -> Iterator[Sequence[Trainable]]:
        chunk: list[Trainable] = []
        size = 0
        for item in self._moved:
            if chunk and size + item.tensor.nbytes > _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
            chunk.append(item)
            size += item.tensor.nbytes
        yield chunk
