"""Finding the threshold that a risk allows, and fitting classifier and heads, from text. See predict.py for the bound.

A window is a prompt, which goes through all layers, and as many tokens behind it that are read one by one with exits:
what decoding does, but that each next token is the text's own. Shapes: n windows, s tokens of a window, p of a prompt,
v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.decode.readers import Reader
from hayless.methods.decoding.early_exit.confidence import Classifier, Tail, learn_classifier
from hayless.methods.decoding.early_exit.config import EarlyExitConfig
from hayless.methods.decoding.early_exit.heads import Heads
from hayless.methods.decoding.early_exit.predict import first_failing, p_value, smallest_risk
from hayless.model.anatomy import Anatomy, dims_of_model
from hayless.train.blocks import Forward, wrapped

PROMPT, TOKENS = 32, 32
"""Tokens of a window that are its prompt, and those that are read with exits."""
_TOGETHER = 64
_SAMPLES = 16_384


@dataclass(frozen=True, slots=True)
class Calibration:
    """The smallest `threshold` down to which every one kept to `risk`, with what was `tried`: threshold, mean risk over
    `windows` windows, and p-value."""

    threshold: float
    risk: float
    delta: float
    windows: int
    tried: tuple[tuple[float, float, float], ...]

    def __str__(self) -> str:
        if self.threshold == 1:
            least = smallest_risk(self.windows, self.delta)
            return (
                f"no threshold keeps to a risk of {self.risk:g} by {self.windows} windows, so no token leaves early"
                f" (a risk below {least:.2g} needs more of them)"
            )
        mean = next(risk for threshold, risk, _ in self.tried if threshold == self.threshold)
        return (
            f"threshold {self.threshold:.4g}: {mean:.2%} of tokens differ from the whole model's on {self.windows}"
            f" windows, and at most {self.risk:.2%} in general, but for a chance of {self.delta:g}"
        )


def windows_of(tokens: list[list[int]], most: int) -> Tensor:
    """Windows (n, s) of texts, apart from each other and spread over all. RequestError where there are fewer than 8."""
    size = PROMPT + TOKENS
    found = [text[at : at + size] for text in tokens for at in range(0, len(text) - size + 1, size)]
    if len(found) < 8:
        raise RequestError(
            f"early_exit.text has {len(found)} windows of {size} tokens; at least 8 are needed.", hint="Give more text."
        )
    count = min(most, len(found))
    return torch.tensor([found[place * len(found) // count] for place in range(count)])


def read_forced(reader: Reader, windows_ns: Tensor, prompt: int = PROMPT) -> Iterator[Tensor]:
    """Logits (n, v) after each token behind the prompts, which the reader holds before them."""
    reader.join(windows_ns[:, :prompt].tolist())
    for place in range(prompt, windows_ns.shape[1]):
        yield reader.read(windows_ns[:, place : place + 1])[:, -1]


def calibrate(
    config: EarlyExitConfig,
    windows_ns: Tensor,
    whole: Callable[[], Reader],
    leaving_at: Callable[[float], Reader],
) -> Calibration:
    """The threshold for `config.risk`: from readers without exits, and with exits at a threshold."""
    assert config.risk is not None
    chunks = windows_ns.split(_TOGETHER)

    def likeliest(made: Callable[[], Reader]) -> Tensor:
        return torch.cat([torch.stack([x.argmax(-1) for x in read_forced(made(), chunk)], 1) for chunk in chunks])

    wanted = likeliest(whole)

    def risk_at(threshold: float) -> float:
        return float((likeliest(lambda: leaving_at(threshold)) != wanted).double().mean(1).mean())

    count = len(windows_ns)
    tried = [
        (threshold, mean, p_value(mean, count, config.risk))
        for threshold, mean in first_failing(risk_at, count, config.risk, config.delta)
    ]
    kept = [threshold for threshold, _, p in tried if p <= config.delta]
    return Calibration(min(kept, default=1.0), config.risk, config.delta, count, tuple(tried))


@dataclass(frozen=True, slots=True)
class Samples:
    """States (n, h) behind numbers of layers and behind the last, and the likeliest tokens (n,) there."""

    states: dict[int, Tensor]
    last_nh: Tensor
    said_n: Tensor


@torch.inference_mode()
def sample(model: PreTrainedModel, exits: range, windows_ns: Tensor) -> Samples:
    """Samples from windows that go through all layers."""
    layers = [*exits, dims_of_model(model).num_layers]
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    said = []
    for chunk in windows_ns[: max(1, _SAMPLES // windows_ns.shape[1] // len(layers))].split(8):
        states, logits = _states(model, chunk, layers)
        said.append(logits.argmax(-1).flatten())
        for layer in layers:
            found[layer].append(states[layer])
    with torch.inference_mode(False):
        joined = {layer: torch.cat(each).clone() for layer, each in found.items()}
        return Samples({layer: joined[layer] for layer in exits}, joined[layers[-1]], torch.cat(said).clone())


@torch.inference_mode()
def classifier_from(samples: Samples, tail: Tail, heads: Heads) -> Classifier:
    """A classifier that tells, behind early layers, whether the head says what it says behind the last."""
    shown = [heads(layer, x_nh) for layer, x_nh in samples.states.items()]
    agrees = [tail.logits(each).argmax(-1) == samples.said_n for each in shown]
    normed = [tail.normed(each) for each in shown]
    with torch.inference_mode(False):
        return learn_classifier([each.clone() for each in normed], [each.clone() for each in agrees])


def _states(model: PreTrainedModel, ids_ns: Tensor, layers: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
    """States (n·s, h) behind numbers of layers, and the logits (n, s, v)."""
    blocks: list[nn.Module] = list(Anatomy.of(model).blocks)
    numbers = {block: number for number, block in enumerate(blocks, 1)}
    states: dict[int, Tensor] = {}

    def kept(block: nn.Module, forward: Forward) -> Forward:
        def run(*inputs: Any, **options: Any) -> Tensor:
            out: Tensor = forward(*inputs, **options)
            states[numbers[block]] = out.flatten(0, 1)
            return out

        return run

    with wrapped([blocks[layer - 1] for layer in layers], kept):
        return states, model(input_ids=ids_ns.to(model.device), use_cache=False).logits
