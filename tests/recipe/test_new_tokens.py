"""Recipes that add tokens: what is saved is what was predicted, and where only new rows train, nothing else moves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hayless.core.cost import gradient_bytes, optimizer_bytes, training_cost, weight_bytes
from hayless.core.errors import NotSupported, RequestError, WorkError
from hayless.core.registry import configure
from hayless.measure.files import file_bytes
from hayless.model.load import load_model, load_tokenizer
from hayless.model.vocabulary import training_alone
from hayless.recipe.load import load
from hayless.recipe.prediction import predict, train_shape, walk
from hayless.recipe.schema import Recipe
from hayless.recipe.start import Start
from hayless.train.loop import Loop
from hayless.train.update import make_updater
from tests import asset
from tests.data import made
from tests.recipe.running import CONFIG, TRAIN, quietly, recipe

MARKERS = {"tokens": ["<|ask|>"], "special": ["<|say|>"]}
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|say|>{{ m.content }}{{ eos_token }}{% endfor %}"
EMBEDDING = "model.embed_tokens.weight"


def base(folder: Path, *, tied: bool = True, dtype: str = "float32") -> Path:
    """A small model and its tokenizer, whose chat template writes a token that it does not have yet."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**CONFIG, "tie_word_embeddings": tied, "vocab_size": 300})
    transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder / "base")
    words = copy.deepcopy(made.tokenizer())
    assert len(words) == 300
    words.chat_template = TEMPLATE
    words.save_pretrained(folder / "base")
    return folder / "base"


def added(folder: Path, model: Path, *steps: Any, tokens: Any = MARKERS) -> Recipe:
    """A recipe over chats in which both markers stand."""
    messages = [
        [{"role": "user", "content": f"<|ask|>{n} hay?"}, {"role": "assistant", "content": f"{n} bales <|ask|>"}]
        for n in range(24)
    ]
    path = made.write_lines(folder / "chats.jsonl", [{"messages": turns} for turns in messages])
    data = {"sources": [{"path": str(path)}], "heldout": 0.3, "near_duplicates": False, "allow": ["special_in_chat"]}
    return recipe(folder, *(steps or [only()]), model={"path": str(model), "new_tokens": tokens}, data=data)


def only(**more: Any) -> dict[str, Any]:
    return {"train": {**TRAIN, "objective": "sft", "sequence_length": 64, "only": "new_tokens", **more}}


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_rows_of_new_tokens_differ_from_the_base(tmp_path: Path, tied: bool) -> None:
    model = base(tmp_path, tied=tied)
    wanted = added(tmp_path, model, only(optimizer={"method": "adamw", "learning_rate": 0.1}))
    done, said = quietly(wanted, tmp_path / "run")
    assert "new tokens: '<|ask|>' (300), '<|say|>' (301)" in said
    figures = predict(wanted).figures
    trained = 2 * 32 * (1 if tied else 2)
    assert done.receipt.measured("trainable_parameters") == figures["trainable_parameters"] == trained
    assert done.receipt.measured("parameters") == figures["parameters"]
    assert file_bytes(done.folder / "model").tensors == figures["file_bytes"]

    before, after = (load_file(folder / "model.safetensors") for folder in (model, done.folder / "model"))
    assert before.keys() == after.keys()
    tables = {name for name in after if after[name].shape != before[name].shape}
    assert tables == ({EMBEDDING} if tied else {EMBEDDING, "lm_head.weight"})
    assert all(torch.equal(before[name], after[name][: len(before[name])]) for name in before)
    start = Start(wanted, tmp_path / "again", lambda *_: None, lambda _: None).model().state_dict()
    assert all((after[name][-2:] != start[name][-2:]).any(dim=1).all() for name in tables)

    words = transformers.AutoTokenizer.from_pretrained(done.folder / "model")
    ids = words("<|ask|>1 hay<|say|>", return_tensors="pt").input_ids
    assert ids[0, 0] == 300 and ids[0, -1] == 301 and words.added_tokens_decoder[301].special
    plain = transformers.AutoModelForCausalLM.from_pretrained(done.folder / "model")
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, load_model(done.folder / "model")(ids).logits)
    with pytest.raises(RequestError, match=r"model\.new_tokens\.tokens = '<\|ask\|>' is not possible.* token 300"):
        predict(added(tmp_path, done.folder / "model"))


def test_stopped_and_gone_on_the_rows_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = added(tmp_path, base(tmp_path), only(steps=6, checkpoint_every=2))
    whole, _ = quietly(wanted, tmp_path / "whole")
    update = Loop._step

    def stopping(self: Loop, *given: Any, **named: Any) -> None:
        if self.state.step == 3:
            raise KeyboardInterrupt
        update(self, *given, **named)

    monkeypatch.setattr(Loop, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        quietly(wanted, tmp_path / "stopped")
    monkeypatch.undo()
    done, said = quietly(wanted, tmp_path / "stopped")
    one, other = (load_file(run.folder / "model" / "model.safetensors") for run in (whole, done))
    assert "Going on from step 2" in said and all(torch.equal(one[name], other[name]) for name in one)


def test_a_new_model_has_room_for_them_in_its_vocabulary(tmp_path: Path) -> None:
    model = {
        "config": CONFIG,
        "tokenizer": {"level": "bpe", "vocab_size": 300},
        "new_tokens": {"tokens": ["the river"]},
    }
    wanted = recipe(tmp_path, model=model, data={"sources": [{"path": str(rivers(tmp_path))}], "heldout": 0.3})
    done, _ = quietly(wanted, tmp_path / "run")
    words = load_tokenizer(done.folder / "model")
    assert words("by the river", add_special_tokens=False)["input_ids"][-1] == len(words) - 1 <= 299
    assert load_model(done.folder / "model").config.vocab_size == 300
    assert file_bytes(done.folder / "model").tensors == predict(wanted).figures["file_bytes"]
    with pytest.raises(RequestError, match="leaves 258 entries beside new_tokens"):
        recipe(
            tmp_path, model={**model, "tokenizer": {"vocab_size": 261}, "new_tokens": {"tokens": ["a b", "c d", "e"]}}
        )


def rivers(folder: Path) -> Path:
    for number in range(6):
        path = folder / "rivers" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number} barns stand by the river.\n" * (number + 3))
    return folder / "rivers"


def test_reward_models(tmp_path: Path) -> None:
    pairs = [{"prompt": f"{n}: ", "chosen": f"<|ask|>{n} oats", "rejected": f"{n} stones<|ask|>"} for n in range(24)]
    path = made.write_lines(tmp_path / "pairs.jsonl", pairs)
    data = {"sources": [{"path": str(path)}], "heldout": 0.3, "near_duplicates": False}
    tokens = {"tokens": ["<|ask|>"]}
    step = {**TRAIN, "objective": "reward"}
    model = {"path": str(base(tmp_path)), "task": "reward", "new_tokens": tokens}
    whole, _ = quietly(recipe(tmp_path, {"train": step}, model=model, data=data), tmp_path / "whole")
    assert load_model(whole.folder / "model", task="reward").get_input_embeddings().weight.shape[0] == 301
    alone = {"train": {**step, "only": "new_tokens"}}
    with pytest.raises(RequestError, match="score head, which is new"):
        predict(recipe(tmp_path, alone, model=model, data=data))
    model = {**model, "path": str(whole.folder / "model"), "new_tokens": {"tokens": ["oats"]}}
    wanted = recipe(tmp_path, alone, model=model, data=data)
    done, _ = quietly(wanted, tmp_path / "alone")
    assert done.receipt.measured("trainable_parameters") == predict(wanted).figures["trainable_parameters"] == 32
    before, after = (load_file(run.folder / "model" / "model.safetensors") for run in (whole, done))
    assert [name for name in before if not torch.equal(before[name], after[name][: len(before[name])])] == []


def test_adapters_come_after(tmp_path: Path) -> None:
    model, lora = base(tmp_path), {"apply": {"method": "lora", "rank": 2}}
    sft = {"train": {**only()["train"], "only": None}}
    with pytest.raises(RequestError, match="would leave the model's adapter as it is"):
        predict(added(tmp_path, model, lora, only()))
    wanted = added(tmp_path, model, only(steps=1), lora, sft)
    done, said = quietly(wanted, tmp_path / "run")
    assert said.count("new tokens stay as they are") == 1
    assert file_bytes(done.folder / "model").tensors == predict(wanted).figures["file_bytes"]
    with pytest.raises(NotSupported, match=r"embed_tokens \(embedding\) is pruned"):
        predict(added(tmp_path, model, {"apply": {"method": "magnitude", "targets": ["embedding"]}}, only()))


def test_tokens_that_stand_nowhere_are_refused(tmp_path: Path) -> None:
    tokens = {"tokens": ["<|ask|>", "<|never|>"]}
    with pytest.raises(WorkError, match=r"new_token_unseen: .*: 1 of 2 \(<\|never\|>\)"):
        quietly(added(tmp_path, base(tmp_path), tokens=tokens), tmp_path / "run")


@pytest.mark.parametrize(
    ("precision", "stored", "tied"),
    [
        ("fp32", "float32", False),
        ("fp32", "bfloat16", True),
        ("autocast", "bfloat16", False),
        ("master", "float32", True),
        ("bf16", "float32", False),
    ],
)
def test_bytes_of_training_are_those_of_live_tensors(tmp_path: Path, precision: Any, stored: str, tied: bool) -> None:
    wanted = added(tmp_path, base(tmp_path, tied=tied, dtype=stored), only(precision=precision))
    start = Start(wanted, tmp_path, lambda *_: None, lambda _: None)
    model = start.model()
    assert start.added is not None
    [stage] = walk(wanted)[0]
    shape = train_shape(stage.train, "cpu")
    with training_alone(model, start.added):
        updater = make_updater(model, precision, configure("adamw"))
        model(torch.tensor([[1, start.added.first, 5, start.added.first + 1]])).logits.float().sum().backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
        assert sum(parameter.nbytes for parameter in model.parameters()) == weight_bytes(stage.ledger, shape.dtype)
        assert sum(parameter.grad.nbytes for parameter in trained) == gradient_bytes(stage.ledger, shape)  # type: ignore[union-attr]
        updater.begin(1.0, None)
        updater.step(updater.norm())
        moments = updater.optimizer_state()[0].values()
        assert sum(tensor.nbytes for tensor in moments) == optimizer_bytes(stage.ledger, shape)
        masters = sum(tensor.nbytes for tensor in updater.weights().values()) if precision == "master" else 0
        assert masters == training_cost(stage.ledger, shape).phases["step"].master


def test_the_recipe_that_ships_is_predicted() -> None:
    wanted = load(asset.FOLDER.parents[2] / "recipes" / "new-tokens.yaml", [f"model.path={asset.FOLDER}"])
    found = predict(wanted)
    assert found.ledger.dims.vocab_size == 2051 and found.figures["trainable_parameters"] == 3 * 128
