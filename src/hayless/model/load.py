"""Loading ordinary Hugging Face models strictly: what is missing, unexpected or misshapen refuses the load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.families import family_of, read_config


def load_model(
    source: str | Path, *, dtype: str | None = None, device: str = "cpu", task: Literal["causal", "reward"] = "causal"
) -> PreTrainedModel:
    """The model in the folder `source`, in evaluation mode on `device`, its weights as stored or cast to `dtype`.

    Remote code is never run and pickled weights are never read. Raises RequestError for a folder that is no model,
    FileDamaged for one whose tensors are not all there, NotSupported for packed models and adapters.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise RequestError(f"There is no folder {folder}.", hint="Hub ids are not supported yet: download it first.")
    if (folder / "adapter_config.json").is_file():
        raise NotSupported(f"{folder} is an adapter; adapters cannot be loaded yet.")
    config = read_config(folder)
    if config.get("model_type") == "hayless":
        raise NotSupported(f"{folder} is a packed model; packed models cannot be loaded yet.")
    family_of(str(config.get("model_type")))
    kind: Any = AutoModelForCausalLM if task == "causal" else AutoModelForSequenceClassification
    try:
        model, found = kind.from_pretrained(
            folder,
            dtype=getattr(torch, dtype) if dtype else "auto",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise FileDamaged(f"{folder} cannot be loaded: {error}.", hint="Copy it again from its source.") from error
    wrong = {reason: sorted(map(str, names)) for reason, names in found.items() if names}
    if wrong:
        shown = "; ".join(f"{reason}: {', '.join(names[:5])}" for reason, names in wrong.items())
        raise FileDamaged(f"The tensors in {folder} are not those of its config ({shown}).")
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded
