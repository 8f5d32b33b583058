"""Packing while weights come: the same bits as loading and applying, in little memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hayless.core.errors import FileDamaged, RequestError
from hayless.core.registry import configure
from hayless.model import streaming
from hayless.model.build import build_model
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.streaming import build_and_pack, load_and_pack
from hayless.model.transform import apply, record
from tests import tiny
from tests.live import Live
from tests.methods.running import check_held, predicted
from tests.model.saving import check_same, edit_tensors

NF4 = configure("nf4", targets=("feed_forward",))
KMEANS = configure("kmeans", bits=2, iterations=2, targets=("attention",))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("llama", None), ("llama-tied", "bfloat16"), ("gpt2", None), ("mixtral", "bfloat16"), ("t5", None)],
)
def test_the_same_bits(name: str, dtype: str | None, tmp_path: Path) -> None:
    save_model(tiny.model(name), tmp_path / "model", shard_bytes=20_000)
    expected = load_model(tmp_path / "model", dtype=dtype)
    changes = apply(expected, [NF4, KMEANS])
    model, found = load_and_pack(tmp_path / "model", [NF4, KMEANS], dtype=dtype)
    check_same(expected, model)
    assert found == changes and record(model) == [NF4, KMEANS]
    assert model.config.to_dict() == expected.config.to_dict()


def test_only_one_weight_is_there_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tiny.model("llama"), tmp_path / "model")
    whole = []
    monkeypatch.setattr("hayless.model.streaming.load_model", lambda *_, **__: whole.append(1))
    model, _ = load_and_pack(tmp_path / "model", [configure("nf4")])
    assert not whole
    check_held(model, predicted(model, [configure("nf4")]))


def test_names_of_old_files(tmp_path: Path) -> None:
    """Published GPT-2s lack the prefix, and have masks; other names are left to transformers."""
    model = tiny.model("gpt2")
    save_model(model, tmp_path / "model")

    def old(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)

    edit_tensors(tmp_path / "model", old)
    expected = load_model(tmp_path / "model")
    apply(expected, [NF4])
    check_same(expected, load_and_pack(tmp_path / "model", [NF4])[0])


def test_models_that_are_loaded_whole(tmp_path: Path) -> None:
    model = tiny.model("llama")
    apply(model, [KMEANS])
    save_model(model, tmp_path / "model")
    apply(model, [NF4])
    check_same(model, load_and_pack(tmp_path / "model", [NF4])[0])
    plain = tiny.model("llama")
    save_model(plain, tmp_path / "plain")
    magnitude = configure("magnitude", sparsity=0.5)
    pruned, changes = load_and_pack(tmp_path / "plain", [NF4, magnitude])
    assert record(pruned) == [magnitude, NF4] and len(changes) == 2


def test_what_is_refused(tmp_path: Path) -> None:
    save_model(tiny.model("llama"), tmp_path / "model")
    name = "model.layers.1.mlp.up_proj.weight"

    def nan(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][0, 0] = float("nan")

    def misshapen(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name][1:]

    def lost(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(name)

    def untied(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.spare.weight"] = torch.zeros(2)

    changes = ((nan, RequestError), (misshapen, FileDamaged), (lost, FileDamaged), (untied, FileDamaged))
    for number, (change, error) in enumerate(changes):
        folder = tmp_path / str(number)
        save_model(tiny.model("llama"), folder)
        edit_tensors(folder, change)
        with pytest.raises(error, match=r"up_proj|spare"):
            load_and_pack(folder, [NF4])
    with pytest.raises(RequestError, match="each weight by itself"):
        build_and_pack(tiny.model("llama").config.to_dict(), [configure("magnitude")])


def test_weights_that_are_drawn(tmp_path: Path) -> None:
    config = tiny.model("mixtral").config.to_dict()
    model, (change,) = build_and_pack(config, [configure("nf4")], dtype="float32", seed=3)
    check_held(model, predicted(model, [configure("nf4")]))
    again, _ = build_and_pack(config, [configure("nf4")], dtype="float32", seed=3)
    check_same(model, again)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.isfinite(model(input_ids=ids).logits).all() and change.figures["mean_squared_error"] > 0


@pytest.mark.parametrize("ahead", [0, 2])
def test_memory_stays_below_a_shard(ahead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in files is mapped, not copied; beside it there are the packed model and what one weight needs."""
    config = tiny.config("llama")
    config.num_hidden_layers, config.layer_types = 20, None
    model = build_model(config.to_dict())
    total = sum(parameter.nbytes for parameter in model.parameters())
    shard = total // 5
    save_model(model, tmp_path / "model", shard_bytes=shard)
    live, filled = Live(), streaming._filled

    def watched(*given: Any, **options: Any) -> Any:
        with live:
            return filled(*given, **{**options, "ahead": ahead})

    monkeypatch.setattr(streaming, "_filled", watched)
    packed, (change,) = load_and_pack(tmp_path / "model", [configure("nf4", double=False)])
    assert change.figures["bytes_after"] < live.peak < 1.2 * shard
    del packed
    assert live.now < change.figures["bytes_after"] / 10


@pytest.mark.parametrize("ahead", [0, 1, 3, 9])
def test_what_is_read_ahead_comes_in_order_and_errors_come_through(ahead):
    calls = [partial(torch.full, (2,), float(number)) for number in range(7)]
    assert [int(found[0]) for found in streaming._in_order(calls, ahead)] == [*range(7)]
    found = streaming._in_order([*calls[:2], partial(torch.empty, -1), *calls], ahead)
    assert [int(next(found)[0]) for _ in range(2)] == [0, 1]
    with pytest.raises(RuntimeError, match="negative"):
        next(found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_crosses_to_a_gpu_is_what_is_in_the_files(tmp_path: Path) -> None:
    save_model(build_model(tiny.config("llama").to_dict(), dtype="bfloat16"), tmp_path / "model")
    streamed, _ = load_and_pack(tmp_path / "model", [NF4], device="cuda")
    loaded = load_model(tmp_path / "model", device="cuda")
    apply(loaded, [NF4])
    wanted = loaded.state_dict()
    for name, tensor in streamed.state_dict().items():
        assert tensor.is_cuda and torch.equal(tensor, wanted[name]), name
