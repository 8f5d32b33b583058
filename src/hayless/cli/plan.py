"""`hayless plan`: will it fit, how long will it take, and do the published tables hold?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from hayless.cli.output import Json, emit, out
from hayless.cli.output import table as show_table

if TYPE_CHECKING:
    from hayless.plan.memory import Plan
    from hayless.plan.table import Table


class _ModelOrTable(TyperGroup):
    """A first word that is no table's name is a model: `plan gpt2/` means `plan model gpt2/`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] != "--help" and args[0] not in self.commands:
            args = ["model", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ModelOrTable,
    help="Predict memory, time and cost before anything runs; published tables computed live.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Model = typer.Argument("", metavar="[MODEL]", help="A model's folder, its config.json, or a hub id.")
Preset = typer.Option("", "--preset", help="A known model by name, such as llama-7b, gpt2-xl, opt-13b, qwen2-7b.")
Parameters = typer.Option("", "--parameters", help="Parameters in the place of a model, such as 7.5B.")


@app.command("model")
def model(
    model: str = Model,
    preset: str = Preset,
    recipe: str = typer.Option("", "--recipe", help="A recipe; its training steps are planned."),
    batch: int = typer.Option(None, "--batch", help="Sequences computed at once; 1, or the recipe's."),
    seq: int = typer.Option(None, "--seq", help="Tokens of a sequence; 2048 (or all positions), or the recipe's."),
    precision: str = typer.Option(
        "master", "--precision", help="fp32, autocast, master, bf16 or fp16; not of recipes."
    ),
    checkpointing: bool = typer.Option(False, "--checkpointing", help="Compute every block again going backward."),
    device: str = typer.Option("H200", "--device", help="A GPU by name, such as H200, A100 or RTX 4090."),
    compare: str = typer.Option(
        "full", "--compare", help="Ways to train, side by side: full,lora,kmeans+lora,sgd; + joins methods."
    ),
    data_tokens: str = typer.Option("", "--data-tokens", help="Tokens to train on, such as 1B: GPU-hours and kWh."),
    out_file: str = typer.Option("", "--out", help="Also draw the bars to this .png or .svg."),
    json: bool = Json,
) -> None:
    """Predict memory by cause, time and cost of training and running a model. The word `model` may be left out."""
    from hayless.core.cost import TrainShape
    from hayless.core.units import parse_count
    from hayless.plan import memory

    on = memory.device(device)
    tokens = parse_count(data_tokens, "data_tokens") if data_tokens else 0
    if recipe:
        plans = memory.of_recipe(recipe, model, preset, on, batch=batch, sequence=seq, checkpointing=checkpointing)
    else:
        dims, before = memory.dims_from(model, preset)
        sequence = seq if seq is not None else min(2048, dims.max_positions or 2048)
        shape = TrainShape(
            1 if batch is None else batch, sequence, precision=precision, checkpoint_every=int(checkpointing)
        )
        names = list(dict.fromkeys(name.strip() for name in compare.split(",")))
        plans = [memory.variant(name, dims, before, shape, on) for name in names]
    title = preset or model or recipe
    if out_file:
        _draw(plans, title, out_file)
    if json:
        allowances = {"context_bytes": memory.CONTEXT_BYTES, "slack_share": memory.SLACK}
        about = {"name": on.name, "memory_bytes": on.memory_bytes, "rates": on.source}
        emit(
            {
                "model": title,
                "device": about,
                "allowances": allowances,
                "plans": [plan.to_json(tokens) for plan in plans],
            }
        )
        return
    _show_plans(plans, title, tokens)


@app.command("zero")
def zero(
    model: str = Model,
    preset: str = Preset,
    parameters: str = Parameters,
    ranks: str = typer.Option("1,4,16,64,256,1024", "--ranks", help="Numbers of GPUs."),
    device: str = typer.Option("V100", "--device", help="The GPU on which each largest stage must fit."),
    json: bool = Json,
) -> None:
    """ZeRO: states a rank holds at each stage, and what it sends."""
    from hayless.plan import memory, zero
    from hayless.plan.table import wholes

    counts = wholes("ranks", ranks)
    name, count = _counted(model, preset, parameters)
    models = {name: count} if count else {_size(each): each for each in zero.PUBLISHED}
    first = count or next(iter(zero.PUBLISHED))
    on = memory.device(device)
    said = [zero.claim(count, each, on) for each in counts] if count else list(zero.claims())
    if not count:
        said.insert(0, "The lecture's claims, checked:")
    _show([zero.table(models, counts), zero.traffic(first, max(counts))], json, said)


@app.command("vram")
def vram(model: str = Model, preset: str = Preset, parameters: str = Parameters, json: bool = Json) -> None:
    """Mixed-precision Adam: 2 + 2 + 4 + 4 + 4 bytes a parameter."""
    from hayless.plan import vram

    name, count = _counted(model, preset, parameters)
    models = {name: count} if count else {each: found[0] for each, found in vram.PUBLISHED.items()}
    _show([vram.table(models)], json)


@app.command("lomo")
def lomo(
    model: str = Model,
    preset: str = Preset,
    batch: int = typer.Option(8, "--batch", help="Sequences computed at once."),
    seq: int = typer.Option(512, "--seq", help="Tokens of a sequence."),
    json: bool = Json,
) -> None:
    """LOMO's table: AdamW, SGD and LOMO in 16 bits, with and without checkpointing."""
    from hayless.core.families import ledger_of
    from hayless.plan import lomo, memory

    preset = preset or ("" if model else lomo.PUBLISHED_SHAPE[0])
    dims, _ = memory.dims_from(model, preset)
    _show([lomo.table(preset or model, ledger_of(dims), batch, seq)], json)


@app.command("flash")
def flash(
    n: int = typer.Option(1024, "--n", help="N, tokens of a sequence."),
    d: int = typer.Option(64, "--d", help="d, width of a head."),
    m: int = typer.Option(98_304, "--m", help="M, elements of fast memory."),
    heads: int = typer.Option(16, "--heads", help="Heads."),
    batch: int = typer.Option(64, "--batch", help="Rows."),
    json: bool = Json,
) -> None:
    """FlashAttention: traffic to GPU memory beside standard attention's."""
    from hayless.plan import flash

    _show([flash.table(flash.Attention(n, d, m, heads, batch))], json)


@app.command("speculative")
def speculative(
    alpha: float = typer.Option(None, "--alpha", help="α, the chance that a drafted token is accepted."),
    gamma: int = typer.Option(4, "--gamma", help="γ, tokens drafted a pass."),
    c: float = typer.Option(0.05, "--c", help="Cost of a draft's step beside the target's."),
    draft: str = typer.Option("", "--draft", help="The draft's probabilities of its tokens, such as 0.8,0.7."),
    target: str = typer.Option("", "--target", help="The target's probabilities of the same tokens."),
    json: bool = Json,
) -> None:
    """Speculative decoding: tokens a pass, speed-up, and the best γ."""
    from hayless.plan import speculative

    if draft or target:
        _show([speculative.example(_numbers("draft", draft), _numbers("target", target))], json)
    elif alpha is None:
        _show(speculative.published(), json)
    else:
        _show([speculative.table(alpha, gamma, c)], json)


@app.command("opt")
def opt(json: bool = Json) -> None:
    """The OPT sizes as presets, counted."""
    from hayless.plan import opt

    _show([opt.table()], json)


@app.command("scaling")
def scaling(
    parameters: str = typer.Option("", "--parameters", help="N, such as 70B."),
    tokens: str = typer.Option("", "--tokens", help="D, such as 1.4T; 20 a parameter if not given."),
    points: str = typer.Option("", "--points", help="N:LOSS,N:LOSS,… to fit L(N) = a/N^b + c to."),
    json: bool = Json,
) -> None:
    """Scaling laws: Kaplan's, Chinchilla's, its refit, and one of your own."""
    from hayless.core.units import parse_count
    from hayless.plan import scaling

    if points:
        _show([scaling.fitted(_points(points))], json)
    elif parameters:
        count = parse_count(parameters, "parameters")
        data = parse_count(tokens, "tokens") if tokens else scaling.TOKENS_A_PARAMETER * count
        _show([scaling.losses(count, data)], json)
    elif tokens:
        raise typer.BadParameter("needs --parameters", param_hint="--tokens")
    else:
        _show([scaling.published()], json)


def _size(parameters: int) -> str:
    """7500000000 → `7.5B`, as papers write it."""
    from hayless.core.units import format_count

    text = format_count(parameters)
    return f"{float(text[:-1]):g}{text[-1]}"


def _counted(model: str, preset: str, parameters: str) -> tuple[str, int]:
    """A name and its parameters; 0 where nothing was asked for and the published table is meant."""
    from hayless.core.errors import RequestError
    from hayless.core.units import parse_count

    if parameters:
        if model or preset:
            raise RequestError("Give a model, a preset or --parameters, only one of them.")
        count = parse_count(parameters, "parameters")
        if not count:
            raise RequestError("parameters = 0 is not possible; allowed: a number above 0.")
        return parameters, count
    if not (model or preset):
        return "", 0
    from hayless.core.compose import predict
    from hayless.core.families import ledger_of
    from hayless.plan import memory

    dims, before = memory.dims_from(model, preset)
    return preset or model, predict(ledger_of(dims), before).parameters


def _numbers(field: str, text: str) -> list[float]:
    from hayless.core.errors import bad_value

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise bad_value(field, text, allowed="numbers such as 0.8,0.7") from None


def _points(text: str) -> list[tuple[float, float]]:
    from hayless.core.errors import bad_value
    from hayless.core.units import parse_count

    found = []
    for part in text.split(","):
        size, _, loss = part.partition(":")
        try:
            found.append((float(parse_count(size, "points")), float(loss)))
        except ValueError:
            raise bad_value("points", part, allowed="N:LOSS, such as 10M:3.4") from None
    return found


def _show(tables: Sequence[Table], json: bool, said: Sequence[str] = ()) -> None:
    """Print tables with their remarks and sources, and then what is said of them."""
    if json:
        emit({"tables": [each.to_json() for each in tables], "claims": list(said)})
        return
    for each in tables:
        out.print(each.title, style="bold", markup=False)
        text = sum(1 for cell in each.cells[0] if not _numeric(cell))
        show_table(each.columns, each.cells, right=len(each.columns) - max(1, text))
        for note in each.notes:
            out.print(note, markup=False)
        if each.source:
            out.print(f"Printed figures: {each.source}.", style="dim", markup=False)
        if each.notes or each.source:
            out.print()
    for line in said:
        out.print(line, markup=False)


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "+−="


def _show_plans(plans: Sequence[Plan], title: str, tokens: int) -> None:
    from hayless.core.units import format_bytes, format_count, format_seconds
    from hayless.plan.memory import needed, spent
    from hayless.plan.picture import CAUSES, terminal
    from hayless.recipe.figures import number

    first = plans[0]
    size = f"{format_count(first.ledger.parameters)} parameters"
    out.print(f"{title}: {size}; {first.device.name}, {format_bytes(first.device.memory_bytes)}, {first.device.source}")
    if len(plans) == 1:
        columns = {phase: needed(held) for cost in first.costs.values() for phase, held in cost.phases.items()}
    else:
        columns = {f"{plan.name}: {name}": needed(cost.peak) for plan in plans for name, cost in plan.costs.items()}
    rows = [
        [CAUSES[cause][0], *(format_bytes(held[cause]) if held[cause] else "" for held in columns.values())]
        for cause in CAUSES
        if any(held[cause] for held in columns.values())
    ]
    rows.append(["all", *(format_bytes(held["total"]) for held in columns.values())])
    show_table(["at the peak of", *columns], rows, right=len(columns))
    out.print(terminal(plans, out.width))
    out.print()
    speeds = []
    for plan in plans:
        seconds, rate, decoding = plan.step_seconds(), plan.train_tokens_per_second(), plan.token_seconds()
        cost = spent(plan, tokens) if tokens else {}
        speeds.append(
            [
                plan.name,
                format_count(plan.ledger.trainable),
                format_seconds(seconds) if seconds else "",
                number(rate) if rate else "",
                f"{1e3 * decoding:.2f}" if decoding else "",
                number(cost["gpu_hours"]) if cost else "",
                number(cost["kwh"]) if "kwh" in cost else "",
                _verdict(plan),
            ]
        )
    titles = ["", "trained", "step", "tokens/s", "ms/token decoding", "GPU-hours", "kWh at most", "fits"]
    kept = [place for place in range(len(titles)) if place == 0 or any(row[place] for row in speeds)]
    show_table(
        [titles[place] for place in kept], [[row[place] for place in kept] for row in speeds], right=len(kept) - 1
    )
    for note in dict.fromkeys(note for plan in plans for note in plan.to_json()["notes"]):
        out.print(note, style="dim", markup=False)
    out.print("Times are a roofline's: a bound that is not yet compared with measurements.", style="dim")


def _verdict(plan: Plan) -> str:
    from hayless.core.units import format_bytes
    from hayless.plan.memory import needed

    left = plan.device.memory_bytes - max(needed(cost.peak)["total"] for cost in plan.costs.values())
    return f"yes, {format_bytes(left)} left" if left >= 0 else f"no, {format_bytes(-left)} short"


def _draw(plans: Sequence[Plan], title: str, file: str) -> None:
    from pathlib import Path

    from hayless.core.atomic import write_bytes
    from hayless.plan.picture import draw

    form = Path(file).suffix.removeprefix(".")
    if form not in ("png", "svg"):
        raise typer.BadParameter("ends in .png or .svg", param_hint="--out")
    write_bytes(Path(file), draw(plans, title, "png" if form == "png" else "svg"))
