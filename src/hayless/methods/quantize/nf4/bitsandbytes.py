"""The `quantization_config` of bitsandbytes' 4-bit folders, both ways. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hayless.core.errors import NotSupported
from hayless.core.files import WeightFiles
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.methods.common.foreign import check_fields, linears_left, targets_that_are
from hayless.methods.quantize.nf4.config import NF4Config
from hayless.methods.quantize.nf4.form import NESTED_BLOCK, read_state

_STATE = ".weight.quant_state.bitsandbytes__"
_TYPES = ("nf4", "fp4")
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
"""What transformers writes. Which modules are packed, and how, the tensors say; the rest is about 8 bits or devices."""


def write(configs: Sequence[MethodConfig], ledger: Ledger) -> dict[str, Any]:
    """As transformers writes it; modules that are not packed are named by their whole paths."""
    config = next(config for config in configs if isinstance(config, NF4Config))
    return {
        "quant_method": "bitsandbytes",
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": linears_left(ledger),
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_compute_dtype": ledger.dims.dtype,
        "bnb_4bit_quant_type": config.type,
        "bnb_4bit_use_double_quant": config.double,
        "bnb_4bit_quant_storage": "uint8",
    }


def read(found: Mapping[str, Any], files: WeightFiles, ledger: Ledger) -> NF4Config | None:
    """Our config for a folder of 4-bit weights; None for one of 8-bit weights.

    NotSupported for fields that are not known, for a role that is packed in some layers only, for packed modules that
    the family does not have as one, and for weights packed in different ways.
    """
    if not (found.get("load_in_4bit") or found.get("_load_in_4bit")):
        return None
    check_fields("bitsandbytes", found, _FIELDS)
    packed = {module for name in files.names for module, mark, _ in [name.partition(_STATE)] if mark}
    targets = targets_that_are("bitsandbytes", packed, ledger)
    ways = {_way(name, files) for name in files.names if _STATE in name}
    if len(ways) != 1:
        raise NotSupported(f"The weights are packed in {len(ways)} different ways: {sorted(ways)}.")
    ((kind, block_size, double),) = ways
    return NF4Config.model_validate({"targets": targets, "type": kind, "block_size": block_size, "double": double})


def _way(name: str, files: WeightFiles) -> tuple[str, int, bool]:
    """Type, block size and whether scales are quantized too, of one weight."""
    state = read_state(files.content(name)) or {}
    kind, size, double = state.get("quant_type"), state.get("blocksize"), "nested_blocksize" in state
    if kind not in _TYPES or not isinstance(size, int) or state.get("nested_blocksize", NESTED_BLOCK) != NESTED_BLOCK:
        raise NotSupported(f"{name} is of a kind that is not read here: {state}.")
    return kind, size, double
