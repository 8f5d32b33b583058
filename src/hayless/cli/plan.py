"""`hayless plan`: will it fit, how long will it take, and do the published tables hold?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from hayless.cli import plan_cluster, plan_scaling, plan_verify
from hayless.cli.output import Json, emit
from hayless.cli.plan_tables import show_tables


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
app.add_typer(plan_scaling.app, name="scaling")
app.command("cluster")(plan_cluster.cluster)
app.command("verify")(plan_verify.verify)

Model = typer.Argument("", metavar="[MODEL]", help="A model's folder, its config.json, or a hub id.")
Preset = typer.Option("", "--preset", help="A known model by name, such as llama-7b, gpt2-xl, opt-13b, qwen2-7b.")
Parameters = typer.Option("", "--parameters", help="Parameters in the place of a model, such as 7.5B.")


@app.command("model")
def model(
    model: str = Model,
    preset: str = Preset,
    recipe: str = typer.Option("", "--recipe", help="A recipe; its training steps are planned."),
    batch: int = typer.Option(None, "--batch", help="Sequences computed at once; with --memory, of an update."),
    seq: int = typer.Option(None, "--seq", help="Tokens of a sequence; 2048 (or all positions), or the recipe's."),
    accumulation: int = typer.Option(None, "--accumulation", help="Micro-batches of an update; 1, or the recipe's."),
    precision: str = typer.Option(
        "", "--precision", help="fp32, autocast, master, bf16 or fp16; master, or the recipe's."
    ),
    checkpointing: bool = typer.Option(False, "--checkpointing", help="Compute every block again going backward."),
    device: str = typer.Option("H200", "--device", help="A GPU by name, such as H200, A100 or RTX 4090."),
    compare: str = typer.Option(
        "", "--compare", help="Ways to train, side by side, such as full,kmeans+lora(rank=16),sgd; + joins; full alone."
    ),
    data_tokens: str = typer.Option("", "--data-tokens", help="Tokens to train on, such as 1B: GPU-hours and kWh."),
    out_file: str = typer.Option("", "--out", help="Also draw the bars to this .png or .svg."),
    html: str = typer.Option("", "--html", help="Write an offline calculator to this file, opened with what is given."),
    memory_budget: str = typer.Option("", "--memory", help="Recommend ways to train in so much, such as 24GB."),
    gpus: int = typer.Option(1, "--gpus", min=1, help="With --memory: GPUs there are."),
    data: str = typer.Option("", "--data", help="With --memory: training text of the recommended recipe; texts/."),
    write: str = typer.Option("", "--write", help="With --memory: write the recommended recipe to this file."),
    json: bool = Json,
) -> None:
    """Predict memory by cause, time and cost of training and running a model. The word `model` may be left out."""
    from hayless.cli import plan_pages as pages
    from hayless.core.cost import TrainShape
    from hayless.core.devices import find
    from hayless.core.units import parse_bytes, parse_count
    from hayless.plan import memory
    from hayless.plan.memory import usual_sequence

    on = find(device)
    tokens = parse_count(data_tokens, "data_tokens") if data_tokens else 0
    if html:
        from hayless.cli import plan_page

        _not_with("--html", {"--recipe": recipe, "--out": out_file, "--data": data, "--write": write})
        start = {"batch": batch, "sequence": seq, "accumulation": accumulation, "precision": precision or None}
        start |= {"device": on.name, "data_tokens": tokens or None}
        gigabytes = (parse_bytes(memory_budget) if memory_budget else on.memory_bytes) / 1e9
        way = (compare or "full") + "+checkpointing" * checkpointing
        plan_page.write(html, model, preset, way, {**start, "memory_gb": gigabytes}, json)
        return
    alone = {"--recipe": recipe, "--compare": compare, "--precision": precision, "--out": out_file}
    if memory_budget:
        from hayless.cli import plan_advice

        _not_with("--memory", alone | {"--checkpointing": checkpointing, "--accumulation": accumulation})
        plan_advice.recommend(
            model, preset, on, memory_budget, gpus, batch, seq, tokens, data or plan_advice.DATA, write, json
        )
        return
    for name, given in {"--gpus": gpus != 1, "--data": data, "--write": write}.items():
        if given:
            raise typer.BadParameter("needs --memory", param_hint=name)
    if recipe:
        _not_with("--recipe", {"--compare": compare})
        asked = {
            "batch": batch,
            "sequence": seq,
            "accumulation": accumulation,
            "precision": precision or None,
            "checkpoint_every": 1 if checkpointing else None,
        }
        changes = {field: value for field, value in asked.items() if value is not None}
        plans = memory.of_recipe(recipe, model, preset, on, changes)
    else:
        dims, before = memory.dims_from(model, preset)
        shape = TrainShape(
            1 if batch is None else batch,
            usual_sequence(dims) if seq is None else seq,
            accumulation=1 if accumulation is None else accumulation,
            precision=precision or "master",
            checkpoint_every=int(checkpointing),
        )
        # Commas inside parentheses are between a method's options.
        names = list(dict.fromkeys(name.strip() for name in re.split(r",(?![^(]*\))", compare or "full")))
        plans = [memory.variant(name, dims, before, shape, on) for name in names]
    title = preset or model or recipe
    if out_file:
        pages.picture(plans, title, out_file)
    if json:
        allowances = {"context_bytes": memory.CONTEXT_BYTES, "slack_share": memory.SLACK, "margin_share": memory.MARGIN}
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
    pages.show_plans(plans, title, tokens)


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
    from hayless.core.devices import find
    from hayless.plan import zero
    from hayless.plan.table import wholes

    counts = wholes("ranks", ranks)
    name, count = _counted(model, preset, parameters)
    models = {name: count} if count else {_size(each): each for each in zero.PUBLISHED}
    first = count or next(iter(zero.PUBLISHED))
    on = find(device)
    said = [zero.claim(count, each, on) for each in counts] if count else list(zero.claims())
    if not count:
        said.insert(0, "The lecture's claims, checked:")
    show_tables([zero.table(models, counts), zero.traffic(first, max(counts))], json, said)


@app.command("vram")
def vram(model: str = Model, preset: str = Preset, parameters: str = Parameters, json: bool = Json) -> None:
    """Mixed-precision Adam: 2 + 2 + 4 + 4 + 4 bytes a parameter."""
    from hayless.plan import vram

    name, count = _counted(model, preset, parameters)
    models = {name: count} if count else {each: found[0] for each, found in vram.PUBLISHED.items()}
    show_tables([vram.table(models)], json)


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
    show_tables([lomo.table(preset or model, ledger_of(dims), batch, seq)], json)


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

    show_tables([flash.table(flash.Attention(n, d, m, heads, batch))], json)


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
        show_tables([speculative.example(_numbers("draft", draft), _numbers("target", target))], json)
    elif alpha is None:
        show_tables(speculative.published(), json)
    else:
        show_tables([speculative.table(alpha, gamma, c)], json)


@app.command("opt")
def opt(json: bool = Json) -> None:
    """The OPT sizes as presets, counted."""
    from hayless.plan import opt

    show_tables([opt.table()], json)


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


def _not_with(option: str, others: Mapping[str, object]) -> None:
    """Options that would be ignored beside another are refused."""
    for name, given in others.items():
        if given:
            raise typer.BadParameter(f"cannot be given with {option}", param_hint=name)
