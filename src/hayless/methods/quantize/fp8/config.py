"""What a user can set about 8-bit floats."""

from __future__ import annotations

from typing import Literal

from hayless.methods.common.packed_rows import PackingConfig


class Fp8Config(PackingConfig):
    """Weights become 8-bit floats (e4m3) with a scale a channel; inputs too when they are multiplied, with one a token.

    Faster than 16 bits only where tensor cores multiply e4m3: NVIDIA GPUs of compute capability 8.9 and later.
    """

    method: Literal["fp8"] = "fp8"
