"""What is wrong with prepared data, before anything is trained on it: every problem by name, counted, with examples.

These are the field's silent failures: training on nothing, on the wrong tokens, never learning to stop, a begin token
doubled or missing, examples clipped, held-out text among what is learnt. `problems` looks at token stores and judges
what a model would be trained on; `refuse` makes an error of what must not be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hayless.core.errors import RequestError, WorkError, unknown
from hayless.data.batches import Batches
from hayless.data.config import ProblemName
from hayless.data.contamination import contained
from hayless.data.corpus import CONTAMINATED, EMPTY, EXACT, NEAR
from hayless.data.encode import BEGIN_SPELT, END_INSIDE, SPECIAL_AS_TEXT, SPECIAL_IN_CHAT, TURN_INSIDE_TOKEN
from hayless.data.facts import facts, learnt_within
from hayless.data.notes import Noted
from hayless.data.store import Prepared, TokenStore

LEFT_OUT: tuple[ProblemName, ...] = ("nothing_to_learn", "exact_copies", "near_copies", "contaminated")
"""Problems of the data as it was given that preparing it has solved, by leaving something out."""

TOLERATED = 0.01
"""Share of documents that may be cut short, copies of others or contained in others before that is refused."""

_NAMED = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with `count` of `total` documents, the first few by name; whether it is refused."""

    name: ProblemName
    what: str
    todo: str
    count: int
    total: int
    ids: tuple[str, ...]
    refused: bool

    def __str__(self) -> str:
        named = f" ({', '.join(self.ids)}{', …' if self.count > len(self.ids) else ''})" if self.ids else ""
        return f"{self.name}: {self.what}: {self.count:,} of {self.total:,}{named}. {self.todo}"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {name: getattr(self, name) for name in self.__slots__} | {"ids": list(self.ids)}


@dataclass(frozen=True, slots=True)
class Figures:
    """The training part in numbers: shares of the positions of all rows that are learnt and that are padding, share of
    documents cut short, and the tokens of a document (median, 99th percentile, longest)."""

    documents: int
    heldout_documents: int
    tokens: int
    learnt_tokens: int
    learnt_share: float
    padded_share: float
    truncated_share: float
    median_tokens: float
    p99_tokens: float
    longest_tokens: int


def problems(
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    allow: Collection[str] = (),
    embeddings: int | None = None,
    new_tokens: Mapping[str, int] | None = None,
) -> list[Problem]:
    """Everything that is wrong with prepared data, training and held-out part together, in a fixed order.

    `allow` names problems that are not refused; before training, `LEFT_OUT` belongs there: those documents are gone.
    `embeddings` is how many tokens the model has room for, `new_tokens` the numbers of those that it is to learn.
    RequestError for a name in `allow` that is no problem's.
    """
    for name in allow:
        if name not in get_args(ProblemName):
            raise unknown("problem", name, get_args(ProblemName))
    look = _Look(prepared, tokenizer, sequence_length, frozenset(allow))
    found = [
        *look.left_out(),
        *look.learnt(),
        *look.ends(),
        *look.begins(),
        *look.special_tokens(),
        *look.vocabulary(embeddings),
        *look.unseen(new_tokens or {}),
        *look.contained(),
    ]
    return [problem for problem in found if problem.count]


def refuse(found: Iterable[Problem]) -> None:
    """WorkError that has every refused problem in words; nothing where there is none."""
    refused = [problem for problem in found if problem.refused]
    if refused:
        names = " ".join(problem.name for problem in refused)
        raise WorkError(
            f"The data must not be trained on as it is ({len(refused)} problem{'s' * (len(refused) > 1)}):\n  "
            + "\n  ".join(map(str, refused)),
            hint=f"See it token by token with `hayless data check`. To train all the same, allow: {names}",
        )


def figures(prepared: Prepared, *, sequence_length: int) -> Figures | None:
    """The training part in numbers, packed at `sequence_length`; None where nothing is learnt of it."""
    store = prepared.train
    try:
        batches = Batches(store, sequence_length=sequence_length, batch_size=1)
    except RequestError:
        # There is not one row; which documents are to blame is for `problems` to say.
        return None
    lengths = store.lengths
    learnt = int(learnt_within(store, sequence_length).sum())
    return Figures(
        documents=len(store),
        heldout_documents=len(prepared.heldout),
        tokens=int(lengths.sum()),
        learnt_tokens=learnt,
        learnt_share=learnt / batches.positions,
        padded_share=1 - batches.fill,
        truncated_share=batches.truncated / len(store),
        median_tokens=float(np.median(lengths)),
        p99_tokens=float(np.percentile(lengths, 99)),
        longest_tokens=int(lengths.max()),
    )


class _Look:
    """One look at both parts of prepared data; each method gives the problems of one kind, of count 0 too."""

    def __init__(
        self, prepared: Prepared, tokenizer: PreTrainedTokenizerBase, sequence_length: int, allow: frozenset[str]
    ) -> None:
        self._prepared = prepared
        self._tokenizer = tokenizer
        self._length = sequence_length
        self._allow = allow
        self._stores = (prepared.train, prepared.heldout)
        self._kind = prepared.train.kind
        begin: int | None = tokenizer.bos_token_id
        self._begin = prepared.train.begin if begin is None else begin
        self._facts = [
            facts(store, sequence_length, begin=self._begin, unknown=tokenizer.unk_token_id) for store in self._stores
        ]
        self._total = sum(len(store) for store in self._stores)

    def left_out(self) -> list[Problem]:
        """What preparing the data has left out of it."""
        todo = "Correct or remove them, or accept that they are left out."
        left_out = self._prepared.left_out
        records = self._total // (2 if self._kind == "preference" else 1)
        given = records + sum(noted.count for noted in left_out.values())
        said: tuple[tuple[ProblemName, str, str, float], ...] = (
            ("nothing_to_learn", EMPTY, "rows whose text or output is empty were left out", 0),
            ("exact_copies", EXACT, "documents that are copies of others were left out", TOLERATED),
            ("near_copies", NEAR, "documents that nearly copy others were left out", TOLERATED),
            ("contaminated", CONTAMINATED, "training documents that copy held-out ones were left out", 0),
        )
        return [
            self._noted(name, noted, what, todo, refused=noted.count > most * given, total=given)
            for name, key, what, most in said
            if (noted := left_out.get(key))
        ]

    def learnt(self) -> list[Problem]:
        """Documents with no token to learn, at all or within the sequence length; documents that are cut short."""
        longer = f"Raise the sequence length, now {self._length:,}, or shorten them."
        too_long = (
            [found.tokens - 1 > self._length for found in self._facts]
            if self._kind != "lm"
            else [np.zeros(len(store), dtype=np.bool_) for store in self._stores]
        )
        share = sum(int(flags.sum()) for flags in too_long) / max(1, self._total)
        cut = [(found.learnt > 0) & (found.learnt_within == 0) for found in self._facts]
        return [
            self._flagged(
                "no_trained_token",
                [found.learnt == 0 for found in self._facts],
                "documents have no token to learn",
                "Give each an output.",
            ),
            self._flagged(
                "answer_cut_off",
                cut,
                f"documents have nothing left to learn within {self._length:,} tokens",
                longer,
            ),
            self._flagged(
                "truncated",
                too_long,
                f"documents are longer than {self._length:,} tokens and cut short ({share:.1%})",
                longer,
                refused=share > TOLERATED,
            ),
        ]

    def ends(self) -> list[Problem]:
        """Documents that never teach to stop, and a padding token that hides the end token from other trainers."""
        endless = [~found.ends for found in self._facts]
        end = self._tokenizer.convert_ids_to_tokens(self._prepared.train.end)
        own = "Give the tokenizer a padding token of its own."
        if self._tokenizer.pad_token_id != self._prepared.train.end:
            todo = (
                f"Give the template a closing {end!r} that is learnt, or make the token it closes with the eos_token."
            )
            return [self._flagged("end_never_trained", endless, f"documents never learn the end token {end!r}", todo)]
        if any(bool(flags.any()) for flags in endless):
            what = f"documents have the end token {end!r} masked, which is the padding token too"
            return [self._flagged("pad_is_end", endless, what, own)]
        what = (
            f"documents end with {end!r}, which is the padding token too: learnt here, where padding is told by its"
            " place, but not by a trainer that masks by token"
        )
        return [self._noted("pad_is_end", Noted(self._total), what, own, refused=False)]

    def begins(self) -> list[Problem]:
        """Documents that start with two begin tokens, or with none although the tokenizer writes one."""
        if self._begin is None:
            return []
        token = self._tokenizer.convert_ids_to_tokens(self._begin)
        written = self._tokenizer("a")["input_ids"][:1] == [self._begin]
        spelt = [store.notes.get(BEGIN_SPELT) for store in self._stores]
        doubled = self._flagged(
            "begin_doubled",
            [found.begins_twice for found in self._facts],
            f"documents start with {token!r} twice",
            "Take it out of the text or of the chat template: it is added once.",
            also=spelt,
        )
        missing = self._flagged(
            "begin_missing",
            [~found.begins for found in self._facts],
            f"documents start without {token!r}, which the tokenizer itself puts before a text",
            "Let the chat template write {{ bos_token }}.",
        )
        return [doubled, missing] if written or self._kind == "lm" else [doubled]

    def special_tokens(self) -> list[Problem]:
        """Special tokens that come out of the text itself."""
        said: tuple[tuple[ProblemName, str, str, str, bool], ...] = (
            ("special_in_chat", SPECIAL_IN_CHAT, "chats spell out special tokens, which the template takes in as such",
             "Remove them: they end turns and open others in the middle of what is said.", True),
            ("end_inside", END_INSIDE, "texts hold the end token itself",
             "Use a tokenizer that reads it as text.", True),
            ("special_as_text", SPECIAL_AS_TEXT, "texts spell out special tokens, which are read as plain text",
             "Give chats as messages, so that the tokenizer's template writes the special tokens.", False),
            ("turn_inside_token", TURN_INSIDE_TOKEN, "chats have a turn that starts in the middle of a token",
             "A model that is asked never sees that token: begin answers without white space.", False),
        )  # fmt: skip
        return [
            self._noted(name, _together([store.notes.get(key) for store in self._stores]), what, todo, refused=refused)
            for name, key, what, todo, refused in said
        ]

    def vocabulary(self, embeddings: int | None) -> list[Problem]:
        """Tokens that the tokenizer or the model does not know."""
        unknowns = sum(int(found.unknown.sum()) for found in self._facts)
        tokens = sum(int(found.tokens.sum()) for found in self._facts)
        unknown_to_tokenizer = self._flagged(
            "unknown_tokens",
            [found.unknown > 0 for found in self._facts],
            f"documents hold tokens unknown to the tokenizer ({unknowns / max(1, tokens):.2%} of all tokens)",
            "Use a larger vocabulary, or one of bytes (bpe).",
            refused=False,
        )
        if embeddings is None:
            return [unknown_to_tokenizer]
        outside = [_any_above(store, embeddings - 1) for store in self._stores]
        what = f"documents hold tokens that the model has no room for ({embeddings:,} embeddings)"
        todo = "Give the tokenizer that the model was trained with, or add the new tokens to the model."
        return [unknown_to_tokenizer, self._flagged("outside_model", outside, what, todo)]

    def unseen(self, new_tokens: Mapping[str, int]) -> list[Problem]:
        """New tokens that stand nowhere in what is trained on, so that nothing is learnt about them."""
        store = self._prepared.train
        missing = [token for token, number in new_tokens.items() if not (store.tokens == number).any()]
        what = "new tokens stand in no training document"
        todo = "Use them in the data (special ones are written by a chat template only), or leave them out."
        noted = Noted(len(missing), missing[:_NAMED])
        return [self._noted("new_token_unseen", noted, what, todo, refused=True, total=len(new_tokens))]

    def contained(self) -> list[Problem]:
        """Held-out documents that training documents hold in pieces."""
        train, heldout = self._stores
        flags = contained(train, heldout)
        return [
            self._flagged(
                "contained",
                [np.zeros(0, dtype=np.bool_), flags],
                "held-out documents are made of text that training documents hold",
                "Remove them from either part, or hold out whole files: what follows a # in a name is not split apart.",
                refused=float(flags.mean()) > TOLERATED,
                total=len(heldout),
            )
        ]

    def _flagged(
        self,
        name: ProblemName,
        flags: Sequence[NDArray[np.bool_]],
        what: str,
        todo: str,
        *,
        refused: bool = True,
        also: Sequence[Noted | None] = (),
        total: int | None = None,
    ) -> Problem:
        """A problem of the documents of both parts that are flagged (d,), and of those noted in them."""
        noted = _together(also)
        names = [store.ids[at] for store, part in zip(self._stores, flags, strict=True) for at in _first(part)]
        return Problem(
            name=name,
            what=what,
            todo=todo,
            count=sum(int(part.sum()) for part in flags) + noted.count,
            total=self._total if total is None else total,
            ids=tuple([*names, *noted.ids][:_NAMED]),
            refused=refused and name not in self._allow,
        )

    def _noted(
        self, name: ProblemName, noted: Noted, what: str, todo: str, *, refused: bool, total: int | None = None
    ) -> Problem:
        """A problem that was noted while the data was prepared."""
        total = self._total if total is None else total
        allowed = name in self._allow
        return Problem(name, what, todo, noted.count, total, tuple(noted.ids), refused and not allowed)


def _first(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.flatnonzero(flags)[:_NAMED]


def _together(noted: Iterable[Noted | None]) -> Noted:
    """What was noted in several parts, as one."""
    whole = Noted()
    for part in noted:
        if part is not None:
            whole = Noted(whole.count + part.count, [*whole.ids, *part.ids][:_NAMED])
    return whole


def _any_above(store: TokenStore, limit: int) -> NDArray[np.bool_]:
    """Which documents (d,) hold a token above `limit`."""
    return np.maximum.reduceat(store.tokens, np.asarray(store.offsets[:-1])) > limit
