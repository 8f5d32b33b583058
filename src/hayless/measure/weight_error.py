"""What a method does to the values of weights: value − changed value, tensor by tensor."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core import drawing
from hayless.core.errors import NotSupported, RequestError
from hayless.core.method import Aspect, MethodConfig, Need
from hayless.core.progress import Progress, no_progress
from hayless.core.registry import method_of
from hayless.data.config import DataConfig
from hayless.data.corpus import to_measure
from hayless.data.running_text import running_text
from hayless.data.store import store_of
from hayless.measure.memory import enough_memory
from hayless.model.anatomy import Anatomy, Site, dims_of_model
from hayless.model.load import check_tokenizer, load_model, load_tokenizer, task_of
from hayless.model.transform import Context, apply

_ROW = 1024
"""Tokens of a row of calibration text, at most."""


@dataclass(frozen=True, slots=True)
class WeightError:
    """Of the errors e = value − changed value of one tensor (of a stack of experts: all of them): their mean, root mean
    square and largest magnitude; `value_rms` is the values' own. `layer` is None outside the blocks."""

    name: str
    role: str
    layer: int | None
    elements: int
    mean: float
    rms: float
    largest: float
    value_rms: float

    @property
    def relative(self) -> float:
        """√(Σ e² / Σ value²)."""
        return self.rms / self.value_rms if self.value_rms else 0.0


def inspect_errors(
    source: str,
    configs: Sequence[MethodConfig],
    data: DataConfig | None,
    tokens: int,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    progress: Progress = no_progress,
) -> list[WeightError]:
    """`weight_errors` of the model `source` (a folder, an adapter's folder or a hub id). Methods that are calibrated
    see `tokens` tokens of `data`, in rows of at most 1024; RequestError where they do and there is no data."""
    with enough_memory("The weights exist twice while they are compared; use a machine with more memory."):
        model = load_model(source, device=device, dtype=dtype, task=task_of(source))
        calibrated = [config.method for config in configs if Need.CALIBRATION in method_of(config).needed(config)]
        text: list[Tensor] = []
        if calibrated:
            if data is None:
                raise RequestError(f"{calibrated[0]} is calibrated on text.", hint="Give --data, or --builtin stdlib.")
            text = _text(model, source, data, tokens, progress)
        return weight_errors(model, configs, Context(calibration=text, progress=progress))


def _text(model: PreTrainedModel, source: str, data: DataConfig, tokens: int, progress: Progress) -> list[Tensor]:
    chosen = to_measure(data, everything=True, progress=progress)
    words = load_tokenizer(source)
    check_tokenizer(model, words)
    length = min(_ROW, tokens, dims_of_model(model).max_positions or _ROW)
    with tempfile.TemporaryDirectory(prefix="hayless-", ignore_cleanup_errors=True) as folder:
        store = store_of(chosen, words, Path(folder) / "store", progress=progress)
        return list(running_text(store, tokens=tokens, length=length, seed=0).split(1))


def weight_errors(
    model: PreTrainedModel, configs: Sequence[MethodConfig], context: Context | None = None
) -> list[WeightError]:
    """Apply transforms to `model` in place, and compare the weights whose values or storage they claim.

    Those weights exist twice meanwhile, the first time on the CPU. NotSupported where nothing of the kind is claimed.
    Raises what `apply` raises.
    """
    roles = {
        role
        for config in configs
        for claim in method_of(config).claims(config)
        if claim.aspect in (Aspect.STORAGE, Aspect.VALUES)
        for role in claim.roles
    }
    if not roles:
        names = ", ".join(config.method for config in configs) or "nothing"
        raise NotSupported(f"{names} changes no values of weights.", hint="Name a method that packs or prunes weights.")
    sites = [site for site in Anatomy.of(model).sites if site.row.role in roles and len(site.row.shape) > 1]
    before = [site.weight(model).detach().to("cpu", copy=True) for site in sites]
    apply(model, configs, context)
    return [_error(site, value, site.weight(model).detach().cpu()) for site, value in zip(sites, before, strict=True)]


def together(errors: Sequence[WeightError], name: str, layer: int | None = None) -> WeightError:
    """Several tensors as one."""
    count = sum(error.elements for error in errors)

    def mean(values: Sequence[float]) -> float:
        return sum(error.elements * value for error, value in zip(errors, values, strict=True)) / max(1, count)

    return WeightError(
        name=name,
        role="",
        layer=layer,
        elements=count,
        mean=mean([error.mean for error in errors]),
        rms=mean([error.rms**2 for error in errors]) ** 0.5,
        largest=max((error.largest for error in errors), default=0.0),
        value_rms=mean([error.value_rms**2 for error in errors]) ** 0.5,
    )


def _error(site: Site, value: Tensor, changed: Tensor) -> WeightError:
    value = value.float()
    error = value - changed.float()
    count = max(1, error.numel())
    return WeightError(
        name=site.name,
        role=site.row.role.value,
        layer=site.layer,
        elements=error.numel(),
        mean=float(error.sum(dtype=torch.float64)) / count,
        rms=float(torch.linalg.vector_norm(error, dtype=torch.float64)) / count**0.5,
        largest=float(error.abs().max()) if error.numel() else 0.0,
        value_rms=float(torch.linalg.vector_norm(value, dtype=torch.float64)) / count**0.5,
    )


def draw(errors: Sequence[WeightError], title: str, form: drawing.Form) -> bytes:
    """The relative error over the layers, a line for each role; weights outside the blocks as points at the left."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with matplotlib.rc_context(drawing.STYLE):
        figure = Figure(figsize=(6.4, 3.8), facecolor="white", layout="constrained")
        axes: Any = figure.subplots()
        for number, role in enumerate(dict.fromkeys(error.role for error in errors)):
            rows = [error for error in errors if error.role == role]
            x = [-1 if row.layer is None else row.layer for row in rows]
            axes.plot(x, [row.relative for row in rows], label=role, **drawing.line(number))
        drawing.plain(axes)
        axes.grid(axis="y", color=drawing.RULE, linewidth=0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylabel("error, of the weights' root mean square")
        axes.set_xlabel("layer")
        axes.legend(frameon=False, fontsize=8, ncols=8, loc="lower left", bbox_to_anchor=(0, 1.0))
        figure.suptitle(title, x=0.02, ha="left", fontsize=10)
        return drawing.save(figure, form)
