"""LayerSkip's loss against models that are cut by hand, and its schedules against the paper's formulas."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hayless.core.activations import record
from hayless.core.cost import TrainShape, training_cost
from hayless.core.errors import RequestError
from hayless.core.families import ledger_of
from hayless.core.forward import RunShape
from hayless.core.registry import configure, method_of
from hayless.core.replay import replay
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.measure.activations import saved_activations
from hayless.methods.decoding.speculative.config import SpeculativeConfig
from hayless.methods.decoding.speculative.part import Speculative
from hayless.methods.objectives.layerskip.config import LayerSkipConfig
from hayless.methods.objectives.layerskip.schedule import dropped, shares
from hayless.model.anatomy import Anatomy, dims_of_model
from hayless.recipe.load import load
from hayless.recipe.prediction import predict
from tests import tiny
from tests.train import source
from tests.train.conftest import one_thread  # noqa: F401

LAYERS = 4


def deep(name: str) -> Any:
    """Tiny model `name` with 4 layers, in training mode, without dropout of its own."""
    config = tiny.config(name)
    config.num_hidden_layers = LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0]] * LAYERS
    for name in ("dropout", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 5
    return model.train()


def objective(**options: Any) -> Any:
    config = LayerSkipConfig(**options)
    return method_of(config).load()(config)


def cut(model: Any, kept: list[int]) -> Any:
    """A copy that has only these blocks, in evaluation mode."""
    model = copy.deepcopy(model)
    blocks = Anatomy.of(model).blocks
    chosen = [blocks[number] for number in kept]
    del blocks[:]
    blocks.extend(chosen)
    return model.eval()


def row_losses(model: Any, batch: Any) -> torch.Tensor:
    """The cross-entropy of each row (b,), summed over its targets, each of its documents run alone."""
    return torch.stack(
        [likelihood().loss(model, source.rows(batch, row, row + 1)).total for row in range(len(batch.input_ids))]
    ).detach()


def likelihood() -> Any:
    return method_of(configure("lm")).load()(configure("lm"))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "opt-350m", "gpt_neox", "gemma2", "mixtral"])
def test_the_loss_is_that_of_models_cut_behind_each_layer(name: str) -> None:
    model, batch = deep(name), source.batch([[5, 4], [9], [2]], 12, seed=5)
    each = [float(row_losses(cut(model, list(range(count))), batch).sum()) for count in range(1, LAYERS + 1)]
    assert len({round(loss, 3) for loss in each}) == LAYERS
    # e(l) = e_scale · (0, 1, 3), and 3 + e_scale · 3 of the last of 4 layers.
    weights = [0.0, 0.5, 1.5, 4.5]
    loss = objective(dropout=0, early_loss=0.5, curriculum="none").loss(model, batch)
    wanted = sum(weight * one for weight, one in zip(weights, each, strict=True)) / sum(weights)
    assert loss.total.item() == pytest.approx(wanted, rel=1e-5)
    assert float(loss.metrics["last_layer"]) == pytest.approx(each[-1], rel=1e-5)
    assert objective().loss(model.eval(), batch).total.item() == pytest.approx(each[-1], rel=1e-5), "in evaluation"


def test_each_row_passes_only_the_layers_it_is_not_dropped_for() -> None:
    model, batch = deep("llama"), source.batch([[12]] * 6, 12, seed=3)
    config = LayerSkipConfig(dropout=0.7, early_loss=0)
    torch.manual_seed(4)
    stays = [torch.rand(6) >= chance for chance in dropped(config, LAYERS, 0, 1)[1:]]
    kept = [[0, *(layer for layer, row_b in enumerate(stays, 1) if row_b[row])] for row in range(6)]
    assert len({tuple(one) for one in kept}) > 2
    wanted = sum(
        float(row_losses(cut(model, one), source.rows(batch, row, row + 1)).sum()) for row, one in enumerate(kept)
    )
    torch.manual_seed(4)
    loss = objective(dropout=0.7, early_loss=0).loss(model, batch)
    assert loss.total.item() == pytest.approx(wanted, rel=1e-5)


def test_gradients_reach_what_a_row_passes_and_nothing_else() -> None:
    model, batch = deep("llama"), source.batch([[9]], 9, seed=5)
    torch.manual_seed(2)
    objective(dropout=0.9, early_loss=0.2, curriculum="none").loss(model, batch).total.backward()
    norms = [float(block.mlp.up_proj.weight.grad.norm()) for block in Anatomy.of(model).blocks]
    chances = dropped(LayerSkipConfig(dropout=0.9), LAYERS, 0, 1)
    torch.manual_seed(2)
    gone = [False, *(bool(torch.rand(1) < chance) for chance in chances[1:])]
    assert any(gone) and not all(gone[1:])
    assert [norm == 0 for norm in norms] == gone


def test_layers_are_dropped_as_the_paper_says() -> None:
    config = LayerSkipConfig(dropout=0.2)
    assert dropped(config, 4, 0, 10) == pytest.approx([0, 0.2 * (2 ** (1 / 3) - 1), 0.2 * (2 ** (2 / 3) - 1), 0.2])
    rising = LayerSkipConfig(dropout=0.2, dropout_curriculum="exponential")
    over = [dropped(rising, 4, step, 11)[-1] for step in (0, 5, 10)]
    assert over == pytest.approx([0, 0.2 * (math.sqrt(2) - 1), 0.2])
    assert dropped(config, 1, 0, 1) == [0]
    behind = dropped(LayerSkipConfig(dropout=0.2, exits=(3, 2)), 4, 0, 10)
    assert behind == [0, 0, *dropped(config, 4, 0, 10)[2:]], "what every token goes through stays"


def test_curricula() -> None:
    def on(step: int, **options: Any) -> list[int]:
        found = shares(LayerSkipConfig(early_loss=0.5, **options), 8, step, 80)
        assert sum(found) == pytest.approx(1)
        return [layer for layer, share in enumerate(found) if share > 0]

    turns = [on(step, curriculum="rotational", every=3) for step in range(4)]
    assert turns == [[3, 6, 7], [1, 4, 7], [2, 5, 7], [3, 6, 7]]
    steps = (0, 5, 10, 30, 35, 40, 79)
    assert [len(on(step, curriculum="gradual")) for step in steps] == [1, 2, 3, 7, 7, 7, 7]
    assert on(9, curriculum="gradual") == [6, 7] and on(0, curriculum="none") == [1, 2, 3, 4, 5, 6, 7]
    even = shares(LayerSkipConfig(weights="even", early_loss=0.5, every=2), 5, 0, 80)
    assert even == [0, 0, 1 / 3, 0, 2 / 3]
    assert on(0, exits=(3, 6), every=1) == [2, 5, 7] and on(2, exits=(3, 6), every=3) == [2, 5, 7]
    assert on(1, exits=(3, 6), every=3) == [7]
    first = shares(LayerSkipConfig(weights="even", early_loss=1, exits=(1,), every=1), 5, 0, 80)
    assert first == [0.5, 0, 0, 0, 0.5]
    assert shares(LayerSkipConfig(early_loss=0), 4, 0, 1) == [0, 0, 0, 1] and shares(LayerSkipConfig(), 1, 0, 1) == [1]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt-350m", "gpt_neox"])
def test_predicted_activations(name: str) -> None:
    model = deep(name)
    ledger = ledger_of(dims_of_model(model))
    batch = source.batch([[48]] * 4, 48)

    def saved(**options: Any) -> int:
        return saved_activations(model, lambda: objective(curriculum="none", **options).loss(model, batch).total).bytes

    expected = replay(record(ledger, RunShape(4, 48, device="cpu", exits=(2, 3)))).saved
    assert expected.activations + expected.loss == pytest.approx(saved(dropout=0), rel=0.02)
    assert saved(dropout=0.1) == pytest.approx(saved(dropout=0), rel=0.02), "what is not predicted"


def test_the_cost_counts_the_heads_of_an_update() -> None:
    ledger = ledger_of(dims_of_model(deep("llama")))
    shape = TrainShape(batch=2, sequence=16)
    costs = [
        training_cost(ledger, method_of(config).predict_training(shape, config)).work["forward"].flops
        for config in (
            configure("lm"),
            LayerSkipConfig(every=2),
            LayerSkipConfig(every=1),
            LayerSkipConfig(curriculum="gradual"),
            LayerSkipConfig(early_loss=0),
            LayerSkipConfig(exits=(3,), every=1),
            LayerSkipConfig(exits=(2, 3), every=2),
        )
    ]
    head = 2 * 32 * 96 * 2 * 16
    assert [round(cost - costs[0]) for cost in costs] == [0, head, 2 * head, 2 * head, 0, head, head]


def test_exits_that_do_not_go() -> None:
    with pytest.raises(RequestError, match="the model has 4 layers"):
        objective(exits=(4,)).loss(deep("llama"), source.batch([[9]], 9))
    with pytest.raises(ValueError, match="exits has 1"):
        LayerSkipConfig(exits=(1,))


class Stopping(source.Random):
    """Breaks after three updates."""

    def step(self, step: int) -> Any:
        if step >= 3:
            raise RuntimeError("stopped")
        return super().step(step)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """The schedules are functions of the update's number, and rows are dropped by the run's own generators."""
    config = LayerSkipConfig(dropout=0.5, every=2, dropout_curriculum="exponential")

    def run(folder: str, batches: Any) -> dict[str, torch.Tensor]:
        model = deep("llama")
        options = {"steps": 6, "checkpoint_every": 2, "log_every": 1, "validation": [source.batch([[9]], 9)]}
        source.trainer(tmp_path / folder, model=model, objective=config, batches=batches, **options).run()
        return source.weights(model)

    whole = run("whole", source.Random())
    with pytest.raises(RuntimeError, match="stopped"):
        run("broken", Stopping())
    assert source.same(run("broken", source.Random()), whole)
    lines = source.lines(tmp_path / "whole", "train")
    assert [line["last_layer"] > 0 for line in lines] == [True] * 6


def test_its_own_first_layers_draft_for_a_model_without_loss() -> None:
    model = deep("llama").eval()
    options = SamplingOptions(max_tokens=24, ignore_end=True)
    prompts = [[0, 5, 9, 5, 9], [17]]
    part = Speculative(SpeculativeConfig(draft="self", layers=2, tokens=3, preflight=False), model)
    expected = [one.tokens for one in Engine(model).generate(prompts, options)]
    assert [one.tokens for one in Engine(model, draft=part).generate(prompts, options)] == expected
    assert part.tally.drafted > 0


def test_the_recipe_is_one_and_its_cost_is_known() -> None:
    recipe = load(Path(__file__).resolve().parents[2] / "recipes" / "layerskip.yaml")
    assert recipe.decoding is not None and recipe.decoding.draft.draft == "self"
    assert predict(recipe, "cpu").figures["train_peak_bytes"] > 0
