"""New tokens of a tokenizer: what a user can ask for, and giving them to it. No torch.

The tokenizer is that of the `tokenizers` library, which is what transformers' has inside (`backend_tokenizer`), so that
a prediction gives the tokens the same numbers without loading transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from hayless.core.errors import bad_value
from hayless.core.options import Options

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def _real(text: str) -> str:
    if not text.strip():
        raise ValueError("a token must hold something else than white space")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no character") from None
    return text


Text = Annotated[str, AfterValidator(_real)]


class NewTokens(Options):
    """Tokens to add to a tokenizer, in this order: the plain ones, then the special ones."""

    tokens: tuple[Text, ...] = Field((), description="Texts that become one token each, wherever they stand.")
    special: tuple[Text, ...] = Field(
        (),
        description="Tokens that only a chat template writes: texts that spell one out are read as plain text, and"
        " decoded text is without them.",
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if not self.all:
            raise ValueError("name at least one token, in tokens or in special")
        twice = next((token for token in self.all if self.all.count(token) > 1), None)
        if twice is not None:
            where = "in tokens and in special" if twice in self.tokens and twice in self.special else "twice"
            raise ValueError(f"{twice!r} is named {where}; a token is new once")
        return self

    @property
    def all(self) -> tuple[str, ...]:
        """Every token, in the order in which they get their numbers."""
        return (*self.tokens, *self.special)


@dataclass(frozen=True, slots=True)
class Added:
    """Tokens that a tokenizer has got, in order; their numbers are `first` to `end` − 1. `pieces` are the tokens that
    each one's text was cut into before."""

    tokens: tuple[str, ...]
    first: int
    pieces: tuple[tuple[int, ...], ...]

    @property
    def end(self) -> int:
        """One past the number of the last."""
        return self.first + len(self.tokens)

    @property
    def numbers(self) -> dict[str, int]:
        """Token → number."""
        return {token: number for number, token in enumerate(self.tokens, self.first)}


def extend(tokenizer: Tokenizer, wanted: NewTokens, *, names: tuple[str, str] = ("tokens", "special")) -> Added:
    """Add tokens to a tokenizer, in place; `names` are what the user calls the fields of `wanted`.

    RequestError where it knows one of them already (then none is added).
    """
    from tokenizers import AddedToken

    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    pieces = []
    for token in wanted.all:
        cut = tokenizer.encode(token, add_special_tokens=False).ids
        alone = cut[0] if len(cut) == 1 and _spells(tokenizer, cut[0], token) else None
        known = vocabulary.get(token, alone)
        if known is not None:
            kind = "special token" if token in special else "token"
            raise bad_value(
                names[token in wanted.special],
                token,
                allowed=f"texts that are no token yet; this one is {kind} {known:,} of the tokenizer",
                hint="Leave it out: it needs no new row.",
            )
        pieces.append(tuple(cut))
    for texts, mark in ((wanted.tokens, False), (wanted.special, True)):
        tokenizer.add_tokens([AddedToken(text, special=mark, normalized=False) for text in texts])
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    return Added(wanted.all, numbers[wanted.all[0]], tuple(pieces))


def _spells(tokenizer: Tokenizer, number: int, text: str) -> bool:
    """Whether a token stands for `text` and nothing else; the unknown token does not."""
    return tokenizer.decode([number], skip_special_tokens=False) == text
