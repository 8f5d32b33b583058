"""What the calculator page computes: requests as JSON has them in, figures as JSON has them out.

The page's script is made from these functions and all that they reach (`hayless.plan.javascript`), so what the page
shows is what `hayless plan` prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hayless.core.cost import TrainShape
from hayless.core.devices import DEVICES, Device
from hayless.core.dims import ModelDims
from hayless.core.errors import RequestError, bad_value, unknown
from hayless.core.families import dims_of
from hayless.core.method import MethodConfig, Need
from hayless.core.registry import catalogue, configure, find, record_of
from hayless.plan import memory, recommend, running
from hayless.plan.ways import label


def model_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the page asks of a config when it gets one."""
    dims = dims_of(request["config"])
    return {"model_type": dims.model_type, "positions": dims.max_positions, "sequence": memory.usual_sequence(dims)}


def plan_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """One way to train a model and to run it: `Plan.to_json`."""
    dims, before = _model(request)
    configs = [_config(settings) for settings in request["methods"]]
    shape = TrainShape(
        request["batch"], request["sequence"], accumulation=request["accumulation"], precision=request["precision"]
    )
    name = "+".join(map(label, configs)) or "full"
    plan = memory.with_methods(name, configs, dims, before, shape, _device(request))
    return plan.to_json(request["data_tokens"])


def training_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """Ways to train in `memory_bytes`: `Advice.to_json`, and the recipe of each way that fits.

    RequestError where none does.
    """
    advice = recommend.advise(
        *_model(request),
        recommend.budgeted(_device(request), request["memory_bytes"]),
        batch=request["batch"] * request["accumulation"],
        sequence=request["sequence"],
        tokens=request["data_tokens"],
    )
    start = request["model"], request["preset"], request["data"]
    recipes = [recommend.recipe(choice, *start, advice.tokens) for choice in (advice.best, *advice.fitting[1:])]
    return {**advice.to_json(), "recipes": recipes}


def running_of(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ways to run a model in `memory_bytes`, each with the longest context: `Running.to_json`, and `recipe` for those
    that pack it first.

    RequestError where none fits.
    """
    on = recommend.budgeted(_device(request), request["memory_bytes"])
    found = running.advise_running(*_model(request), on, batch=request["batch"], context=None)
    start = request["model"], request["preset"]
    return [
        {**each.to_json(), "recipe": running.packing_recipe(each, *start) if each.transforms else None}
        for each in found
    ]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a number may be: None where there is no such limit."""

    whole: bool
    least: float | None = None
    above: float | None = None
    most: float | None = None
    under: float | None = None

    def allow(self, value: Any) -> bool:
        """Whether a value is within them."""
        if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and not self.whole)):
            return False
        low = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        return low and (self.most is None or value <= self.most) and (self.under is None or value < self.under)

    def __str__(self) -> str:
        words = [("of at least", self.least), ("above", self.above), ("at most", self.most), ("under", self.under)]
        kind = "a whole number" if self.whole else "a number"
        return " ".join([kind, " and ".join(f"{word} {limit}" for word, limit in words if limit is not None)]).strip()


def configured(name: str, **options: Any) -> MethodConfig:
    """`hayless.core.registry.configure` where there is no pydantic: numbers are held against their limits."""
    card = find(name)
    for field, value in options.items():
        limits = LIMITS[card.name].get(field)
        empty = value is None and getattr(DEFAULTS[card.name], field) is None
        if limits is not None and not empty and not limits.allow(value):
            raise bad_value(f"{name}.{field}", value, allowed=str(limits))
    return DEFAULTS[card.name].model_copy(update=options)


def known() -> Mapping[str, str]:
    """`hayless.core.registry.catalogue` as far as the page has it."""
    return KNOWN


def without_files() -> None:
    """What stands on the page for whatever reads or writes a model's files."""
    raise RequestError("The calculator has no files.")


def _model(request: Mapping[str, Any]) -> tuple[ModelDims, list[MethodConfig]]:
    """Dims of a config and the transforms that it says the model has had."""
    return dims_of(request["config"]), record_of(request["config"].get("hayless"))


def _config(settings: Mapping[str, Any]) -> MethodConfig:
    options = {field: value for field, value in settings.items() if field != "method"}
    return configure(settings["method"], **options)


def _device(request: Mapping[str, Any]) -> Device:
    if request["device"] not in DEVICES:
        raise unknown("device", request["device"], DEVICES)
    return DEVICES[request["device"]]


def _defaults() -> dict[str, MethodConfig]:
    """Every method that is a valid request without options, and that looks at no files."""
    found = {}
    for name in catalogue():
        if Need.TRAINED_ADAPTER in find(name).needs:
            continue
        try:
            found[name] = configure(name)
        except RequestError:
            continue
    return found


def _limits(schema: Mapping[str, Any]) -> Limits | None:
    """The limits of an option by its JSON schema; None where it is no number."""
    field = next((each for each in schema.get("anyOf", [schema]) if each.get("type") in ("integer", "number")), None)
    if field is None:
        return None
    names = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    return Limits(field["type"] == "integer", *(field.get(name) for name in names))


DEFAULTS: Mapping[str, MethodConfig] = _defaults()
KNOWN: Mapping[str, str] = {name: module for name, module in catalogue().items() if name in DEFAULTS}
LIMITS: Mapping[str, Mapping[str, Limits]] = {
    name: {
        field: limits
        for field, schema in type(config).model_json_schema()["properties"].items()
        if (limits := _limits(schema))
    }
    for name, config in DEFAULTS.items()
}
