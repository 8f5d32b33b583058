"""A model as numbers: what a prediction needs to know, and nothing that needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hayless.core.dtypes import item_bytes
from hayless.core.errors import RequestError, bad_value


@dataclass(frozen=True, slots=True)
class ModelDims:
    """The shape of a transformer, read from a Hugging Face config by `hayless.core.families.dims_of`.

    Widths count elements, not bytes. `num_experts` is 0 for a dense model; `encoder_layers` is 0 for a model with one
    stack; `labels` is 0 for a language model and counts the outputs of a `score` head otherwise (1 for a reward model).
    Two models with equal dims have equal ledgers.
    """

    family: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    tied_embeddings: bool
    dtype: str = "float32"
    gated: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms_per_block: int = 2
    final_norm: bool = True
    embedding_size: int = 0
    encoder_layers: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    token_types: int = 0
    relative_buckets: int = 0
    activation: str = "silu"
    norm_first: bool = True
    parallel_residual: bool = False
    rotary_share: float = 1.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    labels: int = 0

    def __post_init__(self) -> None:
        positive = (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
        )
        for field in positive:
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise bad_value(field, value, allowed="a whole number of at least 1")
        for field in (
            "max_positions",
            "encoder_layers",
            "num_experts",
            "experts_per_token",
            "embedding_size",
            "labels",
        ):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise bad_value(field, value, allowed="a whole number of at least 0")
        if self.num_heads % self.num_kv_heads:
            raise bad_value(
                "num_key_value_heads",
                self.num_kv_heads,
                allowed=f"a divisor of num_attention_heads ({self.num_heads})",
            )
        if self.num_experts and not 0 < self.experts_per_token <= self.num_experts:
            raise bad_value(
                "experts_per_token", self.experts_per_token, allowed=f"1 to num_experts ({self.num_experts})"
            )
        item_bytes(self.dtype)

    @property
    def q_width(self) -> int:
        """Elements of one token's queries over all heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of one token's keys (or values) over all key-value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def embedding_width(self) -> int:
        """Width of one token's embedding; smaller than `hidden_size` only in OPT-350M."""
        return self.embedding_size or self.hidden_size

    def with_dtype(self, dtype: str) -> ModelDims:
        """The same shape with weights stored as `dtype`."""
        return replace(self, dtype=dtype)


def head_width(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    """`head_dim` if the config names it, else hidden_size / num_attention_heads, which must divide."""
    given = config.get("head_dim")
    if given is not None:
        return int(given)
    if not heads or hidden % heads:
        raise bad_value("num_attention_heads", heads, allowed=f"a divisor of hidden_size ({hidden})")
    return hidden // heads


def share(config: Mapping[str, Any], field: str, default: float) -> float:
    """A share from 0 to 1 from a config, `default` where it is silent; RequestError for anything else."""
    value = config.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise bad_value(field, value, allowed="a number from 0 to 1")
    return float(value)


def required(config: Mapping[str, Any], field: str) -> int:
    """A whole number from a config, or a RequestError that names the missing or wrong field."""
    value = config.get(field)
    if value is None:
        raise RequestError(
            f"The config of this {config.get('model_type', 'unnamed')} model has no {field}.",
            hint="Complete config.json; a checkpoint without it cannot be read safely.",
        )
    if not isinstance(value, int) or isinstance(value, bool):
        raise bad_value(field, value, allowed="a whole number")
    return value
