"""What a tensor of a language model is for: the vocabulary shared by predictions, loaded models and methods."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """The job of a module. A fused projection has a role of its own; `parts` of an anatomy split it."""

    Q = "q"
    K = "k"
    V = "v"
    QKV = "qkv"
    O = "o"
    CROSS_Q = "cross_q"
    CROSS_K = "cross_k"
    CROSS_V = "cross_v"
    CROSS_O = "cross_o"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    GATE_UP = "gate_up"
    ROUTER = "router"
    EMBEDDING = "embedding"
    POSITION = "position"
    TOKEN_TYPE = "token_type"
    PROJECT_IN = "project_in"
    PROJECT_OUT = "project_out"
    HEAD = "head"
    HEAD_TRANSFORM = "head_transform"
    NORM = "norm"
    ADAPTER = "adapter"


ATTENTION = frozenset({Role.Q, Role.K, Role.V, Role.QKV, Role.O})
CROSS_ATTENTION = frozenset({Role.CROSS_Q, Role.CROSS_K, Role.CROSS_V, Role.CROSS_O})
FEED_FORWARD = frozenset({Role.GATE, Role.UP, Role.DOWN, Role.GATE_UP})
BLOCK_LINEARS = ATTENTION | CROSS_ATTENTION | FEED_FORWARD
"""The weight matrices inside blocks: what a method touches unless the user says otherwise."""
