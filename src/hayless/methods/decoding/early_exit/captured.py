"""Early exit in captured steps.

By schedule the host knows how deep a step goes: one captured step for each depth. By confidence a row leaves where the
device finds it sure: a step branches on the device behind each exit (`hayless.kernels.branches`), so the host waits for
nothing and layers that all rows skip cost nothing. Rows that left while others go on are held back as the plain path
holds them. Without a CUDA device the host looks where to go on, for tests in Triton's interpreter. Shapes: b rows, h
hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hayless.decode.cache import StaticCache
from hayless.decode.graphs import Choice, GraphBatch, Graphs, Session
from hayless.decode.products import Linear
from hayless.decode.program import Layer, Program
from hayless.decode.request import Chosen, Request
from hayless.kernels.branches import branch, prepare
from hayless.kernels.exits import Kind, Leaving, Line, hold, look
from hayless.kernels.linear import Norm
from hayless.kernels.skipped import Keys, keep, table_of
from hayless.methods.decoding.early_exit.confidence import Classifier
from hayless.methods.decoding.early_exit.heads import Heads, shared

Note = Callable[[Request, int], None]
"""Takes a request and the layers that its new token went through."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Where tokens leave: behind which numbers of layers and when they may, or (`layers_at`) at which place they do.

    `classifier` is that of a confidence of this kind.
    """

    exits: Sequence[int]
    kind: Kind
    threshold: float
    classifier: Classifier | None = None
    heads: Heads = shared
    layers_at: Callable[[int], int] | None = None


class ExitGraphs(Graphs):
    """Sessions whose tokens leave by `rule`; `note` is told of each."""

    def __init__(self, program: Program, rule: Rule, note: Note) -> None:
        super().__init__(program)
        self._rule, self._note = rule, note

    def session(self, rows: int, capacity: int) -> Session:
        """A new session."""
        if self._rule.layers_at is not None:
            return ScheduledSession(self.program, rows, capacity, self._rule)
        return ConfidentSession(self.program, rows, capacity, self._rule)

    def batch(self, session: Session) -> GraphBatch:
        """A batch on a session."""
        layers_at = self._rule.layers_at
        if layers_at is not None:
            return _ScheduledBatch(session, layers_at, self._note)
        return _ConfidentBatch(session, self._note)


class ScheduledSession(Session):
    """Has a captured step for each depth."""

    def __init__(self, program: Program, rows: int, capacity: int, rule: Rule) -> None:
        super().__init__(program, rows, capacity)
        self._heads, self._depth = rule.heads, len(program.layers)
        self._depths = [*rule.exits, self._depth]

    def capture(self, choice: Choice, top: bool = False) -> None:
        """Compile and capture the steps where that is not done yet."""
        for depth in self._depths:
            self.layers = depth
            super().capture(choice, top)

    def read(self) -> None:
        """From the rows' last tokens to logits, through some layers."""
        run = self.forward
        run.enter(self.tokens_b)
        run.through(0, self.layers)
        run.speak(run.x if self.layers == self._depth else self._heads(self.layers, run.x))


class ConfidentSession(Session):
    """Has captured steps that branch behind each exit."""

    @torch.inference_mode()
    def __init__(self, program: Program, rows: int, capacity: int, rule: Rule) -> None:
        super().__init__(program, rows, capacity, noted=1)
        self._rule, self._depth = rule, len(program.layers)
        width = program.dims.hidden_size
        self._leaving = Leaving(rows, len(rule.exits), width, program.dtype, program.device)
        self._before_bh = torch.zeros(rows, width, dtype=program.dtype, device=program.device)
        self._keys = [_keys(layer) for layer in program.layers]
        self._table = table_of(self._keys, program.device)
        self._memory = torch.cuda.MemPool() if program.device.type == "cuda" else None
        self._line = None
        if rule.classifier is not None:
            norm = Norm(program.final_gain, program.eps)
            self._line = Line(rule.classifier.weight_h.contiguous(), rule.classifier.bias, norm)

    @property
    def layers_b(self) -> Tensor:
        """The layers that each row's last token went through."""
        return self.noted_nb[0]

    def read(self) -> None:
        """From the rows' last tokens to logits, from the layers where they leave."""
        self.forward.enter(self.tokens_b)
        self._go_on(0)

    @torch.inference_mode()
    def capture(self, choice: Choice, top: bool = False) -> None:
        """Compile and capture a step where that is not done yet."""
        if self._memory is None or (choice, top, self.layers) in self._graphs:
            super().capture(choice, top)
            return
        # A step goes one way only, and all is to be compiled before it is captured.
        prepare(self.raw.device)
        self.forward.enter(self.tokens_b)
        for number in range(len(self._rule.exits)):
            self._arrive(number)
            self._leave(number)
        self._end()
        with torch.cuda.use_mem_pool(self._memory, self.raw.device):
            super().capture(choice, top)

    def _go_on(self, number: int) -> None:
        """From behind exit `number` − 1 to exit `number`, and on from there for as long as a row does."""
        if number == len(self._rule.exits):
            self._end()
            return
        self._arrive(number)
        going_b = self._leaving.going_nb[number]
        branch(going_b, lambda: self._go_on(number + 1), lambda: self._leave(number))

    def _end(self) -> None:
        """From behind the last exit through all layers."""
        held = len(self._rule.exits) > 0
        self._through(self._rule.exits[-1] if held else 0, self._depth, held=held)
        self.forward.speak(self._shown(self._depth, held=held))

    def _arrive(self, number: int) -> None:
        """Go to an exit from the one before, and let rows leave there."""
        rule, run, layer = self._rule, self.forward, self._rule.exits[number]
        self._through(rule.exits[number - 1] if number else 0, layer - 1, held=number > 0)
        if rule.kind == "state":
            self._before_bh.copy_(run.x)
        self._through(layer - 1, layer, held=number > 0)
        shown_bh = self._shown(layer, held=number > 0)
        look(
            rule.kind,
            layer,
            number,
            run.x,
            shown_bh,
            self._leaving,
            self.active_b,
            self.layers_b,
            rule.threshold,
            depth=self._depth,
            logits=run.speak(shown_bh) if rule.kind == "softmax" else None,
            before=self._before_bh if rule.kind == "state" else None,
            line=self._line,
            overlap=run.overlap,
        )

    def _leave(self, number: int) -> None:
        """All rows have left, the last of them here: their logits, and keys and values of what is skipped."""
        run, keys = self.forward, self._keys[0]
        if self._rule.kind != "softmax":
            run.speak(self._leaving.shown_bh)
        assert isinstance(self.cache, StaticCache)
        keep(
            self._leaving.kept_bh,
            self._table,
            self._rule.exits[number],
            run.cos,
            run.sin,
            self.lengths_b,
            self.cache.k,
            self.cache.v,
            eps=self.program.eps,
            bias=keys.k_bias is not None,
            k_norm=keys.k_gain is not None,
        )

    def _through(self, first: int, end: int, *, held: bool) -> None:
        """Take the states through layers, those of rows that may have left back to what they left with."""
        if not held or self.rows == 1:
            self.forward.through(first, end)
            return
        for layer in range(first, end):
            self.forward.through(layer, layer + 1)
            hold(self.forward.x, self._leaving.kept_bh, self._leaving.left_b, overlap=self.forward.overlap)

    def _shown(self, layer: int, *, held: bool) -> Tensor:
        """What the head is shown of the states behind a layer, and of those that rows left with."""
        x_bh = self.forward.x
        shown_bh = x_bh if layer == self._depth else self._rule.heads(layer, x_bh)
        if held and self.rows > 1 and self._rule.heads is not shared:
            shown_bh = shown_bh.clone() if shown_bh is x_bh else shown_bh
            hold(shown_bh, self._leaving.shown_bh, self._leaving.left_b)
        return shown_bh


class _ScheduledBatch(GraphBatch):
    """A batch whose rows leave together; they have all begun together."""

    def __init__(self, session: Session, layers_at: Callable[[int], int], note: Note) -> None:
        super().__init__(session)
        self._layers_at, self._note = layers_at, note

    def next(self) -> list[list[Chosen]]:
        """The next token of each active request."""
        layers = self._layers_at(self._read)
        found = super().next()
        for request in self.active:
            self._note(request, layers)
        return found

    def _launch(self) -> None:
        self._session.layers = self._layers_at(self._launched)
        super()._launch()


class _ConfidentBatch(GraphBatch):
    """A batch whose rows leave by themselves."""

    def __init__(self, session: Session, note: Note) -> None:
        super().__init__(session)
        self._note = note

    def next(self) -> list[list[Chosen]]:
        """The next token of each active request."""
        found = super().next()
        layers = self.noted_nb[0].tolist()
        for row, request in zip(self._rows, self.active, strict=True):
            self._note(request, layers[row])
        return found

    def _admit(self) -> None:
        joining = len(self._joining)
        super()._admit()
        # Their first token comes from the prompt's pass, which goes through all layers.
        at = torch.tensor(self._rows[-joining:], device=self.noted_nb.device)
        self._session.noted_nb[0, at] = self._session.layers


def _keys(layer: Layer) -> Keys:
    k, v = layer.k, layer.v
    assert isinstance(k, Linear) and isinstance(v, Linear), "other models leave on the host's schedule"
    return Keys(layer.input_gain, k.weight, v.weight, k.bias, v.bias, layer.k_gain)
