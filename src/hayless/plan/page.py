"""The calculator as one HTML file, which works offline (`hayless.core.page`).

Its script computes nothing by itself: what it shows comes from `hayless.plan.calculator`, translated to JavaScript
together with all that it reaches when the page is written. A method, a family or a formula that is added is on the next
page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hayless.core import atomic, registry
from hayless.core import page as pages
from hayless.core.cost import PRECISIONS
from hayless.core.devices import DEVICES
from hayless.core.errors import RequestError
from hayless.core.families import FAMILIES
from hayless.core.method import Method, Part
from hayless.core.registry import methods
from hayless.core.units import format_bytes
from hayless.plan import calculator
from hayless.plan.javascript.program import Program, runtime
from hayless.plan.memory import VERIFIED
from hayless.plan.picture import CAUSES
from hayless.plan.presets import PRESETS
from hayless.version import __version__

_PARTS = (Part.TRANSFORM, Part.OPTIMIZER, Part.MEMORY)
_OPTIMIZER = "adamw"
_DARK_PAPER, _INKS = "#141517", ("#000000", "#ffffff")

START: Mapping[str, Any] = {
    "preset": "llama-7b",
    "config": "",
    "batch": 1,
    "sequence": 2048,
    "accumulation": 32,
    "precision": "master",
    "device": "H200",
    "memory_gb": 24,
    "data_tokens": 10**9,
    "optimizer": _OPTIMIZER,
    "methods": [],
}
"""What the page opens with."""

_SLIDERS = (
    ("batch", "Rows at once", [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]),
    ("sequence", "Tokens of a row", [size << n for n in range(17) for size in (2, 3) if 64 <= size << n <= 131_072]),
    ("accumulation", "Micro-batches an update", [1, 2, 4, 8, 16, 32, 64, 128, 256]),
)
"""Name of the field, title, and where its slider stops; any other number can be typed."""
_BUDGETS = [4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 141, 180, 256, 320, 640]

_TINY: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 256,
}


def write(out: Path, start: Mapping[str, Any]) -> None:
    """Write the calculator to `out`; `start` is what it opens with, where that is not `START`.

    WorkError where the file cannot be written.
    """
    atomic.write_text(out, render(start))


def render(start: Mapping[str, Any]) -> str:
    """The page as text; see `write`."""
    cards = {card.name: card for card in methods(_PARTS) if card.name in calculator.KNOWN}
    found = {
        name: {"name": name, "part": card.part.value, "summary": card.summary, "options": list(options_of(card))}
        for name, card in cards.items()
    }
    devices = {
        name: {"name": name, "memory_bytes": on.memory_bytes, "memory": format_bytes(on.memory_bytes)}
        for name, on in DEVICES.items()
    }
    sliders = [{"name": name, "title": title, "steps": steps} for name, title, steps in _SLIDERS]
    data = {
        "presets": PRESETS,
        "methods": found,
        "optimizer": _OPTIMIZER,
        "devices": devices,
        "sliders": sliders,
        "budgets": _BUDGETS,
        "causes": {cause: {"title": title} for cause, (title, _, _) in CAUSES.items()},
        "times": VERIFIED,
        "start": {**START, **start},
    }
    return pages.render(
        pages.text("hayless.plan", "page.html.j2"),
        data,
        style=pages.text("hayless.plan", "page.css") + colours(),
        script="\n".join(pages.text("hayless.plan", each) for each in ("yaml.js", "advice.js", "page.js")),
        engine=engine()[0],
        version=__version__,
        presets=list(PRESETS),
        types=sorted(name for types in FAMILIES.values() for name in types),
        sliders=sliders,
        budgets=_BUDGETS,
        devices=devices.values(),
        precisions=[(name, _in_words(*dtypes, name=name)) for name, dtypes in PRECISIONS.items()],
        methods=found.values(),
    )


def engine() -> tuple[str, Mapping[str, str]]:
    """JavaScript that defines `hayless.model`, `plan`, `training` and `running`, which take and give JSON's objects.

    And what could not be translated, with the reason.
    """
    doors = [door for card in methods() for each in card.ecosystems for door in (each.write, each.read)]
    of_files = {getattr(door, "func", door): calculator.without_files for door in doors}
    program = Program({registry.catalogue: calculator.known, registry.configure: calculator.configured, **of_files})
    for family in FAMILIES:
        program.offer(f"hayless.core.families.{family}", "read", "rows", "PATHS")
    for module in calculator.KNOWN.values():
        program.offer(module, "METHOD")
    answers = {
        name: program.reference(function, name)
        for name, function in (
            ("model", calculator.model_of),
            ("plan", calculator.plan_of),
            ("training", calculator.training_of),
            ("running", calculator.running_of),
        )
    }
    parts = [runtime(), program.text(), pages.text("hayless.plan", "engine.js")]
    answered = ", ".join(f"{name}: answering({function})" for name, function in answers.items())
    text = "".join([*parts, f"const hayless = {{ {answered} }};\n"])
    # Nothing may end the script element that holds it.
    return text.replace("</", "<\\/"), program.missing


def options_of(card: Method) -> Iterator[dict[str, Any]]:
    """The options of a method that change what is predicted, found by changing them on a tiny model."""
    usual = _tried(card.name, {})
    for name, schema in card.config.model_json_schema()["properties"].items():
        field = next((each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"), schema)
        kind = _kind(field)
        if name == "method" or kind is None:
            continue
        if any(_tried(card.name, {name: value}) not in (None, usual) for value in _others(field, kind, schema)):
            yield {
                "name": name,
                "kind": kind,
                "default": schema.get("default"),
                "choices": field.get("enum", []),
                "low": field.get("minimum"),
                "high": field.get("maximum"),
                "words": schema.get("description", ""),
            }


def _kind(field: Mapping[str, Any]) -> str | None:
    if "enum" in field:
        return "choice"
    return {"integer": "int", "number": "float", "boolean": "bool"}.get(field.get("type", ""))


def _others(field: Mapping[str, Any], kind: str, schema: Mapping[str, Any]) -> list[Any]:
    """Values that an option may have beside its default."""
    default = schema.get("default")
    if kind == "choice":
        return [choice for choice in field["enum"] if choice != default]
    if kind == "bool":
        return [not default]
    if kind == "float":
        return [value for value in (0.5, 0.25, 2.0) if value != default]
    return [value for value in (1, 2, 3, 16) if value != default]


def _tried(name: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figures of a method on a tiny model; None for options that it does not take."""
    request = {
        **START,
        "config": _TINY,
        "batch": 2,
        "sequence": 8,
        "accumulation": 1,
        "methods": [{"method": name, **options}],
    }
    try:
        return {**calculator.plan_of(request), "name": ""}
    except RequestError:
        return None


def _in_words(weights: str, autocast: str | None, *, name: str) -> str:
    """What a precision is."""
    copies = ", with float32 copies" if name == "master" else ""
    return f"{weights} weights{copies}" + (f", {autocast} products" if autocast else "")


def colours() -> str:
    """Causes in their colours, lighter on dark paper where they would hardly be seen, and text on them that is read."""
    light = {cause: colour for cause, (_, _, colour) in CAUSES.items()}
    dark = {cause: _lighter(colour) for cause, colour in light.items()}

    def rules(colours: Mapping[str, str]) -> str:
        return "".join(
            f".cause-{cause} {{ background: {colour}; color: {max(_INKS, key=lambda ink: contrast(ink, colour))}; }}\n"
            for cause, colour in colours.items()
        )

    return f"{rules(light)}@media (prefers-color-scheme: dark) {{\n{rules(dark)}}}\n"


def _lighter(colour: str) -> str:
    while contrast(colour, _DARK_PAPER) < 4:
        parts = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        colour = "#" + "".join(f"{round(part + 0.1 * (255 - part)):02x}" for part in parts)
    return colour


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21 (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
