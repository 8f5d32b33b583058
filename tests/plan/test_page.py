"""The calculator: its figures are the command line's for a grid of inputs, and it does what it shows, in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from hayless.cli.plan import app
from hayless.core.cost import PRECISIONS, TrainShape
from hayless.core.devices import DEVICES, find
from hayless.core.errors import HaylessError
from hayless.core.families import dims_of
from hayless.core.method import Need, Part
from hayless.core.registry import methods, record_of
from hayless.plan import memory, page, recommend, running
from hayless.plan.picture import CAUSES
from hayless.plan.presets import PRESETS, config_of
from hayless.plan.ways import settings_of
from hayless.recipe import load, yaml
from hayless.recipe.schema import ApplyStep
from tests import browser as browsers
from tests import tiny

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PARTS = (Part.TRANSFORM, Part.OPTIMIZER, Part.MEMORY)
METHODS = [card.name for card in methods(PARTS) if Need.TRAINED_ADAPTER not in card.needs]
"""Not those that look at adapters' files: a page has none."""
WAYS = [
    "full",
    *METHODS,
    "lora(rank=64)",
    "lora(rank=0)",
    "kmeans+lora",
    "kmeans(bits=8,group_size=16)+lora(rank=2)",
    "sgd(momentum=0.9)+checkpointing",
    "checkpointing(every=2)+lora",
    "checkpointing(blocks=3)",
    "lora+lora",
]
PACKED = {
    "model_type": "hayless",
    "base_config": config_of("llama-1b"),
    "hayless": {"methods": [{"method": "kmeans", "bits": 8}]},
}
BAD: list[dict[str, Any]] = [
    {},
    {"model_type": "lama"},
    {"model_type": "llama", "hidden_size": 100, "num_attention_heads": 7, "vocab_size": 1, "num_hidden_layers": 1},
    {**config_of("llama-1b"), "num_key_value_heads": 5},
    {**config_of("llama-1b"), "hidden_size": -4, "head_dim": 4},
    {**config_of("llama-1b"), "vocab_size": "many"},
    {**config_of("llama-1b"), "dtype": "float31"},
    {**config_of("gpt2"), "resid_pdrop": 2},
]


def asked(config: Mapping[str, Any], way: str = "full", **more: Any) -> dict[str, Any]:
    """A request as the page makes it."""
    settings = [settings_of(each) for each in memory.methods_named(way)] if way != "lora(rank=0)" else None
    settings = [{"method": "lora", "rank": 0}] if settings is None else settings
    work = {"batch": 1, "sequence": 64, "accumulation": 1, "precision": "master", "device": "H200", "data_tokens": 0}
    return {"config": dict(config), "methods": settings, "way": way, **work, **more}


def grid() -> Iterator[dict[str, Any]]:
    """Presets (of many layers only one), families, ways, precisions, devices; other settings go round beside them."""
    precisions, devices = list(PRECISIONS), list(DEVICES)
    quick = [name for name in PRESETS if dims_of(config_of(name)).num_layers <= 40]
    for place, name in enumerate([*quick, "llama-2-70b"]):
        yield asked(
            PRESETS[name],
            ("full", "lora", "kmeans+lora(rank=4)", "checkpointing")[place % 4],
            batch=1 + place % 5,
            sequence=(128, 333, 1024, 2048)[place % 4],
            accumulation=(1, 7)[place % 2],
            precision=precisions[place % len(precisions)],
            device=devices[place % len(devices)],
            data_tokens=10**9,
        )
    for place, name in enumerate(tiny.NAMES):
        yield asked(tiny.config(name).to_dict(), ("full", "lora", "checkpointing")[place % 3], batch=3, sequence=21)
    for place, way in enumerate(WAYS):
        yield asked(config_of("llama-1b"), way, precision=precisions[place % len(precisions)], accumulation=2)
    for precision in PRECISIONS:
        yield asked(config_of("qwen2-0.5b"), "kmeans+lora", precision=precision, batch=2)
    yield asked(PACKED, "lora")
    yield asked(PACKED)
    yield asked(config_of("gpt2"), sequence=2048)
    yield asked(config_of("llama-1b"), batch=0)
    yield asked(config_of("llama-1b"), sequence=None)
    for config in BAD:
        yield asked(config)


GRID = list(grid())


def by_hayless(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line computes from: the figures of one plan, or its error."""
    try:
        dims, before = dims_of(request["config"]), record_of(request["config"].get("hayless"))
        shape = TrainShape(
            request["batch"], request["sequence"], accumulation=request["accumulation"], precision=request["precision"]
        )
        plan = memory.variant(request["way"], dims, before, shape, find(request["device"]))
        return {"found": {**plan.to_json(request["data_tokens"]), "name": ""}}
    except HaylessError as error:
        return {"error": error.message, "hint": error.hint}


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two figures are not the same: whole numbers exactly, others to 1e-12."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{at}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [found for place in range(len(one)) for found in differences(one[place], other[place], f"{at}/{place}")]
    if isinstance(one, float) and isinstance(other, int | float):
        return [] if math.isclose(one, other, rel_tol=1e-12) else [f"{at}: {one!r}, {other!r}"]
    return [] if one == other else [f"{at}: {one!r}, {other!r}"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "plan.html"
    result = CliRunner().invoke(app, ["--preset", "llama-1b", "--html", str(out), "--batch", "2", "--device", "L4"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert out.stat().st_size < 1_500_000
    return out.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.started() as found:
        yield found


@pytest.fixture
def view(browser: Browser, address: str) -> Iterator[Page]:
    with browsers.opened(browser, address) as found:
        settled(found)
        yield found


def settled(view: Page) -> None:
    """Wait for the figures that are being computed."""
    view.locator("#memory:not([aria-busy])").wait_for(state="attached")


def advised(view: Page) -> None:
    """Wait for the figures and for advice."""
    settled(view)
    view.locator("#advice:not(:has([aria-busy]))").wait_for(state="attached")


def share(view: Page, cause: str, phase: str = "train-backward") -> float:
    """How much of a bar a cause takes, once it has moved."""
    return float(view.locator(f"#bar-{phase} [data-cause={cause}]").evaluate("part => parseFloat(part.style.width)"))


def test_everything_is_translated_and_nothing_asks_the_network() -> None:
    engine, missing = page.engine()
    assert missing == {}
    text = page.render({"preset": "", "config": '</script><script>alert("1")</script>'})
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 3 and scripts[1] == engine
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0]
    for script in scripts[1:]:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    for forbidden in ("innerHTML", "eval(", "fetch(", "@import", "url(", " style="):
        assert forbidden not in text.replace(scripts[0], ""), forbidden


def test_options_that_change_a_prediction_are_on_the_page() -> None:
    options = {card.name: [each["name"] for each in page.options_of(card)] for card in methods((Part.TRANSFORM,))}
    assert (
        "rank" in options["lora"]
        and "dropout" not in options["lora"]
        and "bits" in options["kmeans"]
        and "iterations" not in options["kmeans"]
    )


def test_text_on_bars_is_read_on_both_papers() -> None:
    rules = re.findall(r"\.cause-\w+ \{ background: (#\w+); color: (#\w+); \}", page.colours())
    assert len(rules) == 2 * len(CAUSES)
    assert all(page.contrast(background, ink) >= 4.5 for background, ink in rules)
    dark = rules[len(CAUSES) :]
    assert all(page.contrast(background, "#141517") >= 4 for background, _ in dark)


class TestInBrowser:
    pytestmark = browsers.NEEDED

    def test_figures_are_those_of_the_command_line(self, view: Page) -> None:
        found = view.evaluate("requests => requests.map(request => hayless.plan(request))", GRID)
        errors = 0
        for request, answer in zip(GRID, found, strict=True):
            expected = by_hayless(request)
            errors += "error" in expected
            if "found" in answer:
                answer["found"]["name"] = ""
            if request["way"] == "lora(rank=0)":  # pydantic words its limits in its own way
                assert answer["error"].startswith("lora.rank = 0") and expected["error"].startswith("lora.rank =")
                continue
            about = {name: value for name, value in request.items() if name not in ("config", "methods")}
            assert not differences(expected, answer), (about, request["config"].get("model_type"))
        assert len(GRID) - errors >= 50 and errors >= len(BAD)

    @pytest.mark.parametrize(("preset", "gigabytes"), [("llama-1b", 10), ("opt-350m", 4)])
    def test_advice_is_that_of_the_command_line(self, view: Page, preset: str, gigabytes: int) -> None:
        request = asked(config_of(preset), batch=2, accumulation=4, sequence=512, data_tokens=10**8)
        request |= {"memory_bytes": gigabytes * 10**9, "preset": preset, "model": "", "data": "texts/"}
        found = view.evaluate("request => hayless.training(request)", request)["found"]
        recipes = found.pop("recipes")
        on = recommend.budgeted(find("H200"), request["memory_bytes"])
        expected = recommend.advise(dims_of(request["config"]), [], on, batch=8, sequence=512, tokens=10**8)
        assert not differences(expected.to_json(), found)
        assert recipes == [recommend.recipe(each, "", preset, "texts/", 10**8) for each in expected.fitting]

        ways = view.evaluate("request => hayless.running(request)", request)
        packing = [each.pop("recipe") for each in ways["found"]]
        running_ways = running.advise_running(dims_of(request["config"]), [], on, batch=2, context=None)
        assert not differences([each.to_json() for each in running_ways], ways["found"])
        assert packing == [
            running.packing_recipe(each, "", preset) if each.transforms else None for each in running_ways
        ]

    def test_the_command_it_prints_has_its_figures(self, view: Page) -> None:
        view.get_by_label("Precision").select_option("bf16")
        view.locator("[data-method=lora]").check()
        view.locator("[id='lora.rank']").fill("32")
        view.locator("[data-method=checkpointing]").check()
        view.locator("#optimizer").select_option("sgd")
        view.get_by_label("Tokens to train on").fill("250M")
        settled(view)
        _, verb, *arguments = shlex.split(view.locator("#command").inner_text())
        assert verb == "plan" and "lora(rank=32)+checkpointing+sgd" in arguments
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == 0, (arguments, result.output)
        (plan,) = json.loads(result.stdout)["plans"]
        for title, value in (
            ("GPU-hours", plan["train"]["gpu_hours"]),
            ("kWh at most", plan["train"]["kwh"]),
            ("ms/token, running", plan["decode"]["ms_per_token"]),
        ):
            shown = float(view.locator("#speeds div", has_text=title).locator("dd").inner_text().replace(",", ""))
            assert math.isclose(shown, value, rel_tol=5e-3), title
        view.locator("#figures summary").click()
        cells = view.locator("#phases tr", has_text="weights").first.locator("td").all_inner_texts()
        held = [phase["weights_bytes"] for kind in ("train", "decode") for phase in plan[kind]["phases"].values()]
        assert cells == [memory_text(each) for each in held]
        for note in plan["notes"]:
            assert note in view.locator("#notes").inner_text()
        assert memory.VERIFIED in view.locator("#notes").inner_text()

    def test_bars_move_with_the_sliders(self, view: Page) -> None:
        assert view.locator("#device").input_value() == "L4"
        before = share(view, "activations")
        slider = view.get_by_label("Tokens of a row, by steps")
        slider.focus()
        view.keyboard.press("ArrowLeft")
        settled(view)
        assert 0 < share(view, "activations") < before and view.locator("#sequence").input_value() == "1536"
        view.locator("#batch").fill("1")
        settled(view)
        assert view.locator("#batch-slider").input_value() == "0"
        said = view.locator("#bar-train-backward .track").get_attribute("aria-label") or ""
        assert said.startswith("Training, backward: ") and "activations" in said and "optimizer state" in said

    def test_a_recipe_can_be_copied_and_loads(self, view: Page, tmp_path: Path) -> None:
        view.get_by_label("Memory in GB").fill("12")
        advised(view)
        choices = view.locator("#training tbody tr")
        on = recommend.budgeted(find("L4"), 12 * 10**9)
        dims = dims_of(config_of("llama-1b"))
        advice = recommend.advise(dims, [], on, batch=64, sequence=2048, tokens=10**9)
        assert choices.locator("th").all_inner_texts() == [choice.name for choice in advice.fitting]
        assert choices.nth(0).locator("input").is_checked()
        for place in (0, len(advice.fitting) - 1):
            choices.nth(place).locator("input").check()
            view.locator("#copy-recipe").click()
            view.locator("#said", has_text="Copied the recipe.").wait_for(state="attached")
            copied = view.evaluate("navigator.clipboard.readText()")
            (tmp_path / "planned.yaml").write_text(copied, encoding="utf-8")
            load.load(tmp_path / "planned.yaml")
            assert yaml.parse(copied).data == recommend.recipe(advice.fitting[place], "", "llama-1b", "texts/", 10**9)
            view.evaluate("document.getElementById('said').textContent = ''")
        packed = view.locator("#running tbody tr:has(input)").last
        packed.locator("input").check()
        view.locator("#batch").fill("1")
        advised(view)
        assert packed.locator("input").is_checked()
        (tmp_path / "packed.yaml").write_text(view.locator("#recipe").inner_text(), encoding="utf-8")
        (step,) = load.load(tmp_path / "packed.yaml").steps
        assert isinstance(step, ApplyStep) and settings_of(step.apply) == {"method": "kmeans"}

    def test_too_little_memory_says_what_is_needed(self, view: Page) -> None:
        view.get_by_label("Memory in GB").fill("1")
        advised(view)
        assert "Nothing trains this model in 1.00 GB" in view.locator("#training-error").inner_text()
        assert "Nothing runs this model in 1.00 GB" in view.locator("#running-error").inner_text()
        assert view.locator("#chosen").is_hidden() and view.locator("#training").is_hidden()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                '{"model_type": "lama"}',
                ["Line 1: No family covers model_type 'lama'", "llama, mistral", "Nearest: 'llama'"],
            ),
            ('{"model_type": "llama",\n"hidden_size": 8', ["This is not valid JSON"]),
            ("[1]", ["This is no JSON object"]),
            ("", ["Paste the content of a config.json"]),
            (json.dumps({**config_of("gpt2"), "n_head": 7}, indent=1), ["num_attention_heads = 7 is not possible"]),
            (
                json.dumps({**config_of("llama-1b"), "vocab_size": 0}, indent=1),
                ["Line 8: vocab_size = 0 is not possible"],
            ),
        ],
    )
    def test_a_wrong_config_is_told_what_is_wrong(self, view: Page, text: str, said: Sequence[str]) -> None:
        view.get_by_label("Preset").select_option("")
        view.get_by_label("config.json", exact=True).fill(text)
        settled(view)
        error = view.locator("#config-error").inner_text()
        assert all(part in error for part in said), error
        assert view.locator("#config").get_attribute("aria-invalid") == "true"
        assert "stale" in (view.locator("#bars").get_attribute("class") or "")
        view.get_by_label("config.json", exact=True).fill(json.dumps(tiny.config("mixtral").to_dict()))
        settled(view)
        assert view.locator("#config-error").inner_text() == "" == view.locator("#plan-error").inner_text()
        assert view.locator("#about").inner_text() == "mixtral, 64 positions"
        assert view.locator("#sequence").input_value() == "64"

    def test_errors_stand_beside_their_fields(self, view: Page) -> None:
        view.locator("#batch").fill("0")
        settled(view)
        assert "batch = 0 is not possible" in view.locator("#batch-error").inner_text()
        view.locator("#batch").fill("1")
        view.locator("#sequence").fill("")
        settled(view)
        assert "sequence = None is not possible" in view.locator("#sequence-error").inner_text()
        view.locator("#sequence").fill("100")
        view.locator("#data_tokens").fill("many")
        assert "Give a whole number" in view.locator("#data_tokens-error").inner_text()
        view.locator("#data_tokens").fill("1M")
        view.locator("[data-method=lora]").check()
        view.locator("[id='lora.rank']").fill("99999")
        settled(view)
        assert "lora.rank = 99999 is not possible; allowed: 1 to" in view.locator("[id='lora.rank-error']").inner_text()

    @pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "dark")])
    def test_nothing_overflows_and_axe_finds_nothing(
        self, browser: Browser, address: str, width: int, height: int, scheme: str
    ) -> None:
        size = {"width": width, "height": height}
        with browsers.opened(browser, address, viewport=size, color_scheme=scheme) as view:
            view.get_by_label("Preset").select_option("")
            view.get_by_label("config.json", exact=True).fill(json.dumps(config_of("gpt2")))
            for box in view.locator("[data-method]").all()[-2:]:
                box.check()
            for details in view.locator("details").all():
                details.evaluate("node => { node.open = true; }")
            advised(view)
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            assert browsers.serious(view) == []


def memory_text(size: int) -> str:
    from hayless.core.units import format_bytes

    return format_bytes(size)
