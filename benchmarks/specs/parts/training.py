"""Contenders of training steps: hayless's update, and transformers' model in a bare loop with torch's AdamW.

All train the same random weights on the same batch of random tokens, a document a row, with the same AdamW and
clipping. What they must agree on are the losses and gradient norms of their first steps.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import nn

from hayless.core.cost import TrainShape
from hayless.core.families import dims_of, ledger_of
from hayless.core.flops import backward_flops, forward_flops
from hayless.core.registry import configure, method_of
from hayless.data.batches import IGNORED, Batch
from hayless.study.bench.gate import Answer
from hayless.study.bench.spec import Prepared
from hayless.train.blocks import compiled
from hayless.train.settings import Precision, TrainSettings
from hayless.train.step import update
from hayless.train.update import make_updater

LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, CLIP_NORM = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
CHECKED_STEPS = 3
FIRST, NEXT, NORMS = "first loss", "losses of the next steps", "gradient norms"

Memory = str | Mapping[str, Any]
"""A memory method by its name, or its fields with the method's `name`."""


@dataclass(frozen=True)
class Training:
    """A training step: a config of transformers, rows and their length, the dtype of weights and of arithmetic."""

    config: Mapping[str, Any]
    rows: int
    length: int
    precision: Precision
    device: str = "cpu"

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.rows * self.length

    def model(self) -> transformers.PreTrainedModel:
        """The model with its random weights, the same each time, made on its device."""
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.precision]
        torch.manual_seed(0)
        with torch.device(self.device):
            model = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(**self.config), dtype=dtype
            )
        return model.train()

    def batch(self) -> Batch:
        """Random tokens on the host, each row one document; the last token has nothing to predict."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.config["vocab_size"], (self.rows, self.length), generator=generator)
        targets = torch.cat([ids[:, 1:], torch.full((self.rows, 1), IGNORED)], 1)
        positions = torch.arange(self.length).expand(self.rows, -1)
        names = tuple((str(row),) for row in range(self.rows))
        return Batch(ids, targets, positions, torch.zeros_like(ids), names)

    @property
    def flops(self) -> float:
        """FLOPs of a step: forward and backward, attention over what a causal mask leaves, nothing twice."""
        ledger = ledger_of(dims_of(dict(self.config)))
        shape = TrainShape(self.rows, self.length)
        return forward_flops(ledger, self.rows, self.length) + backward_flops(ledger, shape)

    def hayless(self, *, compile: bool | Literal["whole"] = False, memory: Sequence[Memory] = ()) -> Prepared:
        """What `updates` does to the model."""
        return self.updates(self.model(), self.precision, compile=compile, memory=memory)

    def updates(
        self,
        model: transformers.PreTrainedModel,
        precision: Precision,
        *,
        compile: bool | Literal["whole"] = False,
        memory: Sequence[Memory] = (),
        optimizer: str = "adamw",
    ) -> Prepared:
        """The trainer's update of `model`, its finite check and figures included, with memory methods in force.

        `compile`: block by block, as the trainer does it, or the model `whole`.
        """
        batch = self.batch()
        settings = TrainSettings(
            steps=1,
            batch_size=self.rows,
            sequence_length=self.length,
            precision=precision,
            clip_norm=CLIP_NORM,
            compile=compile is True,
        )
        moving = configure(
            optimizer, learning_rate=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, decay="all"
        )
        objective = method_of(configure("lm")).load()(configure("lm"))
        updater = make_updater(model, settings.precision, moving)
        # What is installed stays while contexts are open: as long as the process lives.
        opened = ExitStack()
        for each in memory:
            config = configure(each) if isinstance(each, str) else configure(**each)
            opened.enter_context(method_of(config).load().install(model, config))
        if settings.compile:
            opened.enter_context(compiled(model))
        elif compile:
            # The base model is what a loss by chunks calls.
            model.base_model.compile()
        atexit.register(opened.close)

        def step() -> tuple[float, float]:
            figures = update(model, objective, updater, [batch], settings, step=1, share=1.0)
            return figures.loss, figures.gradient_norm

        return Prepared(step, lambda: _first(step))

    def transformers(self, *, compile: bool = False, fused: bool = True) -> Prepared:
        """The loop that everybody writes: the model's own loss, backward, clip, AdamW, and the loss read at the end.

        `fused`: AdamW in one kernel, where the device has it.
        """
        model = self.model()
        return self.loop(model, torch.compile(model) if compile else model, fused=fused)

    def loop(self, model: nn.Module, call: Callable[..., Any], *, fused: bool = True) -> Prepared:
        """A bare loop over `call`, which is `model` as it is called, that moves whatever of it trains."""
        ids = self.batch().input_ids
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained,
            lr=LEARNING_RATE,
            betas=BETAS,
            eps=EPS,
            weight_decay=WEIGHT_DECAY,
            fused=(fused or None) if self.device == "cuda" else None,
        )

        def step() -> tuple[float, float]:
            inputs = ids.to(self.device)
            loss = call(input_ids=inputs, labels=inputs, use_cache=False).loss
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            return loss.item(), norm.item()

        return Prepared(step, lambda: _first(step))


def _first(step: Callable[[], tuple[float, float]]) -> Answer:
    losses, norms = zip(*(step() for _ in range(CHECKED_STEPS)), strict=True)
    return {FIRST: losses[:1], NEXT: losses[1:], NORMS: norms}
