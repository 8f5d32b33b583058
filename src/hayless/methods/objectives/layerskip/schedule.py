"""How much each layer's loss counts and how often each layer is dropped, as the paper writes it. No torch.

Elhoushi et al., LayerSkip, 2024, arXiv:2404.16710, section 4.1. Layers l and updates t count from 0; the model has L
layers and training T updates.

    dropped with            p(l, t) = S(t) · D(l) · p_max,   D(l) = e^(l·ln2/(L−1)) − 1
                            S(t) = 1, or e^(t·ln2/(T−1)) − 1 for models that are trained from nothing
    loss                    Σ_l ẽ(t, l) · CE(head(x_l+1)),   ẽ(t, l) = C(t, l)·e(l) / Σ_i C(t, i)·e(i)
                            e(l) = e_scale · Σ_{i≤l} i,  of the last layer  L − 1 + e_scale · Σ_{i≤L−2} i
    even (not the paper's)  e(l) = e_scale, of the first layer 0 unless it is an exit, of the last 1
    rotational, R           C(t, l) = 1 where l ≡ t (mod R)
    gradual                 C(t, l) = 1 where l ≥ L − 1 − ⌊2·L·t / T⌋
    exits E (not the paper's)  C(t, l) = 0 unless l + 1 ∈ E, and p(l, t) = 0 where l < min E

The last layer always has its loss.
"""

from __future__ import annotations

import math

from hayless.methods.objectives.layerskip.config import LayerSkipConfig


def dropped(config: LayerSkipConfig, layers: int, step: int, steps: int) -> list[float]:
    """p(l, t) of each layer, for update `step` of `steps`, counted from 0."""
    share = _rising(step, steps) if config.dropout_curriculum == "exponential" else 1.0
    first = min(config.exits, default=0)
    return [share * _rising(layer, layers) * config.dropout * (layer >= first) for layer in range(layers)]


def shares(config: LayerSkipConfig, layers: int, step: int, steps: int) -> list[float]:
    """ẽ(t, l) of each layer, for update `step` of `steps`, counted from 0. They sum to 1."""
    last = layers - 1
    if config.weights == "even":
        weights = [config.early_loss * (layer > 0 or 1 in config.exits) for layer in range(last)]
        of_last = 1.0
    else:
        weights = [config.early_loss * _sum_to(layer) for layer in range(last)]
        of_last = last + config.early_loss * _sum_to(last - 1) if last else 1.0
    weights = [weight * _has_loss(config, layers, layer, step, steps) for layer, weight in enumerate(weights)]
    weights.append(of_last)
    return [weight / sum(weights) for weight in weights]


def _has_loss(config: LayerSkipConfig, layers: int, layer: int, step: int, steps: int) -> bool:
    if config.exits and layer + 1 not in config.exits:
        return False
    if config.curriculum == "rotational":
        return layer % config.every == step % config.every
    return config.curriculum == "none" or layer >= layers - 1 - 2 * layers * step // steps


def _sum_to(layer: int) -> int:
    return layer * (layer + 1) // 2


def _rising(place: int, places: int) -> float:
    """From 0 at the first place to 1 at the last, exponentially."""
    return math.exp(place * math.log(2) / (places - 1)) - 1 if places > 1 else 0.0
