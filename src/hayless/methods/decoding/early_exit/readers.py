"""Reading one token of each row under a watch, through a program or through transformers' own modules.

Prompts go through all layers. Shapes: b rows, s new tokens (1 under a watch), h hidden.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from hayless.decode.program import Program
from hayless.decode.readers import ModuleReader, ProgramReader, Reader
from hayless.decode.step import Watch
from hayless.model.anatomy import Anatomy
from hayless.train.blocks import Forward, wrapped


class Leaving(Watch, Protocol):
    """A watch that says how far tokens went."""

    layers: list[int]
    """Layers of each row's last token."""
    logits: Tensor | None
    """What the head said of these tokens' states where they left (b, v), if it was asked."""

    def shown(self, x_bh: Tensor) -> Tensor:
        """What the head is shown of the states that a step ended with."""


class WatchedReader(Reader, Protocol):
    """A reader whose tokens leave where `watch` says."""

    watch: Leaving


def reader(model: PreTrainedModel, program: Program | None, watch: Leaving) -> WatchedReader:
    """A reader under a watch, through the program where there is one."""
    return WatchedModules(model, watch) if program is None else WatchedProgram(program, watch)


class WatchedProgram(ProgramReader):
    """Through a decode program."""

    def __init__(self, program: Program, watch: Leaving) -> None:
        super().__init__(program)
        self.watch = watch

    def read(self, tokens_bs: Tensor) -> Tensor:
        """Logits (b, 1, v) in float32 after a new token of each row, from the layer where it left."""
        x_bh = self._step(tokens_bs[:, 0], self.watch)
        said = self.watch.logits
        return (self.program.logits(self.watch.shown(x_bh)) if said is None else said)[:, None]


class WatchedModules(ModuleReader):
    """Through transformers' own modules, whatever methods did to them."""

    def __init__(self, model: PreTrainedModel, watch: Leaving) -> None:
        super().__init__(model)
        self.watch = watch
        self._blocks: list[nn.Module] = list(Anatomy.of(model).blocks)
        self._numbers = {block: number for number, block in enumerate(self._blocks, 1)}

    def read(self, tokens_bs: Tensor) -> Tensor:
        """Logits (b, 1, v) in float32 after a new token of each row, from the layer where it left."""
        self._ended = False
        with wrapped(self._blocks, self._watched):
            return super().read(tokens_bs)

    def _watched(self, block: nn.Module, forward: Forward) -> Forward:
        number = self._numbers[block]

        def run(x_bsh: Tensor, *inputs: Any, **options: Any) -> Tensor:
            if self._ended:
                # Also where a later token will not look: transformers' caches are of one length.
                _keep(forward, x_bsh, *inputs, **options)
                out_bsh = x_bsh
            else:
                out_bsh = forward(x_bsh, *inputs, **options)
                self._ended = self.watch(number, out_bsh[:, 0])
            return out_bsh if number < len(self._blocks) else self.watch.shown(out_bsh[:, 0])[:, None]

        return run


class _Kept(Exception):
    """Keys and values are in the cache, and nothing more is wanted of a block."""


def _keep(forward: Forward, *inputs: Any, **options: Any) -> None:
    """Run a block as far as to where its keys and values join the cache.

    So a family's norms, projections and positions are its own code's, and attention and feed-forward are not computed.
    """
    cache: Any = next(given for given in (*inputs, *options.values()) if isinstance(given, Cache))
    join = cache.update

    def update(*given: Any, **named: Any) -> None:
        join(*given, **named)
        raise _Kept

    cache.update = update
    try:
        forward(*inputs, **options)
    except _Kept:
        pass
    finally:
        del cache.update


class ModuleTail:
    """What a model does behind its last layer, through its modules."""

    def __init__(self, model: PreTrainedModel) -> None:
        anatomy = Anatomy.of(model)
        self.normed, self.logits = anatomy.normed, anatomy.logits


class ProgramTail:
    """The same in a decode program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.logits = program.logits

    @torch.inference_mode()
    def normed(self, states: Tensor) -> Tensor:
        """States (b, h) as the head takes them."""
        return self._program.norm(states, self._program.final_gain)
