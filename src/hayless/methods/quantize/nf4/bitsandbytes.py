"""The `quantization_config` of bitsandbytes' 4-bit folders, both ways. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hayless.core.errors import NotSupported
from hayless.core.files import WeightFiles
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.methods.common.bitsandbytes import is_about, written
from hayless.methods.common.foreign import targets_that_are
from hayless.methods.quantize.nf4.config import NF4Config
from hayless.methods.quantize.nf4.form import NESTED_BLOCK
from hayless.methods.quantize.nf4.state import read_state

_STATE = ".weight.quant_state.bitsandbytes__"
_TYPES = ("nf4", "fp4")


def write(configs: Sequence[MethodConfig], ledger: Ledger) -> dict[str, Any]:
    """As transformers writes it."""
    config = next(config for config in configs if isinstance(config, NF4Config))
    return written(ledger, 4, type=config.type, double=config.double)


def read(found: Mapping[str, Any], files: WeightFiles, ledger: Ledger) -> NF4Config | None:
    """Our config for a folder of 4-bit weights; None for one of 8-bit weights.

    NotSupported for fields that are not known, for a role that is packed in some layers only, for packed modules that
    the family does not have as one, and for weights packed in different ways.
    """
    if not is_about(found, 4):
        return None
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
