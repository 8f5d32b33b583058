"""`hayless plan` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hayless.cli.plan import app
from hayless.core.errors import RequestError
from hayless.recipe import yaml
from hayless.recipe.load import load
from tests import tiny
from tests.recipe.running import TRAIN, recipe

TABLES = ["zero", "vram", "lomo", "flash", "speculative", "opt", "scaling"]


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, RequestError):
        raise result.exception
    assert result.exit_code == code, (result.output, result.exception)
    return result


def document(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


@pytest.mark.parametrize("name", TABLES)
def test_published_tables_are_printed_with_their_source(name: str) -> None:
    assert "Printed figures: " in run(name).stdout
    tables = document(name)["tables"]
    assert all(table["rows"] for table in tables) and any(table["source"] for table in tables)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("zero", "--preset", "llama-7b", "--ranks", "8", "--device", "L4"), "8 × L4"),
        (("zero", "--parameters", "70B", "--ranks", "64"), "70.0B on 64 × V100"),
        (("vram", "--preset", "gpt2-xl"), "24.9"),
        (("lomo", "--preset", "gpt2", "--batch", "1", "--seq", "64"), "train gpt2, batch 1"),
        (("flash", "--n", "4096", "--m", "50000"), "N 4,096"),
        (("speculative", "--alpha", "0.8", "--gamma", "4"), "best"),
        (("speculative", "--draft", "0.8,0.9", "--target", "0.9,0.3"), "2.333"),
        (("scaling", "--parameters", "70B"), "1.9366"),
        (("scaling", "--points", "1M:4.1,10M:3.4,100M:2.95"), "L(N) = "),
    ],
)
def test_tables_of_ones_own_numbers(arguments: tuple[str, ...], words: str) -> None:
    assert words in run(*arguments).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preset", "llama-7c"), "llama-7b"),
        (("--preset", "llama-7b", "--batch", "0"), "batch = 0"),
        (("--preset", "llama-7b", "--seq", "-5"), "sequence = -5"),
        (("--preset", "llama-7b", "--precision", "int3"), "bf16"),
        (("--preset", "llama-7b", "--device", "H20"), "H200"),
        (("--preset", "llama-7b", "--compare", "full,qlorra"), "qlorra"),
        (("--preset", "llama-7b", "--data-tokens", "many"), "data_tokens"),
        (("--preset", "llama-7b", "./there"), "not both"),
        (("llama-7b",), "--preset llama-7b"),
        (("zero", "--ranks", "0"), "ranks"),
        (("vram", "--parameters", "0"), "above 0"),
        (("speculative", "--draft", "a", "--target", "0.5"), "draft"),
        (("scaling", "--points", "1M"), "N:LOSS"),
    ],
)
def test_wrong_requests_say_what_is_possible(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        run(*arguments)


def test_a_model_whose_heads_do_not_divide_is_refused(tmp_path: Path) -> None:
    config = tiny.config("llama").to_dict() | {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": None}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(RequestError, match="num_attention_heads"):
        run(tmp_path)


def test_one_model_by_phase_and_several_ways_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.config("llama").to_dict()), encoding="utf-8")
    shown = run(tmp_path, "--seq", "32").stdout
    for words in ("forward", "backward", "prefill", "KV cache", "CUDA context (allowed)", "tokens/s", "yes, "):
        assert words in shown
    by_file = document("model", tmp_path / "config.json", "--seq", "32")
    assert by_file["plans"] == document(tmp_path, "--seq", "32")["plans"]
    picture = tmp_path / "memory.png"
    found = document("--preset", "llama-7b", "--compare", "full,kmeans+lora", "--device", "A100", "--out", picture)
    full, packed = found["plans"]
    assert not full["train"]["fits"] and packed["train"]["fits"]
    assert full["train"]["left_bytes"] == found["device"]["memory_bytes"] - full["train"]["needed_bytes"] < 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    run("--preset", "gpt2", "--out", tmp_path / "memory.doc", code=2)


def test_a_recipe_is_planned_by_its_training_steps(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    content = recipe(tmp_path, {"apply": {"method": "lora"}}, {"train": TRAIN}).model_dump(
        mode="json", exclude_none=True
    )
    path.write_text(yaml.write(content), encoding="utf-8")
    (own,) = document("--recipe", path)["plans"]
    assert own["name"].endswith("step 2") and 0 < own["trainable_parameters"] < own["parameters"]
    (other,) = document("--recipe", path, "--preset", "llama-7b", "--batch", "4", "--checkpointing")["plans"]
    (more,) = document("--recipe", path, "--preset", "llama-7b", "--batch", "4")["plans"]
    assert other["parameters"] > 6.7e9 and other["train"]["peak_bytes"] < more["train"]["peak_bytes"]


def test_the_recommended_recipe_is_written_and_accepted(tmp_path: Path) -> None:
    file = tmp_path / "planned.yaml"
    asked = ("--memory", "6GB", "--preset", "llama-1b", "--data-tokens", "10M", "--seq", "256", "--batch", "4")
    found = document(*asked, "--gpus", "4", "--write", file)
    assert found["fitting"][0]["fits"] and not found["others"][0]["fits"] and "4 × H200" in found["shared"]["title"]
    stages = {}
    for row in found["shared"]["rows"]:
        stages.setdefault(row["way"], []).append(row["needed_bytes"])
    assert all(needs == sorted(needs, reverse=True) and len(needs) == 4 for needs in stages.values())
    assert load(file).model_dump(mode="json")["name"] == "planned"
    shown = run(*asked).stdout
    for words in ("best first", "Does not fit", "optimizer state", "micro_batch_size"):
        assert words in shown
    with pytest.raises(RequestError, match="--data-tokens"):
        run(*asked[:4], "--gpus", "2")
    with pytest.raises(RequestError, match="needs"):
        run("--memory", "1GB", *asked[2:])
    # Many GPUs hold what one does not, on paper; a recipe for them cannot be written.
    many = document("--memory", "1.5GB", *asked[2:], "--gpus", "256")
    assert not many["fitting"] and many["recipe"] is None and any(row["fits"] for row in many["shared"]["rows"])
    assert "not built yet" in run("--memory", "1.5GB", *asked[2:], "--gpus", "256").stdout
    with pytest.raises(RequestError, match="needs"):
        run("--memory", "1.5GB", *asked[2:], "--gpus", "256", "--write", file)


def test_without_tokens_ways_to_run_are_recommended(tmp_path: Path) -> None:
    asked = ("--memory", "6GB", "--preset", "llama-3b")
    found = document(*asked)
    by_name = {row["name"]: row for row in found["running"]}
    assert list(by_name)[:2] == ["as it is", "kmeans(bits=8)"]
    assert [row["fits"] for row in found["running"]] == [name != "as it is" for name in by_name]
    # Units for 8 bits read prompts faster; without units for e4m3, fp8 is slower than bf16.
    reading = {name: row["read_tokens_per_second"] for name, row in by_name.items()}
    ampere = ("--memory", "24GB", *asked[2:], "--seq", "2048", "--device", "A100")
    older = {row["name"]: row["read_tokens_per_second"] for row in document(*ampere)["running"]}
    assert older["int8"] > older["as it is"] > older["fp8"] and reading["fp8"] > reading["kmeans(bits=8)"]
    assert "int8 reads prompts fastest" in run(*ampere).stdout
    # A packed model leaves room for a longer context, which is as long as fits.
    eight, four = (by_name[name]["context"] for name in ("kmeans(bits=8)", "kmeans"))
    assert eight < four
    more = document(*asked, "--seq", eight + 512)["running"]
    assert [row["fits"] for row in more] == [row["context"] >= eight + 512 for row in found["running"]]
    assert found["recipe"]["steps"] == [{"apply": {"method": "kmeans", "bits": 8}}]
    file = tmp_path / "packed.yaml"
    assert "ms/token" in run(*asked, "--write", file).stdout
    assert load(file).name == "packed"
    with pytest.raises(RequestError, match="nothing to do"):
        run("--memory", "24GB", *asked[2:], "--write", file)
    with pytest.raises(RequestError, match=r"Nothing runs this model in 1\.00 GB: the least, kmeans"):
        run("--memory", "1GB", *asked[2:])
    with pytest.raises(RequestError, match="batch = 0"):
        run(*asked, "--batch", "0")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--memory", "6GB", "--compare", "full"),
        ("--memory", "6GB", "--checkpointing"),
        ("--recipe", "r.yaml", "--compare", "full"),
        ("--write", "r.yaml"),
        ("--gpus", "0"),
    ],
)
def test_options_that_would_be_ignored_are_refused(arguments: tuple[str, ...]) -> None:
    run("--preset", "llama-1b", *arguments, code=2)


@pytest.mark.slow
def test_a_preset_is_planned_without_torch() -> None:
    code = (
        "import sys; from hayless.cli import main; main._register(); "
        "main.app(['plan', '--preset', 'llama-7b', '--json'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules or 'matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
