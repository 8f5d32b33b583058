"""Folders of packed integers of compressed-tensors (`pack-quantized`), GPTQ and AutoAWQ, both ways. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hayless.core.errors import NotSupported
from hayless.core.files import WeightFiles
from hayless.core.ledger import Ledger
from hayless.core.method import Ecosystem, MethodConfig
from hayless.core.registry import configure
from hayless.methods.common.foreign import check_fields, linears_left, targets_that_are
from hayless.methods.common.integers import ECOSYSTEMS, IntegerConfig
from hayless.methods.common.targets import roles_of
from hayless.methods.quantize.uniform.config import UniformConfig

_LAYOUT = "pack-quantized"
_FIELDS = {"quant_method", "format", "quantization_status", "config_groups", "ignore", "version"}
_EMPTY = {"kv_cache_scheme", "global_compression_ratio", "sparsity_config", "transform_config", "moe_sparsity_config"}
_WEIGHT_FIELDS = {"num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "observer", "observer_kwargs"}
_WEIGHT_EMPTY = {"actorder", "block_structure", "scale_dtype", "zp_dtype"}
_GPTQ_FIELDS = {"bits", "group_size", "desc_act", "sym", "checkpoint_format", "quant_method", "lm_head", "pack_dtype"}
_HOW_IT_WAS_MADE = {"damp_percent", "damp_auto_increment", "true_sequential", "static_groups", "dataset", "tokenizer"}
_HOW_IT_WAS_MADE |= {"model_name_or_path", "model_file_base_name", "meta", "batch_size", "model_seqlen", "backend"}
_AWQ_FIELDS = {"bits", "group_size", "zero_point", "version", "quant_method", "modules_to_not_convert"}


def write_compressed(configs: Sequence[MethodConfig], ledger: Ledger) -> dict[str, Any]:
    """compressed-tensors' `quantization_config`; with several settings each group names its modules."""
    integers = [config for config in configs if isinstance(config, IntegerConfig)]
    groups = {}
    for number, config in enumerate(integers):
        weights = {
            "num_bits": config.bits,
            "type": "int",
            "symmetric": config.symmetric,
            "strategy": "channel" if config.group_size == "row" else "group",
            "group_size": None if config.group_size == "row" else config.group_size,
            "dynamic": False,
        }
        modules = _modules(config, ledger) if len(integers) > 1 else ["Linear"]
        groups[f"group_{number}"] = {"targets": modules, "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": _LAYOUT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": linears_left(ledger),
    }


def read_compressed(found: Mapping[str, Any], files: WeightFiles, ledger: Ledger) -> MethodConfig | None:
    """Our config for a `pack-quantized` folder; None for another layout of compressed-tensors.

    NotSupported for fields that are not known, more than one group of modules, activations that are quantized too, and
    scales in another arrangement than rows or groups of inputs.
    """
    if found.get("format") != _LAYOUT:
        return None
    library = "compressed-tensors"
    check_fields(library, found, _FIELDS | _EMPTY)
    groups = list((found.get("config_groups") or {}).values())
    if len(groups) != 1 or _set(found, _EMPTY) or _set(groups[0], {"input_activations", "output_activations"}):
        raise NotSupported(f"Only weights of {library} in one group of modules are read; it has {dict(found)!s:.300}.")
    weights = groups[0].get("weights") or {}
    check_fields(library, weights, _WEIGHT_FIELDS | _WEIGHT_EMPTY)
    if weights.get("type") != "int" or weights.get("dynamic") or _set(weights, _WEIGHT_EMPTY - {"actorder"}):
        raise NotSupported(f"Weights of {library} are {weights}; here they can be integers with static scales.")
    if weights.get("actorder") not in (None, False, "static", "weight"):
        raise NotSupported(f"actorder of {library} is {weights['actorder']!r}: groups must be neighbouring inputs.")
    strategy = weights.get("strategy")
    if strategy not in ("group", "channel"):
        raise NotSupported(f"strategy of {library} is {strategy!r}; group and channel are read.")
    size = "row" if strategy == "channel" else weights.get("group_size")
    packed = _packed(files, ".weight_packed")
    return _config(library, weights.get("num_bits"), size, weights.get("symmetric", True), packed, ledger)


def write_gptq(configs: Sequence[MethodConfig], ledger: Ledger) -> dict[str, Any]:
    """GPTQ's `quantization_config`."""
    config = _only(configs)
    return {
        "quant_method": "gptq",
        "bits": config.bits,
        "group_size": -1 if config.group_size == "row" else config.group_size,
        "desc_act": False,
        "sym": config.symmetric,
        "checkpoint_format": "gptq" if config.disk_layout == "gptq_v1" else "gptq_v2",
        "lm_head": False,
    }


def read_gptq(found: Mapping[str, Any], files: WeightFiles, ledger: Ledger) -> MethodConfig:
    """Our config for a GPTQ folder, of the first or second version. NotSupported for what is not known."""
    check_fields("gptq", found, _GPTQ_FIELDS | _HOW_IT_WAS_MADE)
    version = found.get("checkpoint_format", "gptq")
    if version not in ("gptq", "gptq_v2") or found.get("pack_dtype", "int32") != "int32" or found.get("lm_head"):
        raise NotSupported(f"gptq files of checkpoint_format {version!r} with {dict(found)!s:.200} are not read.")
    size = "row" if found.get("group_size") == -1 else found.get("group_size")
    packed = _packed(files, ".qweight")
    return _config("gptq", found.get("bits"), size, found.get("sym", True), packed, ledger, first=version == "gptq")


def write_awq(configs: Sequence[MethodConfig], ledger: Ledger) -> dict[str, Any]:
    """AutoAWQ's `quantization_config`, for its GEMM."""
    config = _only(configs)
    if config.symmetric:
        raise NotSupported(
            "AutoAWQ's files have zeros.", hint="Say symmetric=false, or disk_layout=compressed-tensors."
        )
    return {
        "quant_method": "awq",
        "bits": config.bits,
        "group_size": -1 if config.group_size == "row" else config.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": linears_left(ledger),
    }


def read_awq(found: Mapping[str, Any], files: WeightFiles, ledger: Ledger) -> MethodConfig:
    """Our config for an AutoAWQ folder of its GEMM. NotSupported for what is not known."""
    check_fields("awq", found, _AWQ_FIELDS)
    if str(found.get("version", "gemm")).lower() != "gemm" or not found.get("zero_point", True):
        raise NotSupported(f"awq files of version {found.get('version')!r}, zero_point {found.get('zero_point')}.")
    size = "row" if found.get("group_size") == -1 else found.get("group_size")
    return _config("awq", found.get("bits"), size, False, _packed(files, ".qweight"), ledger)


def _config(
    library: str, bits: Any, size: Any, symmetric: Any, packed: Collection[str], ledger: Ledger, *, first: bool = False
) -> MethodConfig:
    allowed = (4,) if library == "awq" else (4, 8)
    if bits not in allowed or size not in (32, 64, 128, "row"):
        raise NotSupported(
            f"{library} has {bits} bits in groups of {size}; {' or '.join(map(str, allowed))} bits are read, in groups"
            " of 32, 64 or 128 inputs or whole rows."
        )
    layout = "gptq_v1" if first else library
    targets = targets_that_are(library, packed, ledger)
    return configure(
        "uniform", bits=bits, group_size=size, symmetric=bool(symmetric), disk_layout=layout, targets=targets
    )


def _packed(files: WeightFiles, suffix: str) -> list[str]:
    return [name.removesuffix(suffix) for name in files.names if name.endswith(suffix)]


def _modules(config: IntegerConfig, ledger: Ledger) -> list[str]:
    """The paths of the modules that a method packed, in the layout of the folder."""
    rows = [row for row in ledger.rows if row.ecosystem and row.role in roles_of(config.targets)]
    return [row.module.replace("{layer}", str(layer)) for row in rows for layer in row.layers or (0,)]


def _only(configs: Sequence[MethodConfig]) -> UniformConfig:
    found = [config for config in configs if isinstance(config, UniformConfig)]
    if len(found) != 1:
        raise NotSupported(
            "Such a folder has one setting for all its weights.", hint="Say disk_layout=compressed-tensors."
        )
    return found[0]


def _set(found: Mapping[str, Any], names: Collection[str]) -> list[str]:
    return [name for name in names if found.get(name)]


LAYOUTS = (
    Ecosystem(ECOSYSTEMS["compressed-tensors"], "compressed-tensors", write_compressed, read_compressed),
    Ecosystem(ECOSYSTEMS["gptq"], "gptq", write_gptq, read_gptq),
    Ecosystem(ECOSYSTEMS["awq"], "awq", write_awq, read_awq),
)
"""What the card of `uniform` says: gptq and awq write the same files."""
