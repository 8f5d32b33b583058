"""Speculation with the trained asset as the target, and a test of what was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.methods.decoding.speculative.config import SpeculativeConfig
from hayless.methods.decoding.speculative.part import Speculative
from tests import asset, tiny


def p_value(tokens: Tensor, expected: Tensor) -> float:
    """Of Pearson's chi-square test that tokens were drawn from `expected`; tokens of probability 0 must not occur."""
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    possible = expected > 0
    if counts[~possible].sum() > 0:
        return 0.0
    wanted = expected[possible].double() / expected.double().sum() * len(tokens)
    chi = ((counts[possible] - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor((len(wanted) - 1) / 2).double(), chi / 2))


def asset_prompts() -> list[list[int]]:
    return [document.tokens[:n].tolist() for document, n in zip(asset.text(), (40, 9, 1, 90), strict=False)]


def random_draft(vocabulary: int = 2048) -> torch.nn.Module:
    """A tiny random model with the asset's vocabulary."""
    config = tiny.config("llama")
    config.vocab_size, config.max_position_embeddings = vocabulary, 256
    torch.manual_seed(0)
    return tiny.transformers.LlamaForCausalLM(config).eval()


def drafting(model: Any, draft: str = "lookup", tokens: int = 3, given: Any = None, **options: Any) -> Speculative:
    config = SpeculativeConfig(draft=draft, tokens=tokens, preflight=False, **options)
    return Speculative(config, model, asset.tokenizer(), draft=given)


def made_by(engine: Engine, prompts: Sequence[list[int]], options: SamplingOptions) -> list[tuple[int, ...]]:
    return [found.tokens for found in engine.generate(prompts, options)]
