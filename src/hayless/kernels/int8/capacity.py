"""How much room the product of many tokens has for outlying columns. No torch."""

from __future__ import annotations

FEW = 16
"""Tokens up to which one launch quantizes them all, and outlying columns stay where they are."""

_SHARE = 16
_STEP = 32


def capacity_of(tokens: int, width: int) -> int:
    """How many outlying columns of `width` are laid side by side: one in 16, in steps of 32; none for few tokens."""
    return 0 if tokens <= FEW else -(-width // (_STEP * _SHARE)) * _STEP
