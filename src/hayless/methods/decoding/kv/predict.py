"""What a quantized cache takes: `CacheForm.bytes` says it exactly. No torch."""

from __future__ import annotations

from dataclasses import replace

from hayless.core.cache_form import CacheForm
from hayless.core.cost import DecodeShape
from hayless.core.errors import NotSupported
from hayless.methods.decoding.kv.config import KVConfig


def cache_form(config: KVConfig) -> CacheForm:
    """The form of the cache."""
    return CacheForm(config.bits, config.group_size, config.residual)


def predict_decoding(shape: DecodeShape, config: KVConfig) -> DecodeShape:
    """Decoding with the cache in this form."""
    return replace(shape, cache=cache_form(config))


def check_head(config: KVConfig, head_dim: int) -> None:
    """NotSupported where a head's channels do not fill groups, or codes of one token do not fill bytes."""
    group = cache_form(config).channels(head_dim)
    if head_dim % group:
        raise NotSupported(
            f"kv.group_size = {config.group_size} does not divide the {head_dim} channels of a head.",
            hint=f"Give a divisor of {head_dim}, or {head_dim} and more for one group a head.",
        )
    if head_dim * config.bits % 8:
        raise NotSupported(
            f"kv.bits = {config.bits} does not fill whole bytes with the {head_dim} channels of a head.",
            hint="Use more bits.",
        )
