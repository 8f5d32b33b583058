"""What transformers' Auto classes are given for `model_type: "hayless"`; imported by `hayless.model.registration`.

torch comes in when a model is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.configuration_utils import PretrainedConfig

from hayless.core.errors import NotSupported

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hayless.model.build import Task

MODEL_TYPE = "hayless"
_TRANSFORMERS_OWN = {"_from_auto", "adapter_kwargs", "trust_remote_code", "local_files_only", "use_safetensors"}
"""Options that change nothing here: nothing else is ever done."""
_OF_THE_FILE = {"model_type", "base_config", "hayless", "transformers_version", "architectures", "dtype"}


class HaylessConfig(PretrainedConfig):
    """config.json of a packed folder: the true config under `base_config`, the record of methods under `hayless`."""

    model_type = MODEL_TYPE

    def __init__(
        self, base_config: dict[str, Any] | None = None, hayless: dict[str, Any] | None = None, **others: Any
    ) -> None:
        super().__init__(**others)
        self.base_config = base_config
        self.hayless = hayless


class PackedModel:
    """Stands for the model of a packed folder: loading it gives the true model, an object of its own class."""

    config_class = HaylessConfig
    task: Task = "causal"

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        config: HaylessConfig,
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        revision: str | None = None,
        **others: Any,
    ) -> PreTrainedModel:
        """What `hayless.model.load.load_model` gives for a folder or hub id, in the dtype it was stored in unless one
        is named. NotSupported for options of transformers that would be ignored.
        """
        from hayless.model.load import load_model

        unknown = sorted(name for name, value in others.items() if name not in _TRANSFORMERS_OWN and value is not None)
        if unknown:
            raise NotSupported(f"{', '.join(unknown)} cannot be set while a packed model is loaded.")
        wanted = dtype or torch_dtype or config.dtype
        model = load_model(
            source,
            dtype=None if wanted == "auto" else wanted,
            device=_device(device_map),
            revision=None if Path(source).is_dir() else revision,
            task=cls.task,
        )
        if config._attn_implementation is not None:
            model.set_attn_implementation(config._attn_implementation)
        # Fields that every config has can be given to from_pretrained: output_hidden_states=True.
        for name, value in config.to_diff_dict().items():
            if name not in _OF_THE_FILE:
                setattr(model.config, name, value)
        return model


class PackedRewardModel(PackedModel):
    """The same for models that score a sequence."""

    task = "reward"


def register_config() -> None:
    """Let AutoConfig read packed folders."""
    from transformers.models.auto.configuration_auto import AutoConfig

    AutoConfig.register(MODEL_TYPE, HaylessConfig, exist_ok=True)


def register_models() -> None:
    """Let the Auto classes load packed folders."""
    from transformers.models.auto import modeling_auto as tables

    for auto in (tables.AutoModelForCausalLM, tables.AutoModelForMaskedLM, tables.AutoModelForSeq2SeqLM):
        auto.register(HaylessConfig, PackedModel, exist_ok=True)
    tables.AutoModelForSequenceClassification.register(HaylessConfig, PackedRewardModel, exist_ok=True)


def _device(device_map: Any) -> Any:
    """The one device of transformers' `device_map`."""
    place = device_map.get("") if isinstance(device_map, dict) and len(device_map) == 1 else device_map
    if isinstance(place, dict) or place in ("auto", "balanced", "balanced_low_0", "sequential"):
        raise NotSupported(
            f"device_map = {device_map!r} would spread the model over devices.", hint='Name one: device_map="cuda:0".'
        )
    return "cpu" if place is None else place
