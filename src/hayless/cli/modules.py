"""`hayless modules`: a library of adapters, found by what their tasks look like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hayless.cli.output import Json, emit, err, out, table

if TYPE_CHECKING:
    from hayless.methods.adapters.library.embedding import Vectors
    from hayless.methods.adapters.library.store import Found, Library, Module

app = typer.Typer(help="Keep a library of adapters, find the right ones, and compose them.", no_args_is_help=True)

Folder = typer.Argument(metavar="LIBRARY", help="The library's folder.")
Base = typer.Option(..., "--base", help="The model that the modules are for: a folder or a hub id.")
Examples = typer.Option(
    None, "--examples", help="A UTF-8 file with an example of the task a line; - is standard input."
)
Top = typer.Option(3, "--top", help="How many modules.")


@app.command("create")
def create(
    library: Path = Folder,
    base: str = Base,
    encoder: str = typer.Option(
        None, help="A language model or sentence encoder that makes the vectors in the base's place."
    ),
    layer: int = typer.Option(-1, help="Whose states are the vectors: blocks counted from the front; -1 the last."),
    json: bool = Json,
) -> None:
    """Make an empty library of modules for a base."""
    from hayless.methods.adapters.library.opening import create as make

    made = make(library, base, encoder=encoder, layer=layer)
    if json:
        emit(_described(made))
    else:
        out.print(f"{library} takes modules for {base}; vectors of {made.width} numbers.")


@app.command("add")
def add(
    library: Path = Folder,
    adapter: Path = typer.Argument(metavar="ADAPTER", help="The folder of a trained adapter, as PEFT writes it."),
    base: str = Base,
    examples: str = Examples,
    name: str = typer.Option(None, help="What it is called; its folder's name if not given."),
    task: str = typer.Option("", help="The task it was trained for, in words."),
    data: str = typer.Option("", help="The data it was trained on, in words."),
    metric: list[str] = typer.Option(None, help="NAME=NUMBER: how good it is at its task; may be repeated."),
    json: bool = Json,
) -> None:
    """Add a trained adapter, with examples of its task by which it is found."""
    from hayless.methods.adapters.library.opening import add as put

    held, made_by = _opened(library, base)
    found = put(held, adapter, _lines(examples), made_by, name=name, task=task, data=data, metrics=_metrics(metric))
    if json:
        emit(_module(found))
    else:
        out.print(f"{found.name} is the library's module number {len(held.modules)}.")


@app.command("list")
def list_(library: Path = Folder, json: bool = Json) -> None:
    """List the modules."""
    from hayless.methods.adapters.library.store import Library

    held = Library(library)
    if json:
        emit(_described(held))
        return
    rows = [(each.name, each.kind, str(each.rank or ""), each.task, _numbers(each)) for each in held.modules]
    table(("module", "kind", "rank", "task", "metrics"), rows)


@app.command("show")
def show(
    library: Path = Folder, name: str = typer.Argument(metavar="NAME", help="The module."), json: bool = Json
) -> None:
    """Show one module."""
    from hayless.methods.adapters.library.store import Library

    held = Library(library)
    found = held[name]
    if json:
        emit({**_module(found), "folder": str(held.path(name))})
        return
    rows = [("kind", found.kind), ("rank", str(found.rank or "")), ("task", found.task), ("data", found.data)]
    table(("", ""), [*rows, ("metrics", _numbers(found)), ("folder", str(held.path(name)))])


@app.command("search")
def search(
    library: Path = Folder,
    text: str = typer.Argument(None, metavar="TEXT", help="A text of the task."),
    base: str = Base,
    examples: str = Examples,
    top: int = Top,
    json: bool = Json,
) -> None:
    """Find the modules whose tasks are nearest to a text, or to examples."""
    held, made_by = _opened(library, base)
    found = held.search(made_by.of(_asked(text, examples)), top)
    if json:
        emit([{**_module(each.module), "similarity": each.similarity} for each in found])
    else:
        _show_found(found)


@app.command("compose")
def compose(
    library: Path = Folder,
    names: list[str] = typer.Argument(metavar="NAME…", help="The modules, by name."),
    base: str = Base,
    target: Path = typer.Option(..., "--out", help="The folder that the adapter is written to."),
    weight: list[float] = typer.Option(None, help="What each counts, in their order; may be repeated."),
    how: str = typer.Option("concatenated", help="concatenated, svd, separate, ties or dare."),
    rank: int = typer.Option(None, help="svd, ties, dare: the rank of what is made."),
    density: float = typer.Option(0.2, help="ties, dare: the share of each module's changes that is kept."),
    json: bool = Json,
) -> None:
    """Make one adapter of several modules, and save it as PEFT would."""
    from hayless.core.registry import configure
    from hayless.methods.adapters.library.store import Library
    from hayless.model.load import load_model, load_tokenizer
    from hayless.model.save import save_model
    from hayless.model.transform import apply

    held = Library(library)
    modules = tuple(str(held.path(name)) for name in names)
    weights = tuple(weight) if weight else None
    config = configure("compose", modules=modules, weights=weights, how=how, rank=rank, density=density)
    model = load_model(base)
    (change,) = apply(model, [config])
    save_model(model, target, tokenizer=load_tokenizer(base), base=base)
    if json:
        emit({"folder": str(target), **{name: value for name, value in change.figures.items() if "/" not in name}})
    else:
        out.print(f"{target}: {len(names)} modules in one, {change.figures['trainable']:,.0f} parameters.")


@app.command("try")
def try_(
    library: Path = Folder,
    prompts: list[str] = typer.Argument(metavar="PROMPT…", help="The texts to continue."),
    base: str = Base,
    examples: str = Examples,
    per: str = typer.Option(
        None,
        help="task: modules near the examples; request: near each prompt; token: each token chooses among all. task"
        " where there are examples, else request.",
    ),
    top: int = Top,
    mix: str = typer.Option("outputs", help="outputs, weights or one: how those that are found become one."),
    temperature: float = typer.Option(None, help="Shares are the softmax of scores over this, in the place of equal."),
    tokens: int = typer.Option(128, help="Tokens generated at most."),
    json: bool = Json,
) -> None:
    """Find modules for prompts (or for examples), put what they become on the base, and continue the prompts."""
    from hayless.core.errors import bad_value
    from hayless.core.registry import configure
    from hayless.model.load import load_model, load_tokenizer
    from hayless.model.transform import Context

    per = per or ("task" if examples else "request")
    if per not in ("task", "request", "token"):
        raise bad_value("--per", per, allowed="task, request, token")
    if (per == "task") != bool(examples):
        raise bad_value("--per", per, allowed="task where there are --examples, else request or token")
    config: Any = configure(
        "retrieve",
        library=str(library),
        examples=tuple(_lines(examples)) if examples else (),
        per="token" if per == "token" else "task",
        top=top,
        mix=mix,
        temperature=temperature,
    )
    model, words = load_model(base), load_tokenizer(base)
    answer = _each_by_itself if per == "request" else _all_alike
    made = answer(model, config, prompts, Context(tokenizer=words), tokens)
    if json:
        emit(made)
        return
    for entry in made:
        if entry["modules"]:
            err.print("modules: " + ", ".join(f"{name} ({near:.3f})" for name, near in entry["modules"].items()))
        print(entry["text"])


def _all_alike(model: Any, config: Any, prompts: list[str], context: Any, tokens: int) -> list[dict[str, Any]]:
    """Each prompt with its continuation by a model that has what was found on it."""
    from hayless.decode.engine import Engine
    from hayless.decode.options import SamplingOptions
    from hayless.model.transform import apply

    (change,) = apply(model, [config], context)
    made = Engine(model, context.tokenizer).generate(prompts, SamplingOptions(max_tokens=tokens))
    return [_tried(prompt, change.figures, one) for prompt, one in zip(prompts, made, strict=True)]


def _each_by_itself(model: Any, config: Any, prompts: list[str], context: Any, tokens: int) -> list[dict[str, Any]]:
    """Each prompt with its continuation by its own modules, side by side in one batch."""
    from hayless.decode.bank import AdapterBank
    from hayless.decode.engine import Engine
    from hayless.decode.options import SamplingOptions
    from hayless.methods.adapters.retrieve.transform import for_requests

    found = for_requests(model, config, prompts, context)
    bank = AdapterBank.for_adapters(model, [adapter for adapter, _ in found], len(found))
    names = [str(number) for number in range(len(found))]
    for name, (adapter, _) in zip(names, found, strict=True):
        bank.add(name, adapter)
    engine = Engine(model, context.tokenizer, adapters=bank)
    made = engine.generate(prompts, SamplingOptions(max_tokens=tokens), adapters=names)
    return [_tried(prompt, figures, one) for prompt, (_, figures), one in zip(prompts, found, made, strict=True)]


def _tried(prompt: str, figures: dict[str, float], made: Any) -> dict[str, Any]:
    near = {name.removeprefix("similarity/"): value for name, value in figures.items() if "/" in name}
    return {"prompt": prompt, "modules": near, "text": made.text}


@app.command("remove")
def remove(
    library: Path = Folder, name: str = typer.Argument(metavar="NAME", help="The module."), json: bool = Json
) -> None:
    """Take a module out of the library, with its files."""
    from hayless.methods.adapters.library.store import Library

    held = Library(library)
    held.remove(name)
    if json:
        emit({"removed": name, "modules": len(held.modules)})
    else:
        out.print(f"{name} is gone; {len(held.modules)} modules are left.")


def _opened(folder: Path, base: str) -> tuple[Library, Vectors]:
    """The library, and what makes its vectors."""
    from hayless.methods.adapters.library.opening import embedder
    from hayless.methods.adapters.library.store import Library
    from hayless.model.load import load_model, load_tokenizer

    held = Library(folder)
    return held, embedder(held, load_model(base), load_tokenizer(base))


def _asked(text: str | None, examples: str | None) -> list[str]:
    from hayless.core.errors import RequestError

    if (text is None) == (examples is None):
        raise RequestError("Give a text, or a file of --examples; one of the two.")
    return [text] if text is not None else _lines(examples)


def _lines(file: str | None) -> list[str]:
    """The examples in a file, a line each."""
    import sys

    from hayless.core.errors import RequestError

    if file is None:
        raise RequestError("There are no examples.", hint="Give a file of them: --examples FILE.")
    try:
        content = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--examples = {file!r} cannot be read: {error}.") from None
    found = [line for line in content.splitlines() if line.strip()]
    if not found:
        raise RequestError(f"--examples = {file!r} has no lines.")
    return found


def _metrics(given: list[str] | None) -> dict[str, float]:
    from hayless.core.errors import bad_value

    found = {}
    for entry in given or ():
        name, _, number = entry.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise bad_value("--metric", entry, allowed="NAME=NUMBER, such as accuracy=0.91") from None
    return found


def _described(library: Library) -> dict[str, Any]:
    return {
        "folder": str(library.folder),
        "base_fingerprint": library.base,
        "embedding": library.embedding,
        "width": library.width,
        "modules": [_module(each) for each in library.modules],
    }


def _module(module: Module) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(module)


def _numbers(module: Module) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in module.metrics.items())


def _show_found(found: list[Found]) -> None:
    rows = [(each.module.name, f"{each.similarity:.3f}", each.module.task) for each in found]
    table(("module", "similarity", "task"), rows)
