"""Drafts and checks on the device: two captured graphs a pass, and the host only reads tokens.

The first graph drafts, the second reads the last token and the drafted ones side by side, keeps what it may and moves
every row on, so passes can be queued ahead of what the host has read. What was rejected stays in the caches until it is
written over: lengths say what counts. Without a CUDA device the same is launched as it is, for tests in Triton's
interpreter. Shapes: b rows, k drafted tokens, s = k + 1 positions, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from hayless.decode.cache import StaticCache
from hayless.decode.graphs import (
    CAPACITY_STEP,
    CHOICES,
    RAW,
    Choice,
    bucket,
    choice_of,
    runs,
    split_raw,
    wants_top,
    write_top,
)
from hayless.decode.kernel_pass import KernelPass, captured
from hayless.decode.options import SamplingOptions
from hayless.decode.program import Program
from hayless.decode.request import Chosen, Request, top_of
from hayless.kernels.choose import likeliest, logprobs_of
from hayless.kernels.drafted import settle
from hayless.methods.decoding.speculative.accept import Accept, accept
from hayless.methods.decoding.speculative.captured_drafts import (
    Drafter,
    EarlyDrafter,
    FirstLayers,
    LookupDrafter,
    Ngram,
    ProgramDrafter,
    Rows,
    Source,
    prefill,
)
from hayless.methods.decoding.speculative.pace import Pace, Pass
from hayless.methods.decoding.speculative.rounds import KEEP, LAST, random_numbers
from hayless.methods.decoding.speculative.tally import Tally

_AHEAD = 1
_SLOTS = _AHEAD + 2
_GREEDY = SamplingOptions()


class Session:
    """Caches, buffers and graphs of `rows` rows that hold up to `capacity` tokens each, and draft `count` a pass."""

    @torch.inference_mode()
    def __init__(
        self, program: Program, source: Source, rows: int, count: int, capacity: int, rule: Accept = accept
    ) -> None:
        device = program.device
        self.program, self.source, self.rule = program, source, rule
        self.rows = Rows(rows, count, capacity, device)
        self.cache = StaticCache(program.dims, rows, capacity, program.dtype, device)
        self.drafter = self._drafter()
        self._check = KernelPass(program, self.cache, self.rows.lengths_b, positions=count + 1)
        # What the host reads lies in one piece: of each token as in a step, and how many drafted ones a row keeps.
        self._raw = torch.zeros(rows * (RAW * (count + 1) + 1), dtype=torch.int32, device=device)
        self._chosen_bs, self._logprobs_bs, self._top_bsn, self._top_logprobs_bsn, self._kept_b = self._split(self._raw)
        self._cuda = device.type == "cuda"
        size, pinned = len(self._raw), self._cuda
        self._host = [torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for _ in range(_SLOTS)]
        self._outcomes = [self._split(one) for one in self._host]
        self._events = [
            [torch.cuda.Event(enable_timing=True) for _ in range(3)] if self._cuda else [] for _ in self._host
        ]
        self._graphs: dict[tuple[Choice, bool], tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph]] = {}

    def serves(self, program: Program, source: Source, rows: int, count: int, needed: int) -> bool:
        """Whether it does what is asked for."""
        same = self.program is program and (self.source is source or self.source == source)
        return same and self.rows.tokens_bs.shape == (rows, count + 1) and self.cache.capacity >= needed

    def _drafter(self) -> Drafter:
        source = self.source
        if isinstance(source, Ngram):
            return LookupDrafter(source.longest)
        if isinstance(source, FirstLayers):
            return EarlyDrafter(self.program.first(source.count), self.rows, self.cache)
        return ProgramDrafter(source, self.rows, self.cache.capacity, self.program.dims.vocab_size)

    @torch.inference_mode()
    def capture(self, choice: Choice, top: bool) -> None:
        """Compile and capture a pass where that is not done yet. Only between batches: it writes to the caches."""
        if not self._cuda or (choice, top) in self._graphs:
            return
        rows = self.rows
        for tensor in (rows.lengths_b, rows.active_b, rows.places_b, rows.tokens_bs, rows.fed_b2, rows.text_bn):
            tensor.zero_()
        draft = captured(lambda: self.drafter.launch(rows, choice), self.program.device)
        self._graphs[choice, top] = draft, captured(lambda: self.check(choice, top), self.program.device)

    @torch.inference_mode()
    def launch(self, choice: Choice, top: bool, slot: int) -> None:
        """Queue a pass, whose outcome goes to a slot of the host."""
        if not self._cuda:
            self.drafter.launch(self.rows, choice)
            self.check(choice, top)
            self._host[slot].copy_(self._raw)
            return
        (draft, check), (start, middle, end) = self._graphs[choice, top], self._events[slot]
        start.record()
        draft.replay()
        middle.record()
        check.replay()
        self._host[slot].copy_(self._raw, non_blocking=True)
        end.record()

    def read(self, slot: int) -> tuple[tuple[Tensor, ...], list[int], float, float]:
        """The outcome of a pass: tokens and log-probabilities (b, s), the likeliest tokens and theirs (b, s, n),
        drafted tokens kept (b,), the device's seconds of drafting and of the pass (0 without a device)."""
        drafting = seconds = 0.0
        if self._cuda:
            start, middle, end = self._events[slot]
            end.synchronize()
            drafting, seconds = start.elapsed_time(middle) / 1e3, start.elapsed_time(end) / 1e3
        *chosen, kept_b = self._outcomes[slot]
        return tuple(chosen), kept_b.tolist(), drafting, seconds

    def check(self, choice: Choice, top: bool) -> None:
        """Read the drafted tokens, keep what may be kept, and move the rows on."""
        rows, count = self.rows, self.rows.count
        logits_nv = self._check.launch(rows.tokens_bs.flatten())
        if top:
            write_top(logits_nv, self._top_bsn.flatten(0, 1), self._top_logprobs_bsn.flatten(0, 1))
        by_likelihood = choice == "greedy" and self.rule is accept
        if by_likelihood:
            likeliest(logits_nv, self._chosen_bs.view(-1), self._logprobs_bs.view(-1), overlap=self._check.overlap)
        else:
            self._sample(logits_nv, count, choice)
        settle(
            rows.tokens_bs,
            self._chosen_bs,
            self._kept_b,
            rows.lengths_b,
            rows.active_b,
            rows.places_b,
            rows.fed_b2,
            rows.text_bn,
            likeliest=by_likelihood,
        )

    def _sample(self, logits_nv: Tensor, count: int, choice: Choice) -> None:
        rows = self.rows
        drafted_bk = rows.tokens_bs[:, 1:]
        target_nv = rows.checked_options.distribution(logits_nv, sort=choice == "filtered")
        probs_bkv = self.drafter.probs_bkv
        if probs_bkv is None:
            probs_bkv = torch.zeros(*drafted_bk.shape, logits_nv.shape[-1], device=drafted_bk.device)
            probs_bkv.scatter_(-1, drafted_bk[..., None], 1.0)
        target_bsv = target_nv.unflatten(0, (-1, count + 1))
        keep_bk, last_bs = rows.random(KEEP, 0, count), rows.random(LAST, 0, count + 1)
        kept_b, last_b = self.rule(target_bsv, probs_bkv, drafted_bk, keep_bk, last_bs)
        self._kept_b.copy_(kept_b)
        self._chosen_bs[:, :-1].copy_(drafted_bk)
        self._chosen_bs.scatter_(1, kept_b[:, None], last_b[:, None])
        logprobs_of(logits_nv, self._chosen_bs.view(-1), self._logprobs_bs.view(-1))

    def _split(self, raw: Tensor) -> tuple[Tensor, ...]:
        rows, positions = self.rows.tokens_bs.shape
        tokens = RAW * rows * positions
        return *(tensor.unflatten(0, (rows, positions)) for tensor in split_raw(raw[:tokens])), raw[tokens:]


class CapturedRounds:
    """Requests on a session. Passes are queued ahead of what is read; what a row got too many is dropped.

    Requests that join wait until all that is queued has been read; then they get rows of their own.
    """

    joinable = True

    @torch.inference_mode()
    def __init__(self, session: Session, pace: Pace, tally: Tally) -> None:
        self.active: list[Request] = []
        self._session, self._pace, self._tally = session, pace, tally
        self._rows: list[int] = []
        self._joining: list[Request] = []
        self._choice: Choice = "greedy"
        self._top = False
        self._launched = self._read = 0
        for tensor in (session.rows.lengths_b, session.rows.active_b, session.rows.places_b):
            tensor.zero_()

    def join(self, requests: Sequence[Request]) -> None:
        """Let requests join those that run, one of the next times that `next` is called."""
        self._joining += requests
        assert len(self.active) + len(self._joining) <= len(self._session.rows.lengths_b)

    def next(self) -> list[list[Chosen]]:
        """The next tokens of each active request."""
        if self._joining and self._launched == self._read:
            self._admit()
        if not self._joining:
            # A pass that may end every text has none behind it: that one would only keep the next texts waiting.
            missing = max(request.budget - request.made for request in self.active)
            ahead = 1 + _AHEAD if missing > self._session.rows.count + 1 else 1
            while self._launched < self._read + ahead:
                self._session.launch(self._choice, self._top, self._launched % _SLOTS)
                self._launched += 1
        outcome, kept_b, drafting, seconds = self._session.read(self._read % _SLOTS)
        self._read += 1
        kept = [kept_b[row] for row in self._rows]
        count = self._session.rows.count
        self._tally.add(count, kept)
        self._tally.drafting.append(drafting / count)
        if seconds:
            self._pace.took(count, Pass(count, seconds, drafting, kept))
        tokens, logprobs = (tensor.tolist() for tensor in outcome[:2])
        nothing = [[()] * (count + 1)] * len(tokens)
        likeliest, values = (tensor.tolist() if self._top else nothing for tensor in outcome[2:])
        return [
            [
                Chosen(tokens[row][place], logprobs[row][place], top_of(likeliest[row][place], values[row][place], one))
                for place in range(n + 1)
            ]
            for row, n, one in zip(self._rows, kept, self.active, strict=True)
        ]

    @torch.inference_mode()
    def drop_ended(self) -> None:
        """Park rows whose request has a `finish`."""
        self._joining = [request for request in self._joining if request.finish is None]
        ended = [i for i, request in enumerate(self.active) if request.finish is not None]
        for i in ended:
            self._session.rows.active_b[self._rows[i]] = 0
            self._session.rows.lengths_b[self._rows[i]] = 0
        self._rows = [row for i, row in enumerate(self._rows) if i not in ended]
        self.active = [request for i, request in enumerate(self.active) if i not in ended]

    @torch.inference_mode()
    def _admit(self) -> None:
        """Give each request that joins a row, and read its prompt but for the last token: its first pass reads that."""
        session, rows, requests = self._session, self._session.rows, self._joining
        device = rows.lengths_b.device
        free = [row for row in range(len(rows.lengths_b)) if row not in self._rows][: len(requests)]
        prompts = {row: list(request.prompt) for row, request in zip(free, requests, strict=True)}
        for run in runs(free):
            texts = [prompts[row] for row in run]
            prefill(session.program, session.cache, texts, run[0])
            session.drafter.join(texts, run[0])
        for row, prompt in prompts.items():
            rows.text_bn[row, : len(prompt)] = torch.tensor(prompt, device=device)
        at, texts = torch.tensor(free, device=device), list(prompts.values())
        rows.lengths_b[at] = torch.tensor([len(text) - 1 for text in texts], dtype=torch.int32, device=device)
        rows.active_b[at] = 1
        rows.places_b[at] = 0
        rows.tokens_bs[at, 0] = torch.tensor([text[-1] for text in texts], device=device)
        # Before a text of one token stands that token again: it only lets its first draft be a worse one.
        rows.fed_b2[at] = torch.tensor([[*text[-1:], *text][-2:] for text in texts], device=device)
        self.active, self._rows, self._joining = [*self.active, *requests], [*self._rows, *free], []
        self._choice, self._top = choice_of(self.active), wants_top(self.active)
        if self._choice != "greedy" or session.rule is not accept:
            self._set_options(dict(zip(free, requests, strict=True)))

    def _set_options(self, joining: dict[int, Request]) -> None:
        rows = self._session.rows
        chosen = {row: request.options for row, request in zip(self._rows, self.active, strict=True)}
        options = [chosen.get(row, _GREEDY) for row in range(len(rows.lengths_b))]
        rows.options.set(options)
        rows.checked_options.set([one for one in options for _ in range(rows.count + 1)])
        for row, request in joining.items():
            numbers = random_numbers(request, rows.count)
            rows.numbers_bcn[row, :, : numbers.shape[1]] = numbers.to(rows.numbers_bcn.device)


class Sessions:
    """The last sessions stay, captured."""

    def __init__(self, rule: Accept) -> None:
        self._rule = rule
        self._sessions: list[Session] = []

    def begin(
        self, program: Program, source: Source, requests: Sequence[Request], pace: Pace, tally: Tally
    ) -> CapturedRounds:
        """Start a batch on a session that has room for it."""
        count = pace.steady(len(requests))
        rows, needed = bucket(len(requests)), _needed(max(request.tokens for request in requests), count)
        found = next((one for one in self._sessions if one.serves(program, source, rows, count, needed)), None)
        if found is None:
            del self._sessions[:-1]
            found = self._new(program, source, rows, count, needed)
            self._sessions.append(found)
        found.capture(choice_of(requests), wants_top(requests))
        batch = CapturedRounds(found, pace, tally)
        batch.join(requests)
        return batch

    def open(
        self, program: Program, source: Source, rows: int, tokens: int, pace: Pace, tally: Tally
    ) -> CapturedRounds:
        """A batch without requests, with room for `rows` at once, whatever their options; prompt and continuation of
        each have at most `tokens`. Its session is its own."""
        count = pace.steady(rows)
        session = self._new(program, source, bucket(rows), count, _needed(tokens, count))
        for choice, top in product(CHOICES, (False, True)):
            session.capture(choice, top)
        return CapturedRounds(session, pace, tally)

    def _new(self, program: Program, source: Source, rows: int, count: int, needed: int) -> Session:
        capacity = -(-needed // CAPACITY_STEP) * CAPACITY_STEP
        return Session(program, source, rows, count, capacity, self._rule)


def _needed(tokens: int, count: int) -> int:
    """Tokens that a row must have room for: what queued passes may add to a text that has ended needs room, too."""
    return tokens + (_SLOTS + 1) * (count + 1)
