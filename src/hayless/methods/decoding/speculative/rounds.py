"""A running batch that drafts and checks on the host's schedule: on any device, with any model that can be cut back.

A pass drafts k tokens a row, reads each row's last token and its drafted ones side by side, keeps what it may (see
accept.py) and cuts the caches back to that. Row r's token at place n takes its own three random numbers, whatever runs
beside it. Shapes: b requests, k drafted tokens, v entries of the vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from hayless.decode.eager import tops
from hayless.decode.readers import Reader
from hayless.decode.request import Chosen, Request
from hayless.decode.sampling import distribution, invert, likeliest, precise
from hayless.methods.decoding.speculative.accept import Accept, accept, accept_likeliest
from hayless.methods.decoding.speculative.drafts import Draft, Proposal
from hayless.methods.decoding.speculative.pace import Pace, Pass
from hayless.methods.decoding.speculative.tally import Tally

DRAW, KEEP, LAST = range(3)
"""A token's random numbers: for drafting it, for keeping it, and for choosing it where it is the pass's last."""


class Rounds:
    """Requests that run side by side; a pass gives each of them a token or more. Others may join between two passes."""

    joinable = True

    def __init__(
        self,
        reader: Reader,
        draft: Draft,
        requests: Sequence[Request],
        pace: Pace,
        *,
        context: int | None,
        device: torch.device,
        tally: Tally,
        rule: Accept = accept,
    ) -> None:
        self.active: list[Request] = []
        self._reader, self._draft, self._pace = reader, draft, pace
        self._context, self._device, self._tally, self._rule = context, device, tally, rule
        self._joining: list[Request] = []
        self._texts: list[list[int]] = []
        self._uniforms: list[Tensor] = []
        self.join(requests)

    def join(self, requests: Sequence[Request]) -> None:
        """Let requests join those that run; never between `next` and `drop_ended`."""
        self.active += requests
        self._joining += requests

    @torch.inference_mode()
    def next(self) -> list[list[Chosen]]:
        """The next tokens of each active request."""
        start = None if self._joining else self._now()
        self._admit()
        asked = self._pace.count(len(self.active))
        found = self._pass(asked, start) if asked else self._step(start)
        for text, several in zip(self._texts, found, strict=True):
            text += [one.token for one in several]
        return found

    def _step(self, start: float | None) -> list[list[Chosen]]:
        """A pass that is not to draft: what a batch without drafts does, and nothing else."""
        logits_bkv = self._reader.read(self._last())
        tokens_b = self._chosen(logits_bkv)
        logprobs_bv = logits_bkv[:, 0].log_softmax(-1)
        logprobs_b = logprobs_bv.gather(-1, tokens_b[:, None])[:, 0]
        rows = zip(tokens_b.tolist(), logprobs_b.tolist(), tops(logprobs_bv, self.active), strict=True)
        found = [[Chosen(*row)] for row in rows]
        if start is not None:
            self._pace.took(0, Pass(0, self._now() - start, 0.0, [0] * len(found)))
        return found

    def _pass(self, asked: int, start: float | None) -> list[list[Chosen]]:
        """A pass that is to draft so many tokens."""
        before_drafts = self._now()
        proposal = self._propose(asked)
        middle = self._now()
        drafted = proposal.tokens_bk.shape[1]
        before = self._reader.lengths
        logits_bkv = self._reader.read(torch.cat([self._last(), proposal.tokens_bk], 1))
        kept_b, last_b = self._settle(logits_bkv, proposal)
        chosen_bk = torch.cat([proposal.tokens_bk, last_b[:, None]], 1).scatter(1, kept_b[:, None], last_b[:, None])
        logprobs_bkv = logits_bkv.log_softmax(-1)
        logprobs_bk = logprobs_bkv.gather(-1, chosen_bk[..., None])[..., 0]
        places = [tops(logprobs_bkv[:, place], self.active) for place in range(drafted + 1)]
        kept = kept_b.tolist()
        if min(kept) < drafted:
            self._reader.truncate([held + 1 + count for held, count in zip(before, kept, strict=True)])
        found = [
            list(map(Chosen, tokens[: count + 1], logprobs[: count + 1], top))
            for tokens, logprobs, count, top in zip(
                chosen_bk.tolist(), logprobs_bk.tolist(), kept, zip(*places, strict=True), strict=True
            )
        ]
        self._tally.add(drafted, kept)
        if drafted:
            self._tally.drafting.append((middle - before_drafts) / drafted)
        if start is not None:
            self._pace.took(asked, Pass(drafted, self._now() - start, middle - before_drafts, kept))
        return found

    def drop_ended(self) -> None:
        """Let requests with a `finish` leave."""
        going = [row for row, request in enumerate(self.active) if request.finish is None]
        if len(going) == len(self.active):
            return
        self.active = [self.active[row] for row in going]
        self._texts = [self._texts[row] for row in going]
        self._uniforms = [self._uniforms[row] for row in going]
        self._reader.select(going)
        self._draft.select(going)

    def _admit(self) -> None:
        """Read the prompts of those that join, but for their last tokens, which the pass reads."""
        if not self._joining:
            return
        texts = [list(request.prompt) for request in self._joining]
        self._reader.join([text[:-1] for text in texts])
        self._draft.join(texts)
        self._texts += texts
        self._uniforms += [random_numbers(request, self._pace.most) for request in self._joining]
        self._joining = []

    def _propose(self, asked: int) -> Proposal:
        count = asked
        if self._greedy:
            # Where tokens are drawn, how many are drafted must not depend on who runs beside them.
            count = min(count, max(request.budget - request.made for request in self.active) - 1)
        if self._context is not None:
            # No token is read at a place that the model does not have.
            count = min(count, *(self._context - len(text) for text in self._texts))
        if count < 1:
            return Proposal(torch.empty(len(self._texts), 0, dtype=torch.long, device=self._device), None)
        return self._draft.propose(self._texts, count, self._draw)

    def _last(self) -> Tensor:
        """The last token of each text (b, 1)."""
        return torch.tensor([text[-1:] for text in self._texts], device=self._device)

    def _draw(self, logits_bv: Tensor, place: int) -> tuple[Tensor, Tensor | None]:
        if self._greedy:
            return likeliest(logits_bv), None
        probs_bv = self._probabilities(logits_bv[:, None])[:, 0]
        return invert(probs_bv, self._random(DRAW, place, 1)[:, 0]), probs_bv

    def _settle(self, logits_bkv: Tensor, proposal: Proposal) -> tuple[Tensor, Tensor]:
        """Tokens kept (b,), and the token behind them (b,)."""
        if self._greedy and self._rule is accept:
            return accept_likeliest(likeliest(logits_bkv), proposal.tokens_bk)
        drafted = proposal.tokens_bk.shape[1]
        if not drafted:
            last_b = self._chosen(logits_bkv)
            return torch.zeros_like(last_b), last_b
        target_bkv = self._probabilities(logits_bkv)
        draft_bkv = proposal.dense(target_bkv.shape[-1])
        keep_bk, last_bk = self._random(KEEP, 0, drafted), self._random(LAST, 0, drafted + 1)
        kept_b, last_b = self._rule(target_bkv, draft_bkv, proposal.tokens_bk, keep_bk, last_bk)
        if proposal.there_b is not None:
            # What a row gets where nothing was drafted for any.
            plain_b = invert(target_bkv[:, 0], last_bk[:, 0])
            kept_b, last_b = kept_b * proposal.there_b, last_b.where(proposal.there_b, plain_b)
        return kept_b, last_b

    def _chosen(self, logits_bkv: Tensor) -> Tensor:
        """The tokens (b,) of a pass without drafts, by logits (b, 1, v)."""
        if self._greedy:
            return likeliest(logits_bkv)[:, 0]
        return invert(self._probabilities(logits_bkv)[:, 0], self._random(LAST, 0, 1)[:, 0])

    @property
    def _greedy(self) -> bool:
        return all(request.options.temperature == 0 for request in self.active)

    def _probabilities(self, logits_bkv: Tensor) -> Tensor:
        """The distributions (b, k, v) that each request's options make of its logits."""
        probs_bkv = torch.empty_like(logits_bkv)
        for options in dict.fromkeys(request.options for request in self.active):
            rows = [row for row, request in enumerate(self.active) if request.options == options]
            probs_bkv[rows] = distribution(logits_bkv[rows].flatten(0, 1), options).unflatten(0, (len(rows), -1))
        return probs_bkv

    def _random(self, which: int, place: int, count: int) -> Tensor:
        """Numbers (b, count) for the tokens from `place` on, counted from where each text ends."""
        found = [
            numbers[which, request.made + place :][:count]
            for request, numbers in zip(self.active, self._uniforms, strict=True)
        ]
        return torch.stack(found).to(self._device, precise(self._device))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def random_numbers(request: Request, count: int) -> Tensor:
    """Numbers in [0, 1) for every token that a request may be drafted (3, its budget and `count` more)."""
    return torch.rand(3, request.budget + count + 1, generator=request.generator, dtype=torch.float64)
