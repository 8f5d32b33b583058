"""LayerSkip's loss: of the last layer and of early ones, with layers dropped at random. See schedule.py.

Shapes: b rows, s positions, h hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.data.batches import Batch
from hayless.data.corpus import Kind
from hayless.methods.objectives.layerskip.config import LayerSkipConfig
from hayless.methods.objectives.layerskip.schedule import dropped, shares
from hayless.model.anatomy import Anatomy
from hayless.train.blocks import Forward, wrapped
from hayless.train.slots import Loss
from hayless.train.token_loss import cross_entropy, token_loss


class LayerSkip:
    """Σ_l ẽ(t, l) · −log p_l(target | tokens before it), summed over targets; p_l speaks from behind layer l.

    In evaluation nothing is dropped, and the loss is the last layer's.
    """

    unit = "token"
    kind: Kind = "lm"

    def __init__(self, config: LayerSkipConfig) -> None:
        self.config = config
        self._step, self._steps = 0, 1
        self._anatomy: Anatomy | None = None

    def at(self, step: int, steps: int) -> None:
        """Losses are those of update `step` of `steps` from now on; `step` counts from 1."""
        self._step, self._steps = step - 1, steps

    def units(self, batch: Batch) -> int:
        """Positions that have a target."""
        return batch.trained_tokens

    def loss(self, model: PreTrainedModel, batch: Batch) -> Loss:
        """The loss, in nats, and the last layer's own as `last_layer`."""
        if not model.training:
            return Loss(token_loss(model, batch).total)
        anatomy = self._anatomy_of(model)
        layers, now = anatomy.dims.num_layers, (self._step, self._steps)
        weights = shares(self.config, layers, *now)
        early = [layer for layer, weight in enumerate(weights[:-1]) if weight > 0]
        passing = _Passing(list(anatomy.blocks), dropped(self.config, layers, *now), early)
        with wrapped(passing.blocks, passing.wrap):
            last = token_loss(model, batch).total
        total = weights[-1] * last
        for layer in early:
            total = total + weights[layer] * cross_entropy(anatomy.logits(passing.states[layer]), batch.targets)
        return Loss(total, {"last_layer": last.detach()})

    def _anatomy_of(self, model: PreTrainedModel) -> Anatomy:
        if self._anatomy is None or self._anatomy.model is not model:
            self._anatomy = Anatomy.of(model)
            layers = self._anatomy.dims.num_layers
            if max(self.config.exits, default=0) >= layers:
                raise RequestError(
                    f"layerskip.exits is {list(self.config.exits)}, and the model has {layers} layers.",
                    hint=f"Give numbers of layers from 1 to {layers - 1}: the last one speaks anyway.",
                )
        return self._anatomy


class _Passing:
    """One pass through blocks of which each row skips some; keeps the states behind the layers `kept`."""

    def __init__(self, blocks: list[nn.Module], chances: list[float], kept: list[int]) -> None:
        self.blocks = blocks
        self.states: dict[int, Tensor] = {}
        self._chances, self._kept = chances, frozenset(kept)
        self._numbers = {block: number for number, block in enumerate(blocks)}

    def wrap(self, block: nn.Module, forward: Forward) -> Forward:
        """The block's forward pass, without effect on the rows that it is dropped for."""
        number = self._numbers[block]
        chance = self._chances[number]

        def run(x_bsh: Tensor, *inputs: Any, **options: Any) -> Tensor:
            out_bsh: Tensor = forward(x_bsh, *inputs, **options)
            if chance > 0:
                stays_b = torch.rand(len(x_bsh), device=x_bsh.device) >= chance
                out_bsh = out_bsh.where(stays_b[:, None, None], x_bsh)
            if number in self._kept:
                self.states[number] = out_bsh
            return out_bsh

        return run
