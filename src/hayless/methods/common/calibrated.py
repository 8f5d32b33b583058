"""What methods share that pack weights as integers by how they are used: the transform, block by block.

Before anything is calibrated the text is checked, the room on the disk, and the writer itself, with a model of one
layer. Then each block is packed with the statistics of what it reads behind the packed blocks before it, and kept in
`Context.folder` when it is finished; work that was stopped goes on behind the last one that was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.core.ledger import Layout
from hayless.core.roles import Role
from hayless.methods.common.calibration import Moments, Stream, check_batches, expert_inputs, routed_tokens
from hayless.methods.common.finished import Finished, digest
from hayless.methods.common.integer_packing import Codes, IntegerPacking, nearest, packed, packing_of
from hayless.methods.common.integers import CalibratedConfig, IntegerFormat
from hayless.methods.common.packing import Errors, empty_packed, matrices_of, packable, watched
from hayless.methods.common.stages import Stage, check_inside, stages
from hayless.methods.common.weights import Weight, check_finite
from hayless.model.anatomy import dims_of_model
from hayless.model.packing import empty_pieces, install
from hayless.model.transform import Change, Context
from hayless.model.writer import try_writer

C = TypeVar("C", bound=CalibratedConfig)
Solve = Callable[[Tensor, Moments, IntegerFormat], Codes]
"""Codes of a float32 matrix (rows, columns) of a form, from the moments of what it reads."""


@dataclass(slots=True)
class Done:
    """What became of a block: errors of its weights; ‖(Ŵ − W)·x‖² and ‖W·x‖² over the text; what is to be said."""

    errors: Errors = field(default_factory=Errors)
    lost: float = 0.0
    whole: float = 0.0
    by_tensor: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, other: Done) -> None:
        """Count another block too."""
        self.errors.include(other.errors)
        self.lost += other.lost
        self.whole += other.whole
        self.by_tensor |= other.by_tensor
        self.skipped |= other.skipped

    def figures(self) -> dict[str, float]:
        """Those of `Errors`, and `output_error`: the share of what weights put out that packing lost, squared."""
        return {
            "output_error": self.lost / self.whole if self.whole else 0.0,
            **self.errors.figures(),
            **self.by_tensor,
        }


@dataclass(slots=True)
class Block:
    """One block at work: its stages, its weights that are to be packed by role, and what has become of them."""

    model: PreTrainedModel
    number: int
    stages: Sequence[Stage]
    weights: dict[Role, Weight]
    config: CalibratedConfig
    stream: Stream
    done: Done = field(default_factory=Done)

    def readers(self, stage: Stage) -> list[Weight]:
        """The weights to be packed that a stage has."""
        return [self.weights[role] for role in stage.readers if role in self.weights]

    def moments(self, chosen: Sequence[Stage]) -> list[list[Moments]]:
        """What the weights of each stage read, over all text: one for all of them, or one an expert."""
        sinks: list[tuple[nn.Module, Callable[[tuple[Any, ...]], None]]] = []
        found = []
        for stage in chosen:
            first = self.readers(stage)[0]
            form = packing_of(first.row, self.config).form
            device = first.parameter.device
            sums = [Moments(form.columns, device) for _ in range(form.matrices)]
            experts = first.row.layout is Layout.EXPERTS
            sink = partial(_routed, sums, first) if experts else partial(_plain, sums[0])
            sinks.append((first.module, sink))
            found.append(sums)
        self.stream.observe(self.number, sinks)
        return found

    def pack(self, weight: Weight, moments: Sequence[Moments], solve: Solve) -> None:
        """Put a packed weight in the place of a whole one. RequestError where too little text reached a matrix, unless
        these may be rounded to the nearest."""
        packing = packing_of(weight.row, self.config)
        original = weight.parameter.detach()
        form, dtype = packing.form, original.dtype
        parts = []
        for place, matrix in enumerate(matrices_of(original, form).float()):
            reached = moments[place].tokens
            if reached >= form.columns:
                parts.append(solve(matrix, moments[place], form))
                continue
            where = f"{weight.name}[{place}]" if form.matrices > 1 else weight.name
            if not self.config.round_unseen:
                raise too_short(self.config, where, reached, form.columns)
            self.done.skipped[where] = f"rounded to the nearest: {reached:,} tokens for {form.columns:,} inputs"
            parts.append(nearest(matrix, form, dtype))
        codes = Codes(*(torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scale", "zero")))
        install(weight.module, weight.row.parameter, packing, packed(codes, form, dtype))
        self._note(weight, original, packing, moments)

    def _note(self, weight: Weight, original: Tensor, packing: IntegerPacking, moments: Sequence[Moments]) -> None:
        self.done.errors.add(weight, original)
        shown: Any = weight.module
        after = matrices_of(shown.unpacked(weight.row.parameter), packing.form).float()
        before = matrices_of(original, packing.form).float()
        lost = whole = 0.0
        for old, new, seen in zip(before, after, moments, strict=True):
            lost += float(output_error(new - old, seen.gram))
            whole += float(output_error(old, seen.gram))
        self.done.lost += lost
        self.done.whole += whole
        self.done.by_tensor[f"output_error/{weight.name}"] = lost / whole if whole else 0.0


@dataclass(frozen=True)
class Calibrated(Generic[C]):
    """Fills the transform slot for a method that packs the weights of a block with the moments of what they read."""

    pack_block: Callable[[Block, C], None]

    def apply(self, model: PreTrainedModel, config: C, context: Context) -> Change:
        """Replace the targets by packed ones, block by block; the figures are those of `Done`.

        RequestError for weights that are not finite and text that is too short, NotSupported for what is in no decoder
        block or is tied or packed, WorkError where the result could not be written: nothing is changed then, but for
        text that is found too short for an expert only when it is reached.
        """
        in_block = stages(dims_of_model(model))
        weights = packable(model, config)
        check_inside((weight.row for weight in weights), config)
        check_finite(weights)
        check_batches(context.calibration, model.config.vocab_size, config.method)
        if not config.round_unseen:
            _check_long_enough(model, weights, context.calibration, config)
        try_writer(model, config, context.folder)
        finished = Finished(context.folder, digest(config, weights, context.calibration))
        done, stream = Done(), Stream(model, context.calibration)
        by_block = [
            {weight.row.role: weight for weight in weights if weight.path.startswith(f"{path}.")}
            for path in _paths(model, stream.blocks)
        ]
        for number in watched(range(len(stream.blocks)), config.method, len(stream.blocks), context.progress):
            chosen = [stage for stage in in_block if any(role in by_block[number] for role in stage.readers)]
            block = Block(model, number, chosen, by_block[number], config, stream)
            self._one(block, config, finished)
            done.add(block.done)
            if number + 1 < len(stream.blocks):
                stream.advance(number)
        return Change(config.method, tuple(weight.path for weight in weights), done.skipped, done.figures())

    def restore(self, model: PreTrainedModel, config: C) -> None:
        """Give the targets empty pieces of the right shapes."""
        empty_packed(model, config, packing_of)

    def _one(self, block: Block, config: C, finished: Finished) -> None:
        """Pack a block, or take it as it was finished before."""
        module = block.stream.blocks[block.number]
        kept = finished.read(block.number)
        if kept is None:
            self.pack_block(block, config)
            finished.write(block.number, module.state_dict(), asdict(block.done))
            return
        for weight in block.weights.values():
            packing, original = packing_of(weight.row, config), weight.parameter
            pieces = empty_pieces(packing.form, original.dtype, original.device)
            install(weight.module, weight.row.parameter, packing, pieces)
        module.load_state_dict(kept[0])
        block.done = Done(**{**kept[1], "errors": Errors(**kept[1]["errors"])})


def output_error(difference: Tensor, gram: Tensor) -> Tensor:
    """Σ ‖difference·x‖² over rows (rows, columns) and all x, from Σ x·xᵀ."""
    return ((difference @ gram) * difference).sum()


def _plain(moments: Moments, arguments: tuple[Any, ...]) -> None:
    moments.add(arguments[0])


def _routed(sums: Sequence[Moments], weight: Weight, arguments: tuple[Any, ...]) -> None:
    for expert, x in expert_inputs(weight.module, arguments, weight.row.role):
        sums[expert].add(x)


def _check_long_enough(
    model: PreTrainedModel, weights: Sequence[Weight], batches: Sequence[Tensor], config: CalibratedConfig
) -> None:
    """Refuse at once a text that is too short; for experts, as the model routes it before anything is packed."""
    stacks = [weight.module for weight in weights if weight.row.layout is Layout.EXPERTS]
    routed = routed_tokens(model, stacks, batches) if stacks else {}
    tokens = sum(batch.numel() for batch in batches)
    for weight in sorted(weights, key=lambda weight: -weight.row.in_features):
        reached = int(routed[weight.module].min()) if weight.module in routed else tokens
        if reached < weight.row.in_features:
            rarest = f"[{int(routed[weight.module].argmin())}]" if weight.module in routed else ""
            raise too_short(config, f"{weight.name}{rarest}", reached, weight.row.in_features)


def too_short(config: CalibratedConfig, name: str, reached: int, columns: int) -> RequestError:
    """The refusal of text of which too few tokens reach a weight."""
    return RequestError(
        f"The calibration text is too short: {reached:,} tokens reach {name}, which has {columns:,} inputs.",
        hint=f"Give more tokens, or {config.method}.round_unseen=true to round such weights to the nearest.",
    )


def _paths(model: PreTrainedModel, blocks: Sequence[nn.Module]) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(block)] for block in blocks]
