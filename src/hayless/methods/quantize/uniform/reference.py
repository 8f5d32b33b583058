"""Uniform quantization as it is written: one group of weights, a number at a time, in float32.

Symmetric: s = max|w| / ((2^b − 1)/2), code = round(w/s) within −2^(b−1) … 2^(b−1) − 1. Asymmetric, over a range that
includes 0: s = (max − min)/(2^b − 1), zero = round(−min/s), code = round(w/s + zero) within 0 … 2^b − 1. Halves go to
the even number.
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy import float32

PUBLISHED = {0b01: 1, 0b00: 0, 0b11: -1, 0b10: -2}
"""Two bits in two's complement."""


def symmetric(weights: Sequence[float], bits: int) -> tuple[list[int], float]:
    """Signed codes of one group and its scale."""
    numbers = [float32(weight) for weight in weights]
    scale = max(map(abs, numbers)) / float32((2**bits - 1) / 2)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return [min(max(round(number / scale), low), high) for number in numbers], float(scale)


def asymmetric(weights: Sequence[float], bits: int) -> tuple[list[int], float, int]:
    """Codes from 0 of one group, its scale and the code of zero."""
    numbers = [float32(weight) for weight in weights]
    low, high = min(float32(0), *numbers), max(float32(0), *numbers)
    steps = 2**bits - 1
    scale = (high - low) / float32(steps)
    zero = round(min(max(-low / scale, float32(0)), float32(steps)))
    return [min(max(round(number / scale + float32(zero)), 0), steps) for number in numbers], float(scale), zero
