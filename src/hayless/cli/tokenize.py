"""`hayless tokenize`: how text becomes tokens, at every level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hayless.cli.inputs import Builtin, Heldout, picture_form, sources
from hayless.cli.output import Json, emit, err, out
from hayless.core.errors import RequestError, bad_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hayless.core.progress import Progress

app = typer.Typer(help="Train tokenizers, compare them, and show where they cut.", no_args_is_help=True)

_SENTENCE = "This is tokenizing"
_LEVELS = ("char", "word", "bpe", "unigram")
_SHADES = ("black on bright_cyan", "black on bright_yellow")


@app.command("train")
def train(
    files: list[str] = typer.Argument(None, help="Files, folders or patterns to train on."),
    level: str = typer.Option("bpe", "--level", help="char, word, bpe or unigram."),
    vocab_size: int = typer.Option(4096, "--vocab-size", help="Entries, special tokens included."),
    target: Path = typer.Option(..., "--out", help="Folder to write, in Hugging Face's layout."),
    builtin: str = Builtin,
    heldout: float = Heldout,
    json: bool = Json,
) -> None:
    """Train a tokenizer on the training part of some text; what is held out tells how good it is."""
    from hayless.data import tokenizer as tokenizers
    from hayless.data.comparison import compare
    from hayless.data.texts import read_texts
    from hayless.recipe.progress import shown

    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise bad_value("--out", str(target), allowed="a folder that does not exist yet, or an empty one")
    with shown(err) as progress:
        texts = read_texts(sources(files or (), builtin), heldout, progress=progress)
        trained = _trained(texts.train, level, vocab_size, progress)
        tokenizers.save(trained, target)
    [row] = compare({level: trained}, texts.heldout, hidden_size=1, body_parameters=1, context=1)
    found = {
        "folder": str(target),
        "level": level,
        "entries": row.entries,
        "bytes_per_token": row.bytes_per_token,
        "unknown_rate": row.unknown_rate,
        "data": texts.description.splitlines(),
    }
    if json:
        emit(found)
        return
    out.print(texts.description, markup=False)
    out.print(
        f"{target}: {row.entries:,} entries; on held-out text {row.bytes_per_token:.2f} bytes a token,"
        f" {row.unknown_rate:.2%} unknown",
        markup=False,
        soft_wrap=True,
    )
    if row.entries < vocab_size:
        out.print(f"The text has no more than {row.entries:,} entries at this level (asked for {vocab_size:,}).")


@app.command("compare")
def compare(
    tokenizers: list[str] = typer.Argument(
        None, help="Folders, hub ids, or char, word:8192, bpe:4096 and so on to train here; all four levels if none."
    ),
    data: list[str] = typer.Option([], "--data", help="Files, folders or patterns; give it more than once."),
    builtin: str = Builtin,
    heldout: float = Heldout,
    context: int = typer.Option(1024, "--context", help="Tokens a model sees at once."),
    hidden_size: int = typer.Option(384, "--hidden-size", help="Width of the model, for the share of embeddings."),
    layers: int = typer.Option(12, "--layers", help="Its blocks, taken as 12 · width² parameters each."),
    tied: bool = typer.Option(True, "--tied/--untied", help="Whether the head is the embedding."),
    sentence: str = typer.Option(_SENTENCE, "--sentence", help="A sentence to cut at every level."),
    target: Path = typer.Option(None, "--out", help="A picture to write: .png or .svg."),
    json: bool = Json,
) -> None:
    """Compare tokenizers on held-out text: bytes a token, unknowns, embeddings, context in bytes, speed."""
    from dataclasses import asdict

    from hayless.core import atomic
    from hayless.data import comparison
    from hayless.data.texts import read_texts
    from hayless.recipe.progress import shown

    form = picture_form(target)
    with shown(err) as progress:
        texts = read_texts(sources(data, builtin), heldout, progress=progress)
        chosen = {
            name: _opened(spec, texts.train, progress) for name, spec in _named(tokenizers or list(_LEVELS)).items()
        }
        rows = comparison.compare(
            chosen,
            texts.heldout,
            hidden_size=hidden_size,
            body_parameters=12 * layers * hidden_size**2,
            context=context,
            tied=tied,
        )
    if target is not None:
        atomic.write_bytes(target, comparison.draw(rows, form))
    cuts = {name: _cut(tokenizer, sentence) for name, tokenizer in chosen.items()}
    if json:
        emit(
            {
                "data": texts.description.splitlines(),
                "context_tokens": context,
                "hidden_size": hidden_size,
                "layers": layers,
                "rows": [asdict(row) | {"sentence": cuts[row.name]} for row in rows],
                "picture": str(target) if target else None,
            }
        )
        return
    out.print(texts.description, markup=False, soft_wrap=True)
    out.print(_table(rows))
    _show_cuts(cuts)
    if target is not None:
        out.print(f"\n{target} written", markup=False)


@app.command("show")
def show(
    text: str = typer.Argument(_SENTENCE, help="What to cut."),
    tokenizers: list[str] = typer.Option(
        [], "--tokenizer", help="A folder or hub id; give it more than once to see them side by side."
    ),
    json: bool = Json,
) -> None:
    """Show where tokenizers cut a text."""
    from hayless.model.load import load_tokenizer

    if not tokenizers:
        raise RequestError("No tokenizer is named.", hint="Give --tokenizer FOLDER (make one with tokenize train).")
    cuts = {name: _cut(load_tokenizer(spec), text) for name, spec in _named(tokenizers).items()}
    if json:
        emit({"text": text, "tokenizers": cuts})
    else:
        _show_cuts(cuts)


def _trained(texts: Sequence[str], level: str, vocab_size: int, progress: Progress) -> PreTrainedTokenizerBase:
    from hayless.data import tokenizer as tokenizers

    progress(f"training at level {level}", 0, 1)
    found = tokenizers.train(texts, level, vocab_size)  # type: ignore[arg-type]  # An unknown level is an error there.
    progress(f"training at level {level}", 1, 1)
    return found


def _opened(spec: str, texts: Sequence[str], progress: Progress) -> PreTrainedTokenizerBase:
    """A tokenizer that is there, or one trained on `texts` where `spec` is a level with or without a size."""
    from hayless.core.units import parse_count
    from hayless.model.load import load_tokenizer

    level, _, size = spec.partition(":")
    if level in _LEVELS and not Path(spec).is_dir():
        return _trained(texts, level, parse_count(size or 4096, spec), progress)
    return load_tokenizer(spec)


def _named(specs: Sequence[str]) -> dict[str, str]:
    """Short names that differ → what was asked for."""
    found: dict[str, str] = {}
    for spec in specs:
        short = Path(spec).name or spec
        found[short if short not in found else spec] = spec
    if len(found) < len(specs):
        raise RequestError("A tokenizer is named twice.", hint="Name each once.")
    return found


def _cut(tokenizer: PreTrainedTokenizerBase, text: str) -> list[dict[str, Any]]:
    from hayless.data.pieces import pieces
    from hayless.data.tokenizer import encode

    [ids] = encode(tokenizer, [text])
    return [{"id": number, "text": piece} for number, piece in zip(ids, pieces(tokenizer, ids), strict=True)]


def _table(rows: Sequence[Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tokenizer", overflow="fold")
    for title in ("entries", "bytes a token", "unknown", "embeddings", "context", "MB/s"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.entries:,}",
            f"{row.bytes_per_token:.2f}",
            f"{row.unknown_rate:.2%}",
            f"{row.embedding_share:.1%}",
            f"{row.context_bytes:,.0f} B",
            f"{row.megabytes_per_second:.1f}",
        )
    return table


def _show_cuts(cuts: dict[str, list[dict[str, Any]]]) -> None:
    from rich.text import Text

    width = max(map(len, cuts))
    for name, cut in cuts.items():
        line = Text(f"{name:<{width}}  {len(cut):>3} tokens  ")
        for at, token in enumerate(cut):
            visible = token["text"].replace("\n", "⏎").replace("\t", "⇥")
            line.append("│" if at else "").append(visible, style=_SHADES[at % 2])
        out.print(line, soft_wrap=True)
