"""Recipes from YAML: what is right is read, and every mistake is named with its place."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.errors import RequestError
from hayless.core.registry import configure
from hayless.recipe import yaml
from hayless.recipe.load import load
from hayless.recipe.schema import ApplyStep, MeasureStep, Recipe, TrainStep, json_schema

GOOD = """\
name: palette
model: models/small
data:
  sources: [{path: texts}]
steps:
  - apply: {method: kmeans, bits: 4}
  - train:
      tokens: 2M
      optimizer: {learning_rate: 1e-3}
  - measure
  - save
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_is_read(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, GOOD))
    assert recipe.model.path == "models/small"
    first, second, third, _ = recipe.steps
    assert isinstance(first, ApplyStep) and first.apply.method == "kmeans"
    assert isinstance(second, TrainStep) and second.train.tokens == 2_000_000
    assert second.train.optimizer.method == "adamw" and second.train.objective.method == "lm"
    assert isinstance(third, MeasureStep) and third.measure.quality


def decoded(*steps: object, **more: object) -> Recipe:
    return load({"name": "x", "model": "m", "data": {"sources": [{"path": "t"}]}, "steps": list(steps), **more})


def test_a_recipe_says_how_its_model_is_decoded() -> None:
    for named in ("speculative", {"draft": "lookup"}, {"method": "speculative"}):
        recipe = decoded({"decode": {"draft": named}}, "measure")
        assert recipe.decoding is not None and recipe.decoding.draft == configure("speculative")
    recipe = decoded({"decode": {"cache": {"bits": 2}}}, "measure")
    assert recipe.decoding is not None and recipe.decoding.method == configure("kv", bits=2)
    recipe = decoded({"decode": {"exit": {"threshold": 0.8}}}, "measure")
    assert recipe.decoding is not None and recipe.decoding.method == configure("early_exit", threshold=0.8)
    assert decoded("measure").decoding is None


@pytest.mark.parametrize(
    ("steps", "more", "message"),
    [
        ([{"decode": {"draft": {"tokens": 17}}}, "measure"], {}, r"steps.0.decode.draft.tokens: 17"),
        ([{"decode": {"draft": {"method": "kmeans"}}}, "measure"], {}, "steps.0.decode.draft"),
        ([{"apply": {"method": "kmeans", "importance": "fisher"}}], {"data": None}, "kmeans is calibrated on text"),
        ([{"apply": "kmeans"}], {"calibration": {"tokens": 64}}, "calibration is for methods that need text"),
        ([{"decode": {}}, "measure"], {}, "draft, exit or cache: give one"),
        ([{"decode": {"draft": "speculative", "cache": "kv"}}, "measure"], {}, "draft, exit or cache: give one"),
        ([{"decode": {"cache": {"residual": 40}}}, "measure"], {}, "residual is 40, no multiple of group_size 32"),
        ([{"decode": {"draft": "speculative"}}], {}, "add a measure step"),
        ([{"decode": {"draft": "speculative"}}, {"measure": {"decode": False}}], {}, "add a measure step"),
        ([{"decode": {"draft": "speculative"}}] * 2 + ["measure"], {}, "decode twice"),
        (["measure", {"decode": {"draft": "speculative"}}], {}, "decode after measure"),
        ([{"decode": {"draft": "speculative"}}, "measure"], {"model": {"path": "m", "task": "reward"}}, "task reward"),
    ],
)
def test_a_way_to_decode_that_cannot_be_is_refused(steps: list[object], more: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decoded(*steps, **more)


def test_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, GOOD))
    text = yaml.write(recipe.model_dump(mode="json", exclude_none=True))
    assert load(write(tmp_path, text)) == recipe


def test_five_mistakes_give_five_messages(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
name: bad name!
model: models/small
data:
  sources: [{path: texts}]
  heldout: 1.5
steps:
  - apply: {method: kmens}
  - train: {tokens: 2M, learning_rat: 0.1}
  - trian: {tokens: 2M}
""",
    )
    with pytest.raises(RequestError) as caught:
        load(path)
    text = str(caught.value)
    assert "5 mistakes" in text
    assert "name (line 1): 'bad name!'" in text
    assert "data.heldout (line 5): 1.5" in text and "less than 1" in text
    assert "steps.0.apply (line 7): 'kmens' is not one of" in text and "Did you mean 'kmeans'?" in text
    assert "steps.1.train.learning_rat (line 8): there is no such field" in text and "tokens" in text
    assert (
        "steps.2 (line 9): 'trian' is not one of apply, train, decode, measure, save" in text
        and "Did you mean 'train'?" in text
    )


def test_what_follows_from_a_mistake_is_not_a_second_one() -> None:
    content = {"name": "x", "model": "m", "data": {"sources": [{"builtin": "stdlb"}]}, "steps": ["measure"]}
    with pytest.raises(RequestError, match=r"has a mistake:\n  - data\.sources\.0\.builtin: 'stdlb'") as caught:
        load(content)
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("bits: 4", "bits: 99"), "steps.0.apply.bits (line 6): 99"),
        (("bits: 4", "bist: 4"), "Did you mean 'bits'?"),
        (("tokens: 2M", "tokens: two"), "a whole number such as"),
        (("tokens: 2M", "tokens: 2M\n      steps: 4"), "exactly one of steps and tokens"),
        (("learning_rate: 1e-3", "learning_rate: .nan"), "steps.1.train.optimizer.learning_rate (line 9)"),
        (("learning_rate: 1e-3", "lr: 1e-3"), "there is no such field"),
        (("  sources: [{path: texts}]", "  sources: []"), "data.sources"),
        (("name: palette", "name: ../../etc"), "name (line 1)"),
        (("model: models/small", "model: {}"), "exactly one of path and config"),
        (("name: palette", "nmae: palette"), "Did you mean 'name'?"),
    ],
)
def test_mistakes_name_field_line_and_way_out(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        load(write(tmp_path, GOOD.replace(*change)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x\n", "line 2: aliases"),
        ("a: !!python/object/apply:os.system [echo]\n", "line 1: the tag"),
        ("a: 1\na: 2\n", "line 2"),
        ("a: [1, 2\n", "line"),
        ("[" * 60 + "]" * 60, "nested more than"),
        ("- a\n- b\n", "holds no recipe"),
        ("", "holds no recipe"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_tricks_and_broken_yaml_do_nothing(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load(write(tmp_path, text))


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RequestError, match="not UTF-8"):
        load(tmp_path / "latin.yaml")
    with pytest.raises(RequestError, match="cannot be read"):
        load(tmp_path)


def test_order_that_cannot_work_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("  - train:", "  - apply: {method: magnitude, sparsity: 0.5}\n  - train:")
    with pytest.raises(RequestError, match="magnitude → kmeans"):
        load(write(tmp_path, text))


def test_steps_that_need_data_say_so(tmp_path: Path) -> None:
    text = GOOD.replace("data:\n  sources: [{path: texts}]\n", "")
    with pytest.raises(RequestError, match="needs data"):
        load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("assignment", "found"),
    [
        ("train.tokens=3M", lambda r: r.steps[1].train.tokens == 3_000_000),
        ("steps.1.train.batch_size=16", lambda r: r.steps[1].train.batch_size == 16),
        ("kmeans.bits=3", lambda r: r.steps[0].apply.bits == 3),
        ("train.optimizer.learning_rate=3e-4", lambda r: r.steps[1].train.optimizer.learning_rate == 3e-4),
        ("train.optimizer=sgd", lambda r: r.steps[1].train.optimizer.method == "sgd"),
        ("measure.decode=false", lambda r: r.steps[2].measure.decode is False),
        ("model=elsewhere", lambda r: r.model.path == "elsewhere"),
        ("model.dtype=bfloat16", lambda r: r.model.dtype == "bfloat16" and r.model.path == "models/small"),
        ("data.sources.0.path=b", lambda r: r.data.sources[0].path == "b"),
        ("seed=7", lambda r: r.seed == 7),
    ],
)
def test_overrides(tmp_path: Path, assignment: str, found: object) -> None:
    recipe = load(write(tmp_path, GOOD), [assignment])
    assert callable(found) and found(recipe)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("kmeans.bits", "write key=value"),
        ("=3", "write key=value"),
        ("kmeens.bits=3", "Did you mean 'kmeans'?"),
        ("steps.9.train.tokens=1", "not a number from 0 to 3"),
        ("name.deep=1", "has no field"),
        ("train.tokenz=1", "there is no such field"),
        ("kmeans.bits=*x", "aliases"),
    ],
)
def test_bad_overrides(tmp_path: Path, assignment: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        load(write(tmp_path, GOOD), [assignment])
    assert message in str(caught.value)


def test_override_that_fits_two_places(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="2 places"):
        load(write(tmp_path, GOOD + "  - train: {tokens: 1k}\n"), ["train.tokens=1"])


def test_schema_for_editors_names_methods_and_docs() -> None:
    schema = json_schema()
    text = str(schema)
    assert "kmeans" in text and "magnitude" in text and schema["properties"]["steps"]["type"] == "array"
    assert all("description" in field for field in schema["properties"].values())


def test_python_objects_are_the_same_recipe(tmp_path: Path) -> None:
    built = Recipe.model_validate(
        {
            "name": "palette",
            "model": "models/small",
            "data": {"sources": [{"path": "texts"}]},
            "steps": [
                {"apply": {"method": "kmeans", "bits": 4}},
                {"train": {"tokens": 2_000_000, "optimizer": {"learning_rate": 1e-3}}},
                "measure",
                "save",
            ],
        }
    )
    assert built == load(write(tmp_path, GOOD))


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(_values)
def test_any_data_is_a_recipe_or_a_request_error(value: object) -> None:
    if isinstance(value, dict):
        with pytest.raises(RequestError):
            load(value)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_parses_or_is_a_request_error(text: str) -> None:
    with contextlib.suppress(RequestError):
        yaml.parse(text)
