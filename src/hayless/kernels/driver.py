"""The CUDA driver's own calls, by their names."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def call(name: str, *given: Any) -> None:
    """Call the driver. RuntimeError with its number where it fails."""
    failed = getattr(_driver(), name)(*given)
    if failed:
        raise RuntimeError(f"{name} failed with CUDA error {failed}.")


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")
