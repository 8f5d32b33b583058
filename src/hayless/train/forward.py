"""Running a model on a batch, so that no document sees another."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported
from hayless.data.batches import Batch, attention_mask
from hayless.model.attention import VARLEN, WITH_VIRTUAL

_MASKED = ("sdpa", "eager", WITH_VIRTUAL)


def model_inputs(model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    """What to call `model` (or its base model) with for a batch on its device.

    Rows of one document need no mask: they are padded on the right, where a causal model does not look, and attention
    then takes its fast path. Packed rows get an explicit block-causal mask, since position ids alone leak between
    documents in some families; under varlen attention they get their documents' cumulative lengths instead.
    NotSupported for packed rows under an attention that takes neither.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if all(len(names) == 1 for names in batch.documents):
        return inputs
    inputs["position_ids"] = batch.position_ids
    attention = model.config._attn_implementation
    if attention == VARLEN:
        return inputs | _lengths(batch)
    if attention not in _MASKED:
        raise NotSupported(
            f"Packed documents under {attention} attention are not kept apart.",
            hint="Set attn_implementation to sdpa or eager.",
        )
    return {**inputs, "attention_mask": _mask(model, batch)}


def upcast(tensor: Tensor) -> Tensor:
    """16-bit tensors as float32, in which losses are computed; wider ones as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def _lengths(batch: Batch) -> dict[str, Any]:
    """The spans under transformers' own names.

    Without a mask transformers would make one of positions × positions, and wait for the device to see whether rows are
    packed. One that is there already it hands on as it is: this one is empty, so that no attention can take it for one.
    """
    spans = batch.spans
    lengths = {"cu_seq_lens_q": spans.cumulative, "cu_seq_lens_k": spans.cumulative}
    longest = {"max_length_q": spans.longest, "max_length_k": spans.longest}
    return {"attention_mask": batch.segments.new_empty(0, 0, 0, 0), **lengths, **longest}


def _mask(model: PreTrainedModel, batch: Batch) -> Tensor | dict[str, Tensor]:
    """One mask for all layers, or one for each type where only some layers slide."""
    # Eager attention adds its mask to the scores; a boolean one would add 1.
    dtype = model.dtype if model.config._attn_implementation == "eager" else None
    window = getattr(model.config, "sliding_window", None)
    full = attention_mask(batch.segments, dtype)
    if window is None or batch.input_ids.shape[1] <= window:
        return full
    sliding = attention_mask(batch.segments, dtype, window=window)
    kinds = set(getattr(model.config, "layer_types", None) or ["sliding_attention"])
    if len(kinds) == 1:
        return sliding if kinds == {"sliding_attention"} else full
    return {"full_attention": full, "sliding_attention": sliding}
