"""The rows of virtual tokens: what `prefix` and `prompt` make of a ledger, and PEFT's fields of both. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hayless.core.dims import ModelDims
from hayless.core.errors import NotSupported
from hayless.core.forward import VIRTUAL
from hayless.core.ledger import Layout, Ledger, Row, Stored
from hayless.core.method import Aspect, Claim, MethodConfig
from hayless.core.roles import ATTENTION, Role
from hayless.methods.common.sites import adapter_row, refuse_second

EMBEDDING = f"{VIRTUAL}.embedding"
"""The module of the trained table."""
PEFT_NAME = "prompt_embeddings"
"""What PEFT's files call what is trained."""


def claims(config: MethodConfig) -> tuple[Claim, ...]:
    """Every block attends to the virtual tokens, and only they are trained."""
    return (Claim(Aspect.BRANCH, frozenset({*ATTENTION, Role.EMBEDDING})),)


def add_rows(ledger: Ledger, method: str, rows: tuple[Row, ...]) -> Ledger:
    """The ledger with `rows`, which alone are trained. NotSupported for models that virtual tokens do not serve."""
    refuse_second(ledger, method)
    check(ledger.dims, method)
    return ledger.rewrite(method, lambda row: replace(row, trainable=False), rows)


def table_row(method: str, count: int, width: int, disk_width: int) -> Row:
    """The trained table (count, width), in PEFT's file as wide as it says."""
    row = adapter_row(method, EMBEDDING, "weight", (count, width), Layout.TABLE, (), PEFT_NAME)
    return replace(row, disk=(replace(row.disk[0], shape=(count, disk_width)),))


def unwritten_row(method: str, module: str, parameter: str, shape: tuple[int, ...]) -> Row:
    """A trained tensor that no file holds, and that no token of the text is multiplied by."""
    held = Stored(f"{module}.{parameter}", shape, "float32", file="")
    return Row(
        Role.ADAPTER, module, parameter, shape, "float32", Layout.TABLE, held=(held,), disk=(held,), method=method
    )


def check(dims: ModelDims, method: str) -> None:
    """NotSupported where attention is of a kind that virtual tokens cannot join as PEFT has them join."""
    reason = ""
    if dims.family in ("bert", "t5"):
        reason = f"{dims.model_type} is no decoder"
    elif dims.model_type == "gemma2":
        reason = "it caps its scores, which no fused attention does"
    if reason:
        raise unserved(method, reason)


def unserved(method: str, reason: str) -> NotSupported:
    """The refusal of a model."""
    return NotSupported(
        f"{method} puts virtual tokens before a text, and this model cannot have them: {reason}.",
        hint="lora serves every model.",
    )


def peft_fields(dims: ModelDims, count: int, token_dim: int, heads: int, task: str | None, base: str) -> dict[str, Any]:
    """The fields that PEFT's configs of prefixes and prompts share."""
    return {
        "task_type": task,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "num_virtual_tokens": count,
        "token_dim": token_dim,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": dims.num_layers,
    }


KNOWN = {
    "num_virtual_tokens",
    "token_dim",
    "num_attention_heads",
    "num_layers",
    "encoder_hidden_size",
    "prefix_projection",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
    "init_weights",
}
"""PEFT's fields that are looked at, or that change nothing about what was trained."""


def harmless(name: str, value: Any) -> bool:
    """Whether a field says what holds here anyway."""
    return name == "num_transformer_submodules" and value == 1
