"""Storage types by the names torch and Hugging Face use, without importing torch."""

from __future__ import annotations

from hayless.core.errors import unknown

BITS = {
    "float64": 64,
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
}

SAFETENSORS = {
    "float64": "F64",
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def item_bytes(dtype: str) -> int:
    """Bytes of one element of `dtype`. Raises RequestError for a name that is not a storage type."""
    if dtype not in BITS:
        raise unknown("dtype", dtype, BITS)
    return BITS[dtype] // 8
