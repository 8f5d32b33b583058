"""Outliers in the inputs of linear layers: how many columns hold a magnitude of at least a threshold, and for whom.

LLM.int8() multiplies such columns in 16 bits (Dettmers et al. 2022, arXiv:2208.07339, section 4: they are few, and most
tokens and layers of large models have them). Counted are inputs as modules get them, document by document, without
padding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core import drawing
from hayless.core.errors import NotSupported
from hayless.core.ledger import Layout
from hayless.core.progress import Progress, no_progress
from hayless.core.roles import BLOCK_LINEARS
from hayless.data.config import DataConfig
from hayless.data.corpus import to_measure
from hayless.data.store import store_of
from hayless.measure.memory import enough_memory
from hayless.measure.quality import window_size
from hayless.measure.settings import MeasureSettings
from hayless.model.anatomy import Anatomy, Site
from hayless.model.load import check_tokenizer, load_model, load_tokenizer

THRESHOLD = 6.0
"""The paper's."""


@dataclass(frozen=True, slots=True)
class InputOutliers:
    """The input of one module over all text: `width` columns, `columns` of them with an outlier anywhere and
    `columns_a_window` on average in what is read at once; `tokens_with` of the tokens have one; `largest` magnitude."""

    module: str
    role: str
    layer: int
    width: int
    columns: int
    columns_a_window: float
    tokens_with: int
    largest: float


@dataclass(frozen=True, slots=True)
class Outliers:
    """What the inputs of all linear modules in blocks hold. `tokens_with` counts tokens with an outlier in any of them;
    `context` tokens are read at once; `skipped` are stacks of experts, whose inputs are made inside a module."""

    threshold: float
    context: int
    tokens: int
    tokens_with: int
    modules: tuple[InputOutliers, ...]
    skipped: tuple[str, ...]

    @property
    def layers(self) -> int:
        """Layers that were looked at."""
        return len({found.layer for found in self.modules})

    @property
    def layers_with(self) -> int:
        """Layers with an outlier in the input of any module."""
        return len({found.layer for found in self.modules if found.columns})


def inspect_outliers(
    source: str,
    data: DataConfig,
    settings: MeasureSettings,
    *,
    threshold: float = THRESHOLD,
    device: str = "cpu",
    dtype: str | None = None,
    progress: Progress = no_progress,
) -> Outliers:
    """`find_outliers` of the model `source` (a folder, an adapter's folder or a hub id) on all documents of `data`, as
    many as `settings.heldout_tokens` allow. Raises what reading, loading and counting raise."""
    chosen = to_measure(data, everything=True, progress=progress)
    words = load_tokenizer(source)
    with (
        enough_memory("Use a smaller context, or another dtype."),
        # Windows keeps files that are mapped to memory.
        tempfile.TemporaryDirectory(prefix="hayless-", ignore_cleanup_errors=True) as folder,
    ):
        model = load_model(source, dtype=dtype, device=device)
        check_tokenizer(model, words)
        context, _ = window_size(model, settings.context, None)
        store = store_of(chosen, words, Path(folder) / "store", progress=progress)
        begin = [] if store.begin is None else [store.begin]
        documents = [
            torch.cat([torch.tensor(begin, dtype=torch.int64), torch.from_numpy(stored.tokens).long()])
            for stored in store.sample(settings.heldout_tokens)
        ]
        return find_outliers(model, documents, context=context, threshold=threshold, progress=progress)


def find_outliers(
    model: PreTrainedModel,
    documents: Sequence[Tensor],
    *,
    context: int,
    threshold: float = THRESHOLD,
    progress: Progress = no_progress,
) -> Outliers:
    """Run `model` on documents (tokens,), in windows of `context` tokens that do not overlap, and count outliers.

    NotSupported for a model that is no decoder, and where no block has a linear module.
    """
    anatomy = Anatomy.of(model)
    if anatomy.dims.family in ("bert", "t5"):
        raise NotSupported(f"Outliers are counted in decoders, and this is a {anatomy.dims.model_type} model.")
    sites = [site for site in anatomy.weights(BLOCK_LINEARS) if site.layer is not None]
    seen = [_Seen(site) for site in sites if site.row.layout is not Layout.EXPERTS]
    skipped = tuple(site.name for site in sites if site.row.layout is Layout.EXPERTS)
    windows = [window for document in documents for window in document.split(context)]
    device = model.get_input_embeddings().weight.device
    with_any = 0
    with torch.no_grad(), _watched(model, seen, threshold), _evaluating(model):
        for number, window in enumerate(windows):
            progress("outliers", number, len(windows))
            model(input_ids=window[None].to(device), use_cache=False)
            with_any += int(torch.stack([each.tokens for each in seen]).any(dim=0).sum())
            for each in seen:
                each.next_window()
    progress("outliers", len(windows), len(windows))
    tokens = sum(map(len, windows))
    return Outliers(threshold, context, tokens, with_any, tuple(each.found() for each in seen), skipped)


class _Seen:
    """What one module was given so far."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.tokens = torch.zeros(0, dtype=torch.bool)
        self._columns = torch.zeros(site.row.in_features, dtype=torch.bool)
        self._counts: list[int] = []
        self._with, self._largest = 0, 0.0

    def add(self, x: Tensor, threshold: float) -> None:
        """Look at an input (1, tokens, columns)."""
        size = x.detach().reshape(-1, x.shape[-1]).abs()
        out = size >= threshold
        columns = out.any(dim=0).cpu()
        self.tokens = out.any(dim=1).cpu()
        self._columns |= columns
        self._counts.append(int(columns.sum()))
        self._with += int(self.tokens.sum())
        self._largest = max(self._largest, float(size.max()))

    def next_window(self) -> None:
        """Forget which tokens of the last window had outliers."""
        self.tokens = torch.zeros(0, dtype=torch.bool)

    def found(self) -> InputOutliers:
        """The figures."""
        assert self.site.layer is not None
        return InputOutliers(
            module=self.site.module_path,
            role=self.site.row.role.value,
            layer=self.site.layer,
            width=len(self._columns),
            columns=int(self._columns.sum()),
            columns_a_window=sum(self._counts) / max(1, len(self._counts)),
            tokens_with=self._with,
            largest=self._largest,
        )


@contextmanager
def _watched(model: nn.Module, seen: Sequence[_Seen], threshold: float) -> Iterator[None]:
    handles = [each.site.module(model).register_forward_pre_hook(_giving(each, threshold)) for each in seen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _giving(each: _Seen, threshold: float) -> Callable[[nn.Module, Any], None]:
    return lambda module, inputs: each.add(inputs[0], threshold)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def draw(found: Outliers, form: drawing.Form) -> bytes:
    """Columns with outliers, and the share of tokens with one, over the layers; a line for each kind of input."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with matplotlib.rc_context(drawing.STYLE):
        figure = Figure(figsize=(6.4, 5.6), facecolor="white", layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for number, (names, rows) in enumerate(inputs_of(found).items()):
            style = drawing.line(number)
            x = [row.layer for row in rows]
            above.plot(x, [row.columns for row in rows], label=names, **style)
            below.plot(x, [row.tokens_with / max(1, found.tokens) for row in rows], **style)
        for axes in (above, below):
            drawing.plain(axes)
            axes.grid(axis="y", color=drawing.RULE, linewidth=0.5)
            axes.set_ylim(bottom=0)
        # One column and hundreds are both worth seeing, and so is none.
        above.set_yscale("symlog", linthresh=1)
        above.set_ylim(0, 2 * max((row.columns for row in found.modules), default=1) + 1)
        above.yaxis.set_major_formatter("{x:g}")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.yaxis.set_major_formatter(PercentFormatter(1))
        above.set_ylabel("columns with outliers")
        below.set_ylabel("tokens with one")
        below.set_xlabel("layer")
        above.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0))
        figure.suptitle(
            f"Magnitudes of {found.threshold:g} and more in the inputs of linear layers, {found.tokens:,} tokens",
            x=0.02, ha="left", fontsize=10,
        )  # fmt: skip
        return drawing.save(figure, form)


def inputs_of(found: Outliers) -> dict[str, list[InputOutliers]]:
    """Modules over the layers, those that are given the same input as one: `q, k, v`."""
    by_role: dict[str, list[InputOutliers]] = {}
    for row in found.modules:
        by_role.setdefault(row.role, []).append(row)
    joined: dict[tuple[Any, ...], list[str]] = {}
    for role, rows in by_role.items():
        joined.setdefault(tuple((r.layer, r.width, r.columns, r.tokens_with, r.largest) for r in rows), []).append(role)
    return {", ".join(roles): by_role[roles[0]] for roles in joined.values()}
