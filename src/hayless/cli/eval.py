"""`hayless eval`: how good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hayless.cli.inputs import Builtin, picture_form, sources
from hayless.cli.output import Device, Dtype, Json, Model, emit, err, table

if TYPE_CHECKING:
    from hayless.core.drawing import Form
    from hayless.data.config import DataConfig
    from hayless.measure.evaluate import Evaluation
    from hayless.measure.interval import Interval
    from hayless.measure.quality import Quality
    from hayless.measure.reward import Ranking


def evaluate(
    model: str = Model,
    data: list[str] = typer.Option(None, "--data", help="A file, a folder or a quoted pattern; may be repeated."),
    format: str = typer.Option(
        "auto", help="How to read it (text, jsonl, alpaca, preference, ...); auto looks at the content."
    ),
    builtin: str = Builtin,
    heldout_only: bool = typer.Option(
        False, "--heldout-only/--all", help="Only what a recipe with this data holds out, or every document."
    ),
    heldout_share: float = typer.Option(None, help="The share that the recipe holds out; 0.05 if not given."),
    tokens: str = typer.Option("64k", help="Tokens looked at, at most; long documents are cut where not all fit."),
    context: int = typer.Option(None, help="Tokens of context; the model's own limit if not given."),
    stride: int = typer.Option(None, help="Tokens between windows; half the context if not given."),
    batch_size: int = typer.Option(8, help="Windows (or pairs) computed at once; does not change the result."),
    tokenizer: str = typer.Option(None, help="Folder or hub id of the tokenizer; the model's own if not given."),
    documents: str = typer.Option("", help="Write the figures of each document here, for paired comparisons."),
    picture: Path = typer.Option(None, "--out", help="A picture of how sure and how right it is: .png or .svg."),
    device: str = Device,
    dtype: str = Dtype,
    json: bool = Json,
) -> None:
    """Measure a model's quality on your documents.

    A language model gets loss, bits per byte and perplexity, and on outputs of examples the share of tokens that it
    would have chosen; a reward model the share of preference pairs that it ranks as people did. The last two come with
    how well the model knows when it is right. All have 95% intervals.
    """
    from hayless.core import atomic
    from hayless.core.errors import RequestError
    from hayless.core.options import checked
    from hayless.measure.evaluate import evaluate as measured
    from hayless.measure.settings import MeasureSettings
    from hayless.recipe.progress import shown

    if heldout_share is not None and not heldout_only:
        raise RequestError(f"--heldout-share {heldout_share} is for --heldout-only.", hint="Give both, or neither.")
    documents_of = _data(data or [], builtin, format, heldout_share)
    settings = checked(
        MeasureSettings,
        {"heldout_tokens": tokens, "context": context, "stride": stride, "batch_size": batch_size},
        {"heldout_tokens": "--tokens", "context": "--context", "stride": "--stride", "batch_size": "--batch-size"},
    )
    target, form = _target(documents, "--documents"), picture_form(picture)
    drawn = _target(str(picture or ""), "--out")
    with shown(err) as progress:
        found = measured(
            model,
            documents_of,
            settings,
            everything=not heldout_only,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            judging=drawn is not None,
            progress=progress,
        )
    if drawn is not None:
        atomic.write_bytes(drawn, _drawn(found, form))
    if target is not None:
        atomic.write_json(target, _documents(found))
    if json:
        emit({"model": model, **_document(found)})
    else:
        _show(model, found)
        if target is not None:
            err.print(f"Figures of each document are in {target}.", soft_wrap=True)
        if drawn is not None:
            err.print(f"{drawn} written", markup=False, soft_wrap=True)


def _data(paths: list[str], builtin: str, format: str, share: float | None) -> DataConfig:
    from hayless.core.options import checked
    from hayless.data.config import DataConfig

    found = sources(paths, builtin, format, option="--data")
    held_out = {} if share is None else {"heldout": share}
    return checked(DataConfig, {"sources": found, **held_out}, {"heldout": "--heldout-share"})


def _target(path: str, option: str) -> Path | None:
    """Where something is written; a place that cannot be is refused before the work, not after it."""
    from hayless.core.errors import RequestError

    if not path:
        return None
    target = Path(path).expanduser()
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise RequestError(f"{option} {path} cannot be written.", hint="Give a file in a folder that exists.")
    return target


def _drawn(found: Evaluation, form: Form) -> bytes:
    from hayless.measure.calibration import draw

    calibration = found.found.calibration
    assert calibration is not None, "a picture was asked for, so it was judged"
    return draw(calibration, "pairs" if found.kind == "preference" else "tokens", form)


def _documents(found: Evaluation) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from hayless.measure.quality import Quality

    if isinstance(found.found, Quality):
        return [row.model_dump() for row in found.found.documents]
    return [asdict(pair) for pair in found.found.pairs]


def _document(found: Evaluation) -> dict[str, Any]:
    return {
        "data": found.data.split("\n"),
        "kind": found.kind,
        "device": found.device,
        "dtype": found.dtype,
        **_figures(found.found),
        "domains": {name: _figures(part) for name, part in found.domains.items()},
    }


def _figures(found: Quality | Ranking) -> dict[str, Any]:
    from hayless.measure.quality import Quality

    if not isinstance(found, Quality):
        return {
            "pairs": len(found.pairs),
            "pairwise_accuracy": found.accuracy.model_dump(),
            "calibration": found.calibration.model_dump(),
            "brier_score": found.brier.model_dump(),
            "preference_loss_nats_per_pair": found.loss.model_dump(),
        }
    perplexity, accuracy, calibration = found.perplexity, found.token_accuracy, found.calibration
    return {
        "context_tokens": found.context,
        "stride_tokens": found.stride,
        "documents": len(found.documents),
        "documents_too_short": found.too_short,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "bits_per_byte": found.bits_per_byte.model_dump(),
        "loss_nats_per_token": found.loss.model_dump(),
        "perplexity": perplexity.model_dump() if perplexity else None,
        "token_accuracy": accuracy.model_dump() if accuracy else None,
        "calibration": calibration.model_dump() if calibration else None,
    }


def _show(model: str, found: Evaluation) -> None:
    about = [("model", f"{model} ({found.dtype} on {found.device})")]
    about += [("data" if number == 0 else "", line) for number, line in enumerate(found.data.split("\n"))]
    table(["", ""], [*about, *_counts(found.found)])
    table(["", "", "95% interval"], _rows(found.found))
    if found.domains:
        titles, rows = _by_domain(found.domains)
        table(titles, rows, right=len(titles) - 1)


def _counts(found: Quality | Ranking) -> list[tuple[str, str]]:
    from hayless.core.units import format_bytes
    from hayless.measure.quality import Quality

    if not isinstance(found, Quality):
        return [("measured", f"{len(found.pairs):,} pairs"), ("calibration", found.calibration.note)]
    count = len(found.documents)
    size = f"{count:,} document{'s' * (count > 1)}, {found.tokens:,} tokens, {format_bytes(found.bytes)}"
    rows = [("measured", size), ("windows", f"context {found.context:,} tokens, stride {found.stride:,}")]
    if found.too_short:
        rows.append(("left out", f"{found.too_short:,} documents without a token to predict"))
    if found.calibration:
        rows.append(("calibration", found.calibration.note))
    return rows


def _rows(found: Quality | Ranking) -> list[tuple[str, str, str]]:
    from hayless.measure.quality import Quality

    if not isinstance(found, Quality):
        return [
            ("pairwise accuracy", *_written(found.accuracy)),
            ("calibration error", *_written(found.calibration.error)),
            ("Brier score", *_written(found.brier)),
            ("loss (nats per pair)", *_written(found.loss)),
        ]
    rows = [
        ("bits per byte", *_written(found.bits_per_byte)),
        ("loss (nats per token)", *_written(found.loss)),
        ("perplexity", *_written(found.perplexity)),
    ]
    if found.token_accuracy and found.calibration:
        rows.append(("token accuracy", *_written(found.token_accuracy)))
        rows.append(("calibration error", *_written(found.calibration.error)))
    return rows


def _by_domain(domains: dict[str, Quality | Ranking]) -> tuple[list[str], list[list[str]]]:
    from hayless.measure.quality import Quality

    titles = ["domain", "pairs", "pairwise accuracy", "95% interval"]
    rows = []
    for name, part in domains.items():
        if isinstance(part, Quality):
            titles = ["domain", "documents", "tokens", "bits per byte", "95% interval", "loss", "perplexity"]
            bits, interval = _written(part.bits_per_byte)
            loss, perplexity = _written(part.loss)[0], _written(part.perplexity)[0]
            rows.append([name, f"{len(part.documents):,}", f"{part.tokens:,}", bits, interval, loss, perplexity])
        else:
            rows.append([name, f"{len(part.pairs):,}", *_written(part.accuracy)])
    return titles, rows


def _written(figure: Interval | None) -> tuple[str, str]:
    """A figure and its interval as people write them."""
    from hayless.recipe.figures import number

    if figure is None:
        return "too large for a number", ""
    if figure.low is None or figure.high is None:
        return number(figure.value), "none: a single one"
    return number(figure.value), f"{number(figure.low)} to {number(figure.high)}"
