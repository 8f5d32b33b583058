"""What each token of a text stands for, as text that a person can read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token; joined, they are the text that was tokenized.

    A token that holds a part of a character only is written in bytes, such as `\\xf0\\x9f`. Special tokens and words of
    a vocabulary without marks (WordPiece) are written as the vocabulary spells them.
    """
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    level_of_bytes = _byte_level(tokenizer)
    spelt = tokenizer.convert_ids_to_tokens(list(ids))
    found = []
    for number, piece in zip(ids, spelt, strict=True):
        if number in added:
            found.append(added[number])
        elif piece is None:
            found.append(f"[{number}]")
        elif level_of_bytes and all(letter in _bytes_of_letters() for letter in piece):
            found.append(_shown(bytes(_bytes_of_letters()[letter] for letter in piece)))
        elif one := _BYTE.fullmatch(piece):
            found.append(_shown(bytes([int(one[1], 16)])))
        else:
            found.append(piece.replace("▁", " "))
    return found


def _shown(content: bytes) -> str:
    return content.decode("utf-8", "backslashreplace")


def _byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the vocabulary writes each byte as a letter of its own (GPT-2's way)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    return "ByteLevel" in json.dumps(decoder)


@cache
def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's alphabet: bytes that are printable stand for themselves, the others are letters from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
