"""Studies from YAML: rows, grids, seeds and budgets become recipes; mistakes are named."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hayless.core.errors import RequestError
from hayless.recipe import yaml
from hayless.recipe.schema import Recipe, TrainStep
from hayless.study.results import budget_words, read_runs, read_study
from hayless.study.schema import RESERVED, Budget, contenders, load, slug_of
from tests.study import folders


def study(**more: Any) -> dict[str, Any]:
    return {"name": "tried", "rows": [{"label": "base", "recipe": folders.recipe("any")}], **more}


def trained(recipe: Recipe) -> list[int]:
    return [step.train.total_steps for step in recipe.steps if isinstance(step, TrainStep)]


def test_a_study_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.write(folders.recipe("any")), encoding="utf-8")
    (tmp_path / "study.yaml").write_text(
        f"""\
name: tried
budget: {{seconds: 90}}
baseline: second
rows:
  - label: first
    recipe: {tmp_path / "recipe.yaml"}
    published: {{file_bytes: 2.1e6}}
  - label: second
    recipe: {tmp_path / "recipe.yaml"}
    overrides: {{train.batch_size: 4, train.optimizer: sgd}}
""",
        encoding="utf-8",
    )
    found = load(tmp_path / "study.yaml")
    assert found.path == Path("runs/tried") and found.rows[0].published == {"file_bytes": 2.1e6}
    first, second = contenders(found)
    assert (first.label, first.slug, first.recipe.name) == ("first", "first", "first")
    step = second.recipe.steps[0]
    assert isinstance(step, TrainStep) and step.train.batch_size == 4 and step.train.optimizer.method == "sgd"


def test_grids_and_seeds_multiply_rows() -> None:
    given_ = study(seeds=[3, 4])
    given_["rows"][0]["grid"] = {"train.batch_size": [2, 4], "adamw.learning_rate": [1e-3]}
    found = contenders(load(given_))
    assert [contender.label for contender in found] == [
        f"base (batch_size={size}, learning_rate=0.001, seed={seed})" for size in (2, 4) for seed in (3, 4)
    ]
    assert len({contender.slug for contender in found}) == 4
    for contender, size, seed in zip(found, (2, 2, 4, 4), (3, 4, 3, 4), strict=True):
        step = contender.recipe.steps[0]
        assert isinstance(step, TrainStep) and (step.train.batch_size, step.train.seed) == (size, seed)
        assert contender.recipe.seed == seed and contender.row.label == "base"


def test_a_budget_of_tokens_sets_every_training_step() -> None:
    given_ = study(budget={"tokens": "2M"})
    recipe = given_["rows"][0]["recipe"]
    recipe["steps"][0] = {"train": {"steps": 300}}
    alone = contenders(load(given_))[0].recipe
    assert trained(alone) == [-(-2_000_000 // (8 * 512))]
    recipe["steps"].insert(1, {"train": {"steps": 100}})
    both = trained(contenders(load(given_))[0].recipe)
    assert both[0] == pytest.approx(3 * both[1], abs=3) and sum(both) * 8 * 512 == pytest.approx(2e6, rel=0.01)


def test_a_budget_of_flops_buys_each_row_what_its_own_ledger_says(tmp_path: Path) -> None:
    """A row that starts from what another makes is priced by that one's shape, before the model is there."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = {"config": {"model_type": "llama", "vocab_size": 300, **sizes}, "tokenizer": {"vocab_size": 300}}
    start = {"path": str(tmp_path / "base" / "model")}
    train = {"tokens": 5000, "batch_size": 1, "sequence_length": 16}
    rows = [
        ("base", model, [{"train": train}]),
        ("frozen", start, [{"apply": {"method": "lora", "rank": 1}}, {"train": train}]),
        ("again", start, [{"train": {**train, "memory": ["checkpointing"]}}]),
        ("twice", start, [{"train": train}, {"train": {**train, "tokens": 10_000}}]),
        ("packed", start, [{"apply": "kmeans"}, {"measure": {}}]),
    ]
    data = {"sources": [{"path": "texts"}]}
    asked = [
        {"label": label, "recipe": {"name": label, "model": where, "data": data, "steps": steps}}
        for label, where, steps in rows
    ]
    found = contenders(load({"name": "flops", "rows": asked, "budget": {"flops": 2e9}, "folder": str(tmp_path)}))
    spent = [[step.train.tokens or 0 for step in each.recipe.steps if isinstance(step, TrainStep)] for each in found]
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 160) + 300 * 64  # matrices that multiply: blocks and head
    attention = 2 * 2 * 64 * (16 + 1)  # FLOPs of a token forward: QK' and PV over the positions a causal mask leaves
    price = 6 * weights + 3 * attention
    assert spent[0][0] == pytest.approx(2e9 / price, rel=1e-3)
    assert spent[1][0] > 1.3 * spent[0][0], "frozen weights have no gradient of their own"
    assert spent[2][0] < 0.85 * spent[0][0], "what is computed again is paid for"
    assert spent[3][1] == pytest.approx(2 * spent[3][0], rel=0.01)
    assert sum(spent[3]) == pytest.approx(spent[0][0], abs=3)
    assert spent[4] == []


def test_quoted_overrides_stay_text() -> None:
    given_ = study()
    given_["rows"][0]["overrides"] = {"model.path": "odd: [path] # é 'x'", "train.prompts": ["a", "- b"]}
    recipe = contenders(load(given_))[0].recipe
    step = recipe.steps[0]
    assert recipe.model.path == "odd: [path] # é 'x'"
    assert isinstance(step, TrainStep) and step.train.prompts == ("a", "- b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": []}, "at least 1 item"),
        ({"rows": [{"label": "a", "recipe": "x", "colour": 1}]}, "rows.0.colour: there is no such field"),
        ({"rows": [{"label": "a", "recipe": "x", "grid": {"seed": []}}]}, "seed has no values"),
        ({"rows": [{"label": "a", "recipe": "x"}, {"label": "a", "recipe": "x"}]}, "'a' stands twice"),
        ({"baseline": "bass"}, "Did you mean 'base'?"),
        ({"budget": {}}, "exactly one of tokens, flops, seconds and memory"),
        ({"budget": {"tokens": 5, "seconds": 5}}, "exactly one of tokens, flops, seconds and memory"),
        ({"budget": {"flops": 0}}, "budget.flops"),
        ({"budget": {"tokens": 0}}, "budget.tokens"),
        ({"budget": {"memory": "4 horses"}}, "4GB|24GB"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"parallel": 0}, "parallel"),
        ({"name": "../x"}, "name"),
        ({"rows": [{"label": "a", "recipe": "none.yaml"}]}, r"Row 'a': There is no file none\.yaml"),
        ({"rows": [{"label": "a", "recipe": {"name": "x"}}]}, "Row 'a': recipe has 2 mistakes"),
        ({"rows": [{"label": "a", "recipe": folders.recipe("x"), "overrides": {"sead": 1}}]}, "Did you mean 'seed'"),
        ({"rows": [{"label": x, "recipe": folders.recipe("x")} for x in "aA"]}, "differ in more than case"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        contenders(load(study(**change)))


def test_no_study(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(RequestError, match="holds no study"):
        load(tmp_path / "list.yaml")
    with pytest.raises(RequestError, match="holds no study"):
        read_study(tmp_path)
    with pytest.raises(RequestError, match="at least one"):
        read_runs([])


@given(st.text(min_size=1, max_size=100))
def test_any_label_has_a_folder_that_stays_inside(label: str) -> None:
    slug = slug_of(label)
    assert set(slug) <= set(string.ascii_letters + string.digits + "._-") and slug[0] not in "._-" and len(slug) <= 70
    assert slug.lower() not in RESERVED
    Recipe.model_validate({**folders.recipe("any"), "name": slug})


def test_labels_that_look_alike_have_different_folders() -> None:
    assert len({slug_of(label) for label in ("a b", "a/b", "a-b", "a=b", "data", "../data", "é", "ü")}) == 8


def test_any_folders_are_read_together(tmp_path: Path) -> None:
    one, two = (folders.run(tmp_path / side, "same") for side in ("a", "b"))
    found = read_runs([one, two])
    assert [record.label for record in found.records] == [f"same ({one})", f"same ({two})"]
    assert found.table().baseline == f"same ({one})" and read_runs([one]).name == "a"


def test_budgets_in_words() -> None:
    assert budget_words(Budget(tokens=2_000_000)) == "2,000,000 tokens of training a run"
    assert budget_words(Budget(flops=3e14)) == "3e14 FLOPs of training a run"
    assert budget_words(Budget(seconds=90)) == "1 min 30 s a run"
    assert budget_words(Budget(memory=24 * 10**9)) == "24.0 GB of memory a run" and budget_words(None) == ""
