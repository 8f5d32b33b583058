"""compressed-tensors' folders of 8-bit floats (`float-quantized`, which vLLM reads), both ways. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hayless.core.errors import NotSupported
from hayless.core.files import WeightFiles
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.methods.common.foreign import check_fields, linears_left, targets_that_are
from hayless.methods.quantize.fp8.config import Fp8Config

_LAYOUT = "float-quantized"
_SCALE = ".weight_scale"
_FIELDS = {
    "quant_method",
    "format",
    "quantization_status",
    "config_groups",
    "ignore",
    "kv_cache_scheme",
    "global_compression_ratio",
    "sparsity_config",
    "transform_config",
    "moe_sparsity_config",
    "version",
}
_NUMBERS = {"num_bits": 8, "type": "float", "symmetric": True}
_WEIGHTS = {**_NUMBERS, "strategy": "channel", "dynamic": False}
_INPUTS = {**_NUMBERS, "strategy": "token", "dynamic": True}


def write(configs: Sequence[MethodConfig], ledger: Ledger) -> dict[str, Any]:
    """The `quantization_config`; modules that are not packed are named by their whole paths."""
    return {
        "quant_method": "compressed-tensors",
        "format": _LAYOUT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": _WEIGHTS, "input_activations": _INPUTS}},
        "ignore": linears_left(ledger),
    }


def read(found: Mapping[str, Any], files: WeightFiles, ledger: Ledger) -> Fp8Config | None:
    """Our config for a folder of 8-bit floats; None for another layout of compressed-tensors.

    NotSupported for fields that are not known, for scales that are not those of rows and tokens, for a role that is
    packed in some layers only, and for packed modules that the family does not have as one.
    """
    if found.get("format") != _LAYOUT:
        return None
    check_fields("compressed-tensors", found, _FIELDS)
    groups = list((found.get("config_groups") or {}).values())
    wanted = {"weights": _WEIGHTS, "input_activations": _INPUTS}
    for group in groups:
        for part, numbers in wanted.items():
            said = group.get(part) or {}
            if any(said.get(name) != value for name, value in numbers.items()) or said.get("group_size"):
                raise NotSupported(f"{part} of compressed-tensors are {said}; here they can be {numbers}.")
    others = [name for name in ("kv_cache_scheme", "sparsity_config", "transform_config") if found.get(name)]
    if len(groups) != 1 or groups[0].get("output_activations") or others:
        more = others or ["config_groups"]
        raise NotSupported(f"{', '.join(more)} of compressed-tensors: more than one group of linears is not read here.")
    packed = [name.removesuffix(_SCALE) for name in files.names if name.endswith(_SCALE)]
    return Fp8Config(targets=targets_that_are("compressed-tensors", packed, ledger))
