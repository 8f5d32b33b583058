"""New tokens: rows that start where their text was, ties kept, only new rows trained, saved and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hayless.core.errors import NotSupported, RequestError
from hayless.core.families import ledger_of
from hayless.core.registry import configure
from hayless.measure.files import file_bytes
from hayless.model.anatomy import dims_of_model
from hayless.model.load import load_model, load_tokenizer
from hayless.model.new_tokens import Added, NewTokens, extend
from hayless.model.save import save_model
from hayless.model.transform import apply
from hayless.model.vocabulary import grow, training_alone
from tests import tiny
from tests.model.saving import check_same, tokenizer

NEW = ["w5w7", "<|new|>"]
IDS = torch.tensor([[3, 9, 96, 4, 97, 5]])


def tables(model: PreTrainedModel) -> list[Tensor]:
    """Embedding and head."""
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def add(model: PreTrainedModel, words: Any, *tokens: str, special: tuple[str, ...] = ()) -> Added:
    """Tokens given to a tokenizer and to a model."""
    added = extend(words.backend_tokenizer, NewTokens(tokens=tokens, special=special))
    grow(model, added)
    return added


def grown(name: str) -> tuple[PreTrainedModel, Any, Added]:
    model, words = tiny.model(name), tokenizer()
    return model, words, add(model, words, *NEW)


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_rows_are_added_and_the_rest_stays(name: str) -> None:
    before = tiny.model(name)
    with torch.no_grad():
        old_logits = before(IDS[:, :2]).logits
    model, words, added = grown(name)
    assert (added.tokens, added.first, added.end, len(tables(model)[0])) == (tuple(NEW), 96, 98, 98)
    assert model.config.vocab_size == len(words) == 98 and words.convert_tokens_to_ids(NEW) == [96, 97]
    assert words("w3 w5w7 w4", add_special_tokens=False)["input_ids"] == [3, 96, 4]
    tied = before.config.tie_word_embeddings
    embedding, head = tables(model)
    assert (embedding is head) == tied and dims_of_model(model).tied_embeddings == tied
    for table, old in zip((embedding, head), tables(before), strict=True):
        assert torch.equal(table[:96], old)
        # The tokenizer of whole words knew neither text, and cut both into <s>.
        torch.testing.assert_close(table[96:], old[[0, 0]], rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        assert torch.allclose(model(IDS[:, :2]).logits[..., :96], old_logits, atol=1e-6)


def test_a_row_starts_as_the_mean_of_what_its_text_was_cut_into() -> None:
    from hayless.data.tokenizer import train

    words = train(["abcd dcba"], "char", 90)
    model = tiny.model("llama")
    pieces = words("abd", add_special_tokens=False)["input_ids"]
    assert len(pieces) == 3
    old = [table.clone() for table in tables(model)]
    added = add(model, words, "abd")
    # The model had rows to spare.
    assert len(tables(model)[0]) == 96 == model.config.vocab_size and added.first < 96
    assert added.pieces == (tuple(pieces),)
    for table, before in zip(tables(model), old, strict=True):
        assert torch.allclose(table[added.first], before[pieces].mean(0))
        others = torch.arange(96) != added.first
        assert torch.equal(table[others], before[others])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "opt", "opt-350m", "gpt_neox", "mixtral", "gemma3"])
def test_saved_and_read_back(name: str, dtype: str, tmp_path: Path) -> None:
    model = tiny.model(name).to(getattr(torch, dtype))
    words = tokenizer()
    add(model, words, NEW[0], special=(NEW[1],))
    save_model(model, tmp_path / "model", tokenizer=words)
    assert file_bytes(tmp_path / "model").weights == ledger_of(dims_of_model(model)).file_bytes()["model"]
    back = load_model(tmp_path / "model")
    if dtype == "float32":
        check_same(model, back)
    for found, expected in zip(tables(back), tables(model), strict=True):
        assert torch.equal(found, expected)
    again = load_tokenizer(tmp_path / "model")
    assert again.convert_tokens_to_ids(NEW) == [96, 97] and [
        again.added_tokens_decoder[at].special for at in (96, 97)
    ] == [False, True]


@pytest.mark.parametrize(
    "name", ["llama", "llama-tied", "gpt2", "opt", "opt-350m", "gpt_neox", "mixtral", "gemma", "gemma3"]
)
def test_only_new_rows_are_trained_whatever_the_optimizer_does(name: str) -> None:
    model, _, added = grown(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    objects, names = list(model.parameters()), [key for key, _ in model.named_parameters()]
    with torch.no_grad():
        first = model(IDS).logits
    model.train()
    with training_alone(model, added) as parameters:
        assert [parameter for parameter in model.parameters() if parameter.requires_grad] == parameters
        tied = model.config.tie_word_embeddings
        assert [len(parameter) for parameter in parameters] == [2] * (1 if tied else 2)
        optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(IDS, labels=IDS).loss.backward()
            optimizer.step()
    model.eval()
    assert [key for key, _ in model.named_parameters()] == names
    assert all(one is other for one, other in zip(model.parameters(), objects, strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    parts = {"wte", "embed_tokens", "embed_in", "lm_head", "embed_out"}
    assert changed and all(parts & set(key.split(".")) for key in changed)
    for key in changed:
        rows = (model.state_dict()[key] != before[key]).any(dim=1).nonzero()[:, 0].tolist()
        assert rows == [96, 97], key
    with torch.no_grad():
        assert not torch.allclose(model(IDS).logits, first)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_gradients_are_those_of_training_everything() -> None:
    model, _, added = grown("llama-tied")
    model(IDS, labels=IDS).loss.backward()
    whole = model.get_input_embeddings().weight.grad[96:].clone()
    model.zero_grad()
    with training_alone(model, added) as [new]:
        model(IDS, labels=IDS).loss.backward()
        assert torch.allclose(new.grad, whole, atol=1e-7)


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model, _, added = grown("llama-tied")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), training_alone(model, added):
        raise ZeroDivisionError
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert dims_of_model(model).tied_embeddings and tables(model)[0] is tables(model)[1]


def test_what_is_refused() -> None:
    words = tokenizer()
    for known, place in (
        (NewTokens(tokens=("new", "w5")), "tokens = 'w5'"),
        (NewTokens(special=("<s>",)), "special"),
    ):
        with pytest.raises(RequestError, match=f"{place}.*no token yet"):
            extend(words.backend_tokenizer, known)
    assert len(words) == 96
    with pytest.raises(RequestError, match="before the new tokens it had 100, and the model has 96"):
        add(tiny.model("llama"), tokenizer(100), "new")
    for name, method in (("kmeans", {"bits": 2, "iterations": 2}), ("magnitude", {"sparsity": 0.5})):
        changed = tiny.model("llama")
        apply(changed, [configure(name, targets=["embedding"], **method)])
        with pytest.raises(NotSupported, match="embedding"):
            add(changed, tokenizer(), "new")
    with pytest.raises(NotSupported, match="decoders"):
        add(tiny.model("t5"), tokenizer(), "new")
    model, _, added = grown("llama")
    apply(model, [configure("lora", rank=2)])
    with pytest.raises(RequestError, match="adapter"), training_alone(model, added):
        pass
