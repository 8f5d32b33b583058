"""How a model attends while it trains: what the setting `attention` comes to, and varlen attention itself.

Shapes: b rows, s positions, t = b · s, h heads, d a head's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hayless.core.attention import attention_for
from hayless.core.cost import PRECISIONS
from hayless.core.errors import HaylessError, NotSupported, bad_value
from hayless.kernels.varlen import varlen_attention, varlen_attention_reference
from hayless.model.anatomy import dims_of_model
from hayless.model.attention import VARLEN, attending
from hayless.train.settings import TrainSettings

_PLAIN = ("sdpa", "eager")


@contextmanager
def attention(model: PreTrainedModel, settings: TrainSettings, *, packed: bool) -> Iterator[str]:
    """Let `model` attend as `settings.attention` says, while the context is open; yields what that is, in words.

    The model's weights have the dtype they train in. `packed`: rows hold several documents. An attention other than
    transformers' default was put there on purpose, and `auto` leaves it. RequestError and NotSupported where what is
    wanted cannot be had.
    """
    own = model.config._attn_implementation
    chosen, why = _chosen(model, own, settings, packed)
    said = f"Attention: {chosen} ({why})."
    if chosen == own:
        yield said
    elif chosen == "varlen":
        with attending(model, VARLEN, varlen):
            yield said
    else:
        with attending(model, chosen):
            yield said


def varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of documents that lie one after another in the rows (`hayless.kernels.varlen`); as transformers calls
    it, (b, s, h, d). Where the model was called without lengths (samples, rows of one document), it is SDPA's.
    """
    if cu_seq_lens_q is None:
        found: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )[0]
        return found, None
    if options.get("softcap") is not None:
        raise NotSupported("This model caps its scores, which varlen attention does not.", hint="Set attention: eager.")
    q_thd, k_thd, v_thd = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    shared: dict[str, Any] = {"scale": scaling, "window": sliding_window}
    if query.is_cuda:
        out_thd = varlen_attention(q_thd, k_thd, v_thd, cu_seq_lens_q, max_length_q, **shared)
    else:
        out_thd = varlen_attention_reference(q_thd, k_thd, v_thd, cu_seq_lens_q, dropout=dropout, **shared)
    return out_thd.unflatten(0, (query.shape[0], -1)), None


def _chosen(model: PreTrainedModel, own: str, settings: TrainSettings, packed: bool) -> tuple[str, str]:
    wanted = settings.attention
    if own not in _PLAIN and wanted != "auto":
        raise bad_value("attention", wanted, allowed="auto", hint=f"The model has an attention of its own, {own}.")
    if own != "sdpa" and wanted == "auto":
        return own, "the model's own"
    try:
        dims = dims_of_model(model)
    except HaylessError as error:
        if wanted == "varlen":
            raise
        return (own, error.message) if wanted == "auto" else (wanted, "as asked for")
    device = model.device
    return attention_for(
        wanted,
        dims,
        arithmetic=PRECISIONS[settings.precision][1] or dims.dtype,
        device=device.type,
        packed=packed,
        capability=torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else None,
    )
