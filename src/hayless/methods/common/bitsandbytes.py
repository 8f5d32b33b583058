"""bitsandbytes' `quantization_config`, as transformers writes it, for weights of 4 and of 8 bits. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from hayless.core.ledger import Ledger
from hayless.methods.common.foreign import check_fields, linears_left


def written(
    ledger: Ledger, bits: Literal[4, 8], *, threshold: float = 6.0, type: str = "fp4", double: bool = False
) -> dict[str, Any]:
    """The whole of it; modules that are not packed are named by their whole paths."""
    return {
        "quant_method": "bitsandbytes",
        "_load_in_4bit": bits == 4,
        "_load_in_8bit": bits == 8,
        "load_in_4bit": bits == 4,
        "load_in_8bit": bits == 8,
        "llm_int8_threshold": threshold,
        "llm_int8_skip_modules": linears_left(ledger),
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_compute_dtype": ledger.dims.dtype,
        "bnb_4bit_quant_type": type,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_quant_storage": "uint8",
    }


def is_about(found: Mapping[str, Any], bits: Literal[4, 8]) -> bool:
    """Whether it is about weights of so many bits. NotSupported for fields that are not known.

    Which modules are packed, and how, the tensors say; the rest of the fields is about other bits or devices.
    """
    if not (found.get(f"load_in_{bits}bit") or found.get(f"_load_in_{bits}bit")):
        return False
    check_fields("bitsandbytes", found, _FIELDS)
    return True


_FIELDS = {
    "quant_method",
    "load_in_4bit",
    "load_in_8bit",
    "_load_in_4bit",
    "_load_in_8bit",
    "llm_int8_threshold",
    "llm_int8_skip_modules",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "bnb_4bit_quant_storage",
}
