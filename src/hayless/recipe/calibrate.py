"""The text that a recipe's methods are calibrated on, as token batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.progress import Progress
from hayless.data.config import DataConfig, Source
from hayless.data.corpus import kind_of_sources, to_measure
from hayless.data.running_text import running_text
from hayless.data.store import store_of
from hayless.model.anatomy import dims_of_model
from hayless.recipe.schema import Calibration
from hayless.recipe.start import Start

_AT_ONCE = 4096
"""Tokens that are run through a model together."""


def calibration(start: Start, model: PreTrainedModel, progress: Progress, say: Callable[[str], None]) -> list[Tensor]:
    """Batches (B, S) of token ids: of the recipe's training documents, or of `calibration.path`. RequestError where
    they have fewer tokens than are asked for."""
    wanted = start.recipe.calibration or Calibration()
    length = min(wanted.sequence_length, dims_of_model(model).max_positions or wanted.sequence_length)
    with tempfile.TemporaryDirectory(prefix="hayless-", ignore_cleanup_errors=True) as folder:
        if wanted.path is not None:
            chosen = to_measure(DataConfig(sources=(Source(path=wanted.path),)), everything=True, progress=progress)
            store = store_of(chosen, start.tokenizer, Path(folder) / "store", progress=progress)
        else:
            data = start.recipe.data
            assert data is not None, "the schema asks for data where nothing else is named"
            store = start.data(kind_of_sources(data)).train
        rows = running_text(store, tokens=wanted.tokens, length=length, seed=wanted.seed)
    of = wanted.path or "the training documents"
    say(f"Calibrating on {rows.numel():,} tokens of {of}, in {len(rows):,} rows of {length:,} (seed {wanted.seed}).")
    return list(rows.split(max(1, _AT_ONCE // length)))
