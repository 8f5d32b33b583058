"""Decoding on a CUDA device: a step is one captured graph, and the host only reads tokens.

A session holds the buffers and the cache of some number of rows. Its step takes the rows' last tokens through a
program's weights (see kernel_pass.py), chooses the next tokens on the device and makes them the next inputs, so steps
can be queued ahead of what the host has read. A row that has ended is parked at length 0 until another request takes
it: reading an empty cache costs nothing. Shapes: b rows, v vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from hayless.decode.bank import NONE, slots_of
from hayless.decode.cache import KernelCache, StaticCache
from hayless.decode.kernel_pass import KernelPass, captured
from hayless.decode.options import MOST_TOP, SamplingOptions
from hayless.decode.program import Program
from hayless.decode.request import Chosen, Request, top_of
from hayless.decode.sampling import RowOptions, invert
from hayless.decode.slots import CachePart
from hayless.kernels.choose import likeliest, logprobs_of

Choice = Literal["greedy", "sampled", "filtered"]
"""What a step must be able to do: take the likeliest token; draw; draw with top_k or top_p, which needs a sort."""

_AHEAD = 2
_SLOTS = _AHEAD + 2
CAPACITY_STEP = 256
PREFILL_TOKENS = 16384
_GREEDY = SamplingOptions()
CHOICES: tuple[Choice, ...] = ("greedy", "sampled", "filtered")
RAW = 3 + 2 * MOST_TOP
"""Numbers of 32 bits that the host reads of each token."""
_SESSIONS = 2


class Graphs:
    """The sessions of one program; the last few stay, captured.

    With `invariant`, what a request gets does not depend on those beside it, to the bit; `held` is in what form keys
    and values are, if not as they are.
    """

    def __init__(self, program: Program, *, invariant: bool = False, held: CachePart | None = None) -> None:
        self.program, self._invariant, self._held = program, invariant, held
        self._sessions: list[Session] = []
        self.warmup_seconds = 0.0

    def begin(self, requests: Sequence[Request]) -> GraphBatch:
        """Start a batch on a session that has room for it."""
        start = time.perf_counter()
        session = self._session(bucket(len(requests)), max(request.tokens for request in requests) + _SLOTS)
        session.capture(choice_of(requests), wants_top(requests))
        batch = self.batch(session)
        batch.join(requests)
        self.warmup_seconds = time.perf_counter() - start
        return batch

    def open(self, rows: int, tokens: int) -> GraphBatch:
        """A batch without requests, with room for `rows` at once, whatever their options; prompt and continuation of
        each have at most `tokens`. Its session is its own, so that other batches may come and go beside it."""
        start = time.perf_counter()
        session = self._session(bucket(rows), tokens + _SLOTS)
        self._sessions.remove(session)
        for choice, top in product(CHOICES, (False, True)):
            session.capture(choice, top)
        self.warmup_seconds = time.perf_counter() - start
        return self.batch(session)

    def session(self, rows: int, capacity: int) -> Session:
        """A new session."""
        return Session(self.program, rows, capacity, invariant=self._invariant, held=self._held)

    def batch(self, session: Session) -> GraphBatch:
        """A batch on a session."""
        return GraphBatch(session)

    def _session(self, rows: int, needed: int) -> Session:
        found = next((one for one in self._sessions if one.rows == rows), None)
        if found is not None:
            self._sessions.remove(found)
        if found is None or found.cache.capacity < needed:
            del self._sessions[: max(0, len(self._sessions) - _SESSIONS + 1)]
            found = None
            capacity = -(-needed // CAPACITY_STEP) * CAPACITY_STEP
            found = self.session(rows, capacity)
        self._sessions.append(found)
        return found


class Session:
    """Buffers, cache and captured steps of `rows` rows that hold up to `capacity` tokens each.

    `noted_nb` are further numbers of each row that the host reads of each token, `noted` of them.
    """

    @torch.inference_mode()
    def __init__(
        self,
        program: Program,
        rows: int,
        capacity: int,
        *,
        invariant: bool = False,
        held: CachePart | None = None,
        noted: int = 0,
    ) -> None:
        dims, device, dtype = program.dims, program.device, program.dtype
        self.program, self.rows, self.invariant = program, rows, invariant
        self.cache: StaticCache | KernelCache
        if held is None:
            self.cache = StaticCache(dims, rows, capacity, dtype, device)
        else:
            self.cache = held.in_kernels(program, rows, capacity)
        self.lengths_b = torch.zeros(rows, dtype=torch.int32, device=device)
        self.active_b = torch.zeros(rows, dtype=torch.int32, device=device)
        self.slots_b = torch.full((rows,), NONE, dtype=torch.int32, device=device)
        # What the host reads lies in one piece, so that one copy brings all of it.
        self.raw = torch.zeros((RAW + noted) * rows, dtype=torch.int32, device=device)
        self.tokens_b, self.logprobs_b, self.top_bn, self.top_logprobs_bn, self.noted_nb = self.split(self.raw)
        self.options = RowOptions(rows, device)
        self.uniforms_bn = torch.zeros(rows, capacity, dtype=torch.float64, device=device)
        self.draws_b = torch.zeros(rows, dtype=torch.long, device=device)
        self.host = [torch.zeros(len(self.raw), dtype=torch.int32, pin_memory=True) for _ in range(_SLOTS)]
        self.outcomes = [self.split(one) for one in self.host]
        self.events = [torch.cuda.Event() for _ in range(_SLOTS)]
        self.forward = KernelPass(program, self.cache, self.lengths_b, invariant=invariant)
        self.logits_bv = self.forward.logits_nv
        self.layers = dims.num_layers
        """Those that the next step goes through, captured or queued; fewer where tokens leave by schedule."""
        self._graphs: dict[tuple[Choice, bool, int], torch.cuda.CUDAGraph] = {}

    def split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the host reads, as views of one buffer: see `split_raw`, and the numbers noted (n, b)."""
        own = RAW * self.rows
        return *split_raw(raw[:own]), raw[own:].view(-1, self.rows)

    def replay(self, choice: Choice, top: bool = False) -> None:
        """Queue one captured step."""
        self._graphs[choice, top, self.layers].replay()

    @torch.inference_mode()
    def capture(self, choice: Choice, top: bool = False) -> None:
        """Compile and capture a step where that is not done yet. Only between batches: it writes to the cache."""
        if (choice, top, self.layers) in self._graphs:
            return
        for tensor in (self.lengths_b, self.active_b, self.tokens_b):
            tensor.zero_()
        self._graphs[choice, top, self.layers] = captured(lambda: self.step(choice, top), self.program.device)

    def step(self, choice: Choice, top: bool) -> None:
        """Launch one step: the rows' last tokens in, their next ones out, and with `top` the likeliest."""
        with self.program.rows.using(self.slots_b):
            self.read()
        self.choose(choice, top)
        self.lengths_b.add_(self.active_b)

    def read(self) -> None:
        """From the rows' last tokens to logits."""
        self.forward.launch(self.tokens_b)

    def prefill(self, rows: Sequence[int], prompts: list[list[int]]) -> Tensor:
        """Read prompts into empty rows that follow each other; their last hidden states (b, h)."""
        cache = self.cache
        if isinstance(cache, StaticCache):
            view = cache.rows(rows[0], rows[-1] + 1)
            return self.program.prefill(prompts, view, max(64, PREFILL_TOKENS // len(rows)))
        last = []
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            with self.program.rows.only(number):
                last.append(cache.prefill(row, prompt))
        return torch.cat(last)

    def choose(self, choice: Choice, top: bool) -> None:
        """From logits to the next tokens and their log-probabilities."""
        if top:
            write_top(self.logits_bv, self.top_bn, self.top_logprobs_bn)
        if choice == "greedy":
            likeliest(self.logits_bv, self.tokens_b, self.logprobs_b, overlap=self.forward.overlap)
            return
        probs_bv = self.options.distribution(self.logits_bv, sort=choice == "filtered")
        uniforms_b = self.uniforms_bn.gather(1, self.draws_b[:, None])[:, 0]
        tokens_b = invert(probs_bv, uniforms_b)
        self.tokens_b.copy_(torch.where(self.options.temperature_b == 0, self.logits_bv.argmax(-1), tokens_b))
        logprobs_of(self.logits_bv, self.tokens_b, self.logprobs_b)
        self.draws_b.add_(1).clamp_(max=self.uniforms_bn.shape[1] - 1)

    def choose_for(self, rows: Tensor, choice: Choice, top: bool) -> None:
        """`choose` for some rows; what the others chose stays."""
        before = [*self.split(self.raw.clone())[:4], self.draws_b.clone()]
        self.choose(choice, top)
        for kept, chosen in zip(before, (*self.split(self.raw)[:4], self.draws_b), strict=True):
            kept[rows] = chosen[rows]
            chosen.copy_(kept)


class GraphBatch:
    """Requests on a session. Steps are queued a few ahead of what is read; what a row got too many is dropped.

    Requests that join wait until all that is queued has been read; then they get rows of their own.
    """

    joinable = True

    @torch.inference_mode()
    def __init__(self, session: Session) -> None:
        self.active: list[Request] = []
        self._session = session
        self.noted_nb = session.noted_nb
        self._rows: list[int] = []
        self._joining: list[Request] = []
        self._choice: Choice = "greedy"
        self._top = False
        self._launched = self._read = 0
        for tensor in (session.lengths_b, session.active_b, session.draws_b):
            tensor.zero_()
        session.slots_b.fill_(NONE)

    def join(self, requests: Sequence[Request]) -> None:
        """Let requests join those that run, one of the next times that `next` is called."""
        self._joining += requests
        assert len(self.active) + len(self._joining) <= self._session.rows

    def next(self) -> list[list[Chosen]]:
        """The next token of each active request."""
        session = self._session
        if self._joining and self._launched == self._read:
            self._launch()
        elif not self._joining:
            ahead = min(1 + _AHEAD, max(request.budget - request.made for request in self.active))
            while self._launched < self._read + ahead:
                self._launch()
        slot = self._read % _SLOTS
        session.events[slot].synchronize()
        tokens_b, logprobs_b, *top, self.noted_nb = session.outcomes[slot]
        tokens, logprobs = tokens_b.tolist(), logprobs_b.tolist()
        likeliest, values = (tensor.tolist() if self._top else [()] * len(tokens) for tensor in top)
        self._read += 1
        return [
            [Chosen(tokens[row], logprobs[row], top_of(likeliest[row], values[row], request))]
            for row, request in zip(self._rows, self.active, strict=True)
        ]

    @torch.inference_mode()
    def drop_ended(self) -> None:
        """Park rows whose request has a `finish`."""
        self._joining = [request for request in self._joining if request.finish is None]
        ended = [i for i, request in enumerate(self.active) if request.finish is not None]
        if not ended:
            return
        for i in ended:
            self._session.active_b[self._rows[i]] = 0
            self._session.lengths_b[self._rows[i]] = 0
            self._session.slots_b[self._rows[i]] = NONE
        self._rows = [row for i, row in enumerate(self._rows) if i not in ended]
        self.active = [request for i, request in enumerate(self.active) if i not in ended]

    @torch.inference_mode()
    def _launch(self) -> None:
        """Queue a step of the rows there are, and after it the prompts of those that join."""
        session, slot = self._session, self._launched % _SLOTS
        if self.active:
            session.replay(self._choice, self._top)
        if self._joining:
            self._admit()
        session.host[slot].copy_(session.raw, non_blocking=True)
        session.events[slot].record()
        self._launched += 1

    def _admit(self) -> None:
        """Give each request that joins a row, read its prompt and choose its first token."""
        session, requests = self._session, self._joining
        free = [row for row in range(session.rows) if row not in self._rows][: len(requests)]
        self.active, self._rows, self._joining = [*self.active, *requests], [*self._rows, *free], []
        self._choice, self._top = choice_of(self.active), wants_top(self.active)
        self._set_options(dict(zip(free, requests, strict=True)))
        for rows in [[row] for row in free] if session.invariant else runs(free):
            joining = [requests[free.index(row)] for row in rows]
            with session.program.rows.using(slots_of([one.slot for one in joining], session.raw.device)):
                last_bh = session.prefill(rows, [one.prompt for one in joining])
            session.logits_bv[rows[0] : rows[-1] + 1] = session.program.logits(last_bh)
        at = torch.tensor(free, device=session.raw.device)
        session.lengths_b[at] = torch.tensor([len(one.prompt) for one in requests], dtype=torch.int32, device=at.device)
        session.active_b[at] = 1
        session.slots_b[at] = torch.tensor([one.slot for one in requests], dtype=torch.int32, device=at.device)
        session.choose_for(at, self._choice, self._top)

    def _set_options(self, joining: dict[int, Request]) -> None:
        session = self._session
        if self._choice == "greedy":
            return
        options = {row: request.options for row, request in zip(self._rows, self.active, strict=True)}
        session.options.set([options.get(row, _GREEDY) for row in range(session.rows)])
        for row, request in joining.items():
            drawn = torch.rand(request.budget, generator=request.generator, dtype=torch.float64)
            session.uniforms_bn[row, : request.budget].copy_(drawn)
            session.draws_b[row] = 0


def split_raw(raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens (b,) int64, their log-probabilities (b,) float32, the likeliest tokens (b, MOST_TOP) int32 and their
    log-probabilities (b, MOST_TOP) float32, as views of one int32 buffer (RAW·b,)."""
    rows = len(raw) // RAW
    tokens, logprobs, top, values = raw.split([2 * rows, rows, MOST_TOP * rows, MOST_TOP * rows])
    return (
        tokens.view(torch.int64),
        logprobs.view(torch.float32),
        top.view(rows, MOST_TOP),
        values.view(torch.float32).view(rows, MOST_TOP),
    )


def write_top(logits_bv: Tensor, top_bn: Tensor, logprobs_bn: Tensor) -> None:
    """The likeliest tokens of each row and their log-probabilities, from logits (b, v); as many as there are."""
    count = min(MOST_TOP, logits_bv.shape[-1])
    values_bn, tokens_bn = logits_bv.log_softmax(-1).topk(count)
    top_bn[:, :count].copy_(tokens_bn)
    logprobs_bn[:, :count].copy_(values_bn)


def runs(rows: Sequence[int]) -> list[list[int]]:
    """Ascending rows, parted where they do not follow each other."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][-1] == row - 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def bucket(requests: int) -> int:
    """Rows of the session for so many requests: a power of 2 up to 8, then multiples of 8."""
    return 1 << (requests - 1).bit_length() if requests <= 8 else -(-requests // 8) * 8


def wants_top(requests: Sequence[Request]) -> bool:
    """Whether any of these asks for the likeliest tokens."""
    return any(request.options.top_logprobs for request in requests)


def choice_of(requests: Sequence[Request]) -> Choice:
    """What a step must be able to do for these requests."""
    drawn = [request.options for request in requests if request.options.temperature > 0]
    if not drawn:
        return "greedy"
    return "filtered" if any(one.top_k or one.top_p < 1 for one in drawn) else "sampled"
