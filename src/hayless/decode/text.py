"""From tokens to text, as they come.

A token may hold part of a UTF-8 character, and a stop string may span tokens; what is not yet certain is held back.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNDECODED = "\N{REPLACEMENT CHARACTER}"
_CHARACTER_BYTES = 4
_PROMPT_TOKENS = 8


class TextStream:
    """Turns the tokens of one continuation into text pieces that never end inside a UTF-8 character.

    The last tokens of the prompt are decoded along, because many tokenizers drop the space before the first token they
    decode. Special tokens give no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._before = list(prompt[-_PROMPT_TOKENS:])
        self._pending: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; may be empty, or complete several tokens held back before."""
        self._pending.append(token)
        text = self._pending_text()
        open_end = min(len(text) - len(text.rstrip(_UNDECODED)), _CHARACTER_BYTES - 1)
        piece = text[self._given : len(text) - open_end]
        self._given += len(piece)
        if text and not open_end:
            self._before, self._pending, self._given = self._pending, [], 0
        return piece

    def finish(self) -> str:
        """What is still held back: bytes that never became a character, as replacement characters."""
        return self._pending_text()[self._given :]

    def _pending_text(self) -> str:
        before = self._decode(self._before)
        both = self._decode(self._before + self._pending)
        if both.startswith(before):
            return both[len(before) :]
        # Some decoders turn a whole run of bytes into replacement characters once a stray byte follows it.
        return self._decode(self._pending)

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class StopStrings:
    """Passes text on until a stop string appears; holds back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is certain, whether a stop string was completed). The stop string itself is dropped."""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            # The one that ends first, so that the result does not depend on how the text was cut into tokens.
            certain, self._held = self._held[: min(found)[1]], ""
            return certain, True
        certain = self._held[: len(self._held) - self._open_end()]
        self._held = self._held[len(certain) :]
        return certain, False

    def finish(self) -> str:
        """The text still held back, when generation ends for another reason."""
        held, self._held = self._held, ""
        return held

    def _open_end(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        for length in range(min(len(self._held), max(map(len, self._stop), default=1) - 1), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
