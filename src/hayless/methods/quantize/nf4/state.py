"""The JSON by which bitsandbytes says what a weight of its is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hayless.methods.quantize.nf4.form import NESTED_BLOCK, BlockFormat


def quant_state(form: BlockFormat, dtype: str, offset: float) -> bytes:
    """That of a weight whose own dtype is `dtype`, `form.state_bytes` long."""
    state: dict[str, Any] = {"quant_type": form.type, "blocksize": form.block_size, "dtype": dtype}
    state["shape"] = [form.rows, form.columns]
    if form.double:
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
    return json.dumps(state).ljust(form.state_bytes(dtype)).encode()


def read_state(content: bytes) -> Mapping[str, Any] | None:
    """What bitsandbytes' JSON says; None for what is no such thing."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
