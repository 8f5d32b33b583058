"""Vectors of texts, by which modules are found: mean states of a language model, the base itself unless one is named,
or what a sentence encoder gives.

Wide states are turned to fewer dimensions by a drawn orthogonal map, which keeps cosines and lets thousands of modules
be searched in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import MissingExtra, RequestError
from hayless.methods.adapters.library.store import Vector

WIDEST = 512
"""Dimensions of a vector at most."""
_TOKENS = 256
"""Of a text, at most so many tokens are looked at."""
_BATCH = 16


class Vectors(Protocol):
    """Turns texts into vectors."""

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        ...

    def one_each(self, texts: Sequence[str]) -> Vector:
        """Vectors (texts, width). RequestError for a text without tokens."""
        ...

    def of(self, texts: Sequence[str]) -> Vector:
        """The vector of a task, of which `texts` are examples."""
        ...


class SentenceEmbedder:
    """Turns texts into vectors by a sentence encoder in a folder, as the library sentence-transformers has them.

    MissingExtra without that library. No pickle is read, and nothing is fetched.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingExtra("sentence-transformers", "sentences", f"The sentence encoder {folder}") from None
        self._encoder: Any = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
        )

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.one_each(["a text"]).shape[1]

    def one_each(self, texts: Sequence[str]) -> Vector:
        """Vectors (texts, width). RequestError for an empty text."""
        for text in texts:
            if not text.strip():
                raise RequestError(f"{text!r} has no words to make a vector of.", hint="Give another text.")
        found: Vector = np.asarray(self._encoder.encode(list(texts), show_progress_bar=False), np.float32)
        return _turned(found, min(WIDEST, found.shape[1]))

    def of(self, texts: Sequence[str]) -> Vector:
        """The vector of a task, of which `texts` are examples."""
        return _mean(self, texts)


@dataclass(frozen=True, slots=True)
class Embedder:
    """Turns texts into vectors by a language model. `layer` counts blocks from the front; −1: behind the last one."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layer: int = -1

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return min(WIDEST, int(self.model.config.hidden_size))

    def one_each(self, texts: Sequence[str]) -> Vector:
        """Vectors (texts, width). RequestError for a text without tokens."""
        return np.concatenate([_turned(states, self.width) for states in self._states(texts)])

    def of(self, texts: Sequence[str]) -> Vector:
        """The vector of a task, of which `texts` are examples."""
        return _mean(self, texts)

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> Iterator[Vector]:
        """Mean states (batch, hidden) of the texts, padding left out."""
        base: Any = self.model.base_model
        for start in range(0, len(texts), _BATCH):
            rows = [self._ids(text) for text in texts[start : start + _BATCH]]
            longest = max(map(len, rows))
            ids = torch.zeros(len(rows), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, : len(row)] = torch.tensor(row)
                mask[place, : len(row)] = 1
            ids, mask = ids.to(self.model.device), mask.to(self.model.device)
            hidden: Tensor = base(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[
                self.layer
            ]
            weight = mask[..., None].float()
            mean: Vector = ((hidden.float() * weight).sum(1) / weight.sum(1)).cpu().numpy()
            yield mean

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, truncation=True, max_length=_TOKENS)["input_ids"]
        if not ids:
            raise RequestError(f"{text!r} has no tokens to make a vector of.", hint="Give another text.")
        return ids


def _mean(made_by: Vectors, texts: Sequence[str]) -> Vector:
    if not texts:
        raise RequestError("A task without examples has no vector.", hint="Give some of its texts.")
    mean: Vector = made_by.one_each(texts).mean(0)
    return mean


def _turned(states: Vector, width: int) -> Vector:
    """States (n, hidden) in `width` dimensions: the same map for every library and machine."""
    hidden = states.shape[1]
    if hidden == width:
        return states
    drawn = np.random.default_rng(0).standard_normal((hidden, width))
    found: Vector = (states @ np.linalg.qr(drawn)[0] * (hidden / width) ** 0.5).astype(np.float32)
    return found
