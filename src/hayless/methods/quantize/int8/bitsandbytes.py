"""bitsandbytes' folders of 8-bit weights, both ways. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hayless.core.errors import NotSupported
from hayless.core.files import WeightFiles
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.methods.common.bitsandbytes import is_about, written
from hayless.methods.common.foreign import targets_that_are
from hayless.methods.quantize.int8.config import Int8Config

_SCALE = ".SCB"


def write(configs: Sequence[MethodConfig], ledger: Ledger) -> dict[str, Any]:
    """The `quantization_config`, as transformers writes it."""
    config = next(config for config in configs if isinstance(config, Int8Config))
    return written(ledger, 8, threshold=config.threshold)


def read(found: Mapping[str, Any], files: WeightFiles, ledger: Ledger) -> Int8Config | None:
    """Our config for a folder of 8-bit weights; None for one of 4-bit weights.

    NotSupported for fields that are not known, for weights that are not in 8 bits (training of bitsandbytes' keeps them
    in 16), for a role that is packed in some layers only, and for packed modules that the family does not have as one.
    """
    if not is_about(found, 8):
        return None
    packed = [name.removesuffix(_SCALE) for name in files.names if name.endswith(_SCALE)]
    if not packed:
        raise NotSupported("bitsandbytes is to hold weights in 8 bits, and none of this folder's are.")
    targets = targets_that_are("bitsandbytes", packed, ledger)
    threshold = found.get("llm_int8_threshold", Int8Config().threshold)
    return Int8Config.model_validate({"targets": targets, "threshold": threshold})
