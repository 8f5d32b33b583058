"""`hayless data`: what the model is really trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hayless.cli.inputs import Builtin, Heldout, picture_form, sources
from hayless.cli.output import Json, emit, err, out
from hayless.core.errors import RequestError, bad_value

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

    from hayless.data.check import Figures, Problem
    from hayless.data.check_view import Shown, Token
    from hayless.data.config import DataConfig
    from hayless.data.corpus import Kind
    from hayless.model.new_tokens import Added

app = typer.Typer(help="See what a model is really trained on.", no_args_is_help=True)

_LEARNT, _OTHER = ("black on bright_green", "black on green"), ("dim", "dim underline")


@app.callback()
def _data() -> None:
    """Keeps `check` a verb of its own while it is the only one."""


@app.command("check")
def check(
    files: list[str] = typer.Argument(None, help="Files, folders or patterns, in any format that recipes read."),
    model: str = typer.Option("", "--model", help="The model to be trained: its tokenizer, and room for its tokens."),
    tokenizer: str = typer.Option("", "--tokenizer", help="A tokenizer by itself: a folder or hub id."),
    new_token: list[str] = typer.Option([], "--new-token", help="A token to add, as model.new_tokens.tokens does."),
    new_special: list[str] = typer.Option([], "--new-special", help="A special one, as model.new_tokens.special does."),
    objective: str = typer.Option("auto", "--objective", help="auto (what the data is for), lm, sft or reward."),
    sequence_length: int = typer.Option(1024, "--sequence-length", help="Tokens of a row."),
    template: str = typer.Option("plain", "--template", help="plain or chat: how instructions become text."),
    turns: str = typer.Option("all", "--turns", help="all or last: which turns of a chat are learnt."),
    heldout: float = Heldout,
    allow_truncation: bool = typer.Option(False, "--allow-truncation", help="Accept documents that are cut short."),
    allow: list[str] = typer.Option([], "--allow", help="Accept a problem by its name; give it more than once."),
    page: Path = typer.Option(None, "--html", help="A page to write, with every token of three examples."),
    picture: Path = typer.Option(None, "--out", help="A picture of lengths to write: .png or .svg."),
    builtin: str = Builtin,
    json: bool = Json,
) -> None:
    """Look at data as a model would be trained on it, token by token, and refuse what would fail in silence."""
    import tempfile
    from dataclasses import asdict

    from hayless.core import atomic
    from hayless.data import check as checks
    from hayless.data import check_page, check_view
    from hayless.data.store import prepare
    from hayless.recipe.progress import shown

    form = picture_form(picture)
    if sequence_length < 1:
        raise bad_value("--sequence-length", sequence_length, allowed="1 or more")
    allowed = [*allow, *(("truncated", "answer_cut_off") if allow_truncation else ())]
    given = [{**source.model_dump(), "template": template, "turns": turns} for source in sources(files or (), builtin)]
    config = _config({"sources": given, "heldout": heldout, "allow": allowed})
    words, embeddings = _tokenizer(model, tokenizer)
    added = _added(words, new_token, new_special)
    if added is not None and embeddings is not None:
        embeddings = max(embeddings, added.end)
    with tempfile.TemporaryDirectory(prefix="hayless-check-") as folder, shown(err) as progress:
        prepared = prepare(config, words, Path(folder), kind=_kind(objective, config), progress=progress)
        found = checks.problems(
            prepared,
            words,
            sequence_length=sequence_length,
            allow=config.allow,
            embeddings=embeddings,
            new_tokens=added.numbers if added else None,
        )
        figures = checks.figures(prepared, sequence_length=sequence_length)
        examples = check_view.examples(prepared.train, words)
        stores = (prepared.train, prepared.heldout)
        if picture is not None:
            atomic.write_bytes(picture, check_view.draw_lengths(stores, sequence_length, form))
        if page is not None:
            lengths = check_view.draw_lengths(stores, sequence_length, "svg")
            text = check_page.render(
                prepared.description, figures, found, examples, lengths, sequence_length=sequence_length
            )
            atomic.write_text(page, text)
    refused = any(problem.refused for problem in found)
    if json:
        emit(
            {
                "kind": prepared.train.kind,
                "description": prepared.description.splitlines(),
                "sequence_length": sequence_length,
                "figures": asdict(figures) if figures else None,
                "problems": [problem.to_json() for problem in found],
                "refused": refused,
                "examples": [example.to_json() for example in examples],
                "page": str(page) if page else None,
                "picture": str(picture) if picture else None,
            }
        )
    else:
        _show_examples(examples)
        _show_figures(prepared.description, figures, sequence_length)
        _show_problems(found)
        for written in (page, picture):
            if written is not None:
                out.print(f"{written} written", markup=False, soft_wrap=True)
    if refused:
        raise typer.Exit(1)


def _config(values: dict[str, Any]) -> DataConfig:
    from hayless.core.options import checked
    from hayless.data.config import DataConfig

    options = {"heldout": "--heldout"}
    options |= {f"sources.{number}.{name}": f"--{name}" for number in range(9) for name in ("template", "turns")}
    options |= {f"allow.{number}": "--allow" for number in range(99)}
    return checked(DataConfig, values, options)


def _kind(objective: str, config: DataConfig) -> Kind:
    from hayless.data.corpus import kind_of_sources

    kinds: dict[str, Kind] = {"lm": "lm", "sft": "sft", "reward": "preference"}
    if objective == "auto":
        return kind_of_sources(config)
    if objective not in kinds:
        raise bad_value("--objective", objective, allowed=", ".join(["auto", *kinds]))
    return kinds[objective]


def _tokenizer(model: str, tokenizer: str) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The tokenizer that is named, or the model's own; and how many tokens the model, if named, has room for."""
    from hayless.core.families import dims_of
    from hayless.model.load import fetch_config, load_tokenizer

    if not (model or tokenizer):
        raise RequestError("Neither a model nor a tokenizer is named.", hint="Give --model M, or --tokenizer T.")
    embeddings = None
    if model:
        embeddings = dims_of(fetch_config(model)).vocab_size
    return load_tokenizer(tokenizer or model), embeddings


def _added(words: PreTrainedTokenizerBase, tokens: list[str], special: list[str]) -> Added | None:
    """Tokens added to the tokenizer, if any are named."""
    from hayless.core.options import checked
    from hayless.model.new_tokens import NewTokens, extend
    from hayless.model.vocabulary import backend_of

    if not (tokens or special):
        return None
    options = ("--new-token", "--new-special")
    names = {"": " and ".join(options)}
    names |= {f"{name}.{number}": options[name == "special"] for name in ("tokens", "special") for number in range(99)}
    return extend(backend_of(words), checked(NewTokens, {"tokens": tokens, "special": special}, names), names=options)


def _show_examples(examples: Sequence[Shown]) -> None:
    from rich.text import Text

    for example in examples:
        head = f"{example.id} ({example.domain}): {example.length:,} tokens, {example.learnt:,} learnt"
        out.print(Text(head, style="bold"), soft_wrap=True)
        body = Text()
        _append(body, example.head)
        if example.omitted:
            body.append(f"\n… {example.omitted:,} tokens not shown …\n", style="dim italic")
            _append(body, example.tail)
        out.print(body, soft_wrap=True)
        out.print()
    out.print("⟦ and ⟧ stand around what is learnt, │ between tokens", style="dim")


def _append(body: Text, tokens: Sequence[Token]) -> None:
    """Add tokens to a text: in colour what is learnt, which marks show too where there are no colours."""
    learnt = False
    for at, token in enumerate(tokens):
        if token.learnt != learnt:
            body.append("⟦" if token.learnt else "⟧", style="bold green")
        elif at:
            body.append("│", style="dim")
        learnt = token.learnt
        style = (_LEARNT if learnt else _OTHER)[at % 2]
        body.append(token.text.replace("\n", "⏎\n"), style=f"{style} bold" if token.special else style)
    if learnt:
        body.append("⟧", style="bold green")


def _show_figures(description: str, figures: Figures | None, sequence_length: int) -> None:
    from rich.table import Table

    out.print()
    out.print(description, markup=False, soft_wrap=True)
    if figures is None:
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("documents", f"{figures.documents:,}")
    table.add_row("tokens of a document: median", f"{figures.median_tokens:,.0f}")
    table.add_row("… 99 of 100 have at most", f"{figures.p99_tokens:,.0f}")
    table.add_row("… longest", f"{figures.longest_tokens:,}")
    table.add_row("positions that are learnt", f"{figures.learnt_share:.1%}")
    table.add_row("positions that are padding", f"{figures.padded_share:.1%}")
    table.add_row(f"cut short at {sequence_length:,} tokens", f"{figures.truncated_share:.1%}")
    out.print(table)


def _show_problems(problems: Sequence[Problem]) -> None:
    from rich.text import Text

    out.print()
    if not problems:
        out.print("No problems found.")
    for problem in sorted(problems, key=lambda problem: problem.refused):
        line = Text("REFUSED  " if problem.refused else "noted    ", style="bold red" if problem.refused else "yellow")
        out.print(line.append(str(problem), style="default"), soft_wrap=True)
    refused = sum(problem.refused for problem in problems)
    if refused:
        out.print(
            f"\n{refused} problem{'s' * (refused > 1)} refused: this data must not be trained on as it is.",
            style="bold red",
        )
