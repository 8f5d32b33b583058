"""Running a model on a batch, so that no document sees another."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.data.batches import Batch, attention_mask


def model_inputs(model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    """What to call `model` (or its base model) with for a batch on its device.

    Rows of one document need no mask: they are padded on the right, where a causal model does not look, and attention
    then takes its fast path. Packed rows get an explicit block-causal mask, since position ids alone leak between
    documents in some families. NotSupported for packed rows longer than a model's sliding window.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.packed:
        window, length = getattr(model.config, "sliding_window", None), batch.input_ids.shape[1]
        if window is not None and length > window:
            raise NotSupported(
                f"Packed sequences of {length} tokens exceed this model's sliding window of {window}.",
                hint=f"Train with sequence_length {window} or less.",
            )
        inputs["attention_mask"] = attention_mask(batch)
        inputs["position_ids"] = batch.position_ids
    return inputs


def upcast(tensor: Tensor) -> Tensor:
    """16-bit tensors as float32, in which losses are computed; wider ones as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
