"""A request's tokens in a batch of many adapters are those of the model with its adapter alone."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from hayless.core.bank import bank_bytes, block_matrices
from hayless.core.errors import FileDamaged, HaylessError, NotSupported, RequestError, WorkError
from hayless.core.families import ledger_of
from hayless.core.registry import configure, find
from hayless.decode import products
from hayless.decode.bank import AdapterBank, InUse
from hayless.decode.engine import Backend, Engine
from hayless.decode.options import SamplingOptions
from hayless.model import adapters as adapters_of
from hayless.model.adapters import Adapter
from hayless.model.anatomy import dims_of_model
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests import tiny
from tests.decode.adapters import adapter, adapters, alone, base

WANTED = ["legal", "", "code", "medical", "legal", ""]
PROMPTS = [[5, 9, 30, 31], [17], [44, 45, 46, 47, 50], [5, 9], [17, 3], [5, 9, 30, 31]]
OPTIONS = [SamplingOptions(max_tokens=5 + n, temperature=n % 2, seed=n, ignore_end=True) for n in range(6)]
PATHS: list[tuple[str, str | None, Backend]] = [
    ("llama", None, "program"),
    ("llama", None, "modules"),
    ("llama-tied", None, "program"),
    ("llama", "nf4", "program"),
    ("gpt2", None, "modules"),
    ("opt", None, "modules"),
]


def filled(model: torch.nn.Module, found: dict[str, Adapter], slots: int = 3) -> AdapterBank:
    bank = AdapterBank.for_adapters(model, found.values(), slots)
    for name, one in found.items():
        bank.add(name, one)
    return bank


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("name", "packing", "backend"), PATHS)
def test_rows_have_their_own(name: str, packing: str | None, backend: Backend, deterministic: bool) -> None:
    model = base(name, [configure(packing)] if packing else [])
    found = adapters(name)
    expected = [alone(model, found.get(w), p, o) for w, p, o in zip(WANTED, PROMPTS, OPTIONS, strict=True)]
    said = [alone(model, found.get(name), PROMPTS[2], OPTIONS[0]).tokens for name in (*found, "")]
    assert len(set(said)) == 4
    engine = Engine(model, backend=backend, adapters=filled(model, found), deterministic=deterministic)
    made = engine.generate(PROMPTS, OPTIONS, adapters=WANTED)
    for one, wanted in zip(made, expected, strict=True):
        assert one.tokens == wanted.tokens
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(wanted.logprobs), rtol=1e-3, atol=1e-3)
    # They join and leave while others run, and get the same.
    running = engine.open(3)
    requests = [engine.request(*one) for one in zip(PROMPTS, OPTIONS, WANTED, strict=True)]
    for request in requests:
        running.add(request)
        running.step()
    while running.busy:
        running.step()
    assert [request.generation().tokens for request in requests] == [one.tokens for one in expected]
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("backend", ["program", "modules"])
def test_rows_have_their_own_beside_a_quantized_cache(backend: Backend) -> None:
    model, found = base("llama"), adapters("llama")
    held = find("kv").load()(configure("kv", bits=8, group_size=4, residual=8), model)
    options = SamplingOptions(max_tokens=10, ignore_end=True)
    expected = []
    for wanted in ("legal", "code", "", "medical"):
        engine = Engine(model, backend=backend, cache=held, adapters=filled(model, found))
        expected += engine.generate(PROMPTS[:1], options, adapters=wanted)
    engine = Engine(model, backend=backend, cache=held, adapters=filled(model, found))
    made = engine.generate(PROMPTS[:1] * 4, options, adapters=["legal", "code", "", "medical"])
    assert [one.tokens for one in made] == [one.tokens for one in expected]
    assert made[0].tokens[:1] == alone(model, found["legal"], PROMPTS[0], options).tokens[:1]


@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
def test_captured_steps_follow_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from hayless.kernels.adapter_kernels import add_by_slots
    from tests.decode.captured import at_once

    at_once(monkeypatch)
    by_plain = products.add_branches

    def by_kernels(outs: Any, x: torch.Tensor, stacks: Any, slots_b: torch.Tensor) -> None:
        (add_by_slots if x.dim() == 2 else by_plain)(outs, x, stacks, slots_b)

    monkeypatch.setattr(products, "add_branches", by_kernels)
    model, found = base("llama"), adapters("llama")
    bank = AdapterBank.for_adapters(model, found.values(), 2)
    engine = Engine(model, adapters=bank)
    plain = Engine(model, backend="program", adapters=filled(model, found))
    assert engine.path.backend == "graphs"
    running = engine.open(2, 32)
    captures: list[object] = []
    monkeypatch.setattr("hayless.decode.graphs.captured", lambda *_: captures.append(None))
    options = SamplingOptions(max_tokens=2, ignore_end=True)
    for turn in (("legal", ""), ("code", "legal"), ("medical", "code")):
        for name in {*bank.names} - {*turn}:
            bank.remove(name)
        for name in {*turn} - {*bank.names, ""}:
            bank.add(name, found[name])
        requests = [engine.request(*one) for one in zip(PROMPTS[1:3], [options] * 2, turn, strict=True)]
        for request in requests:
            running.add(request)
        while running.busy:
            running.step()
        expected = plain.generate(PROMPTS[1:3], options, adapters=turn)
        assert [request.generation().tokens for request in requests] == [one.tokens for one in expected]
    assert not captures


def test_adapters_come_and_go_while_others_run() -> None:
    model = base("llama")
    found = adapters("llama")
    options = SamplingOptions(max_tokens=12, ignore_end=True)
    expected = {name: alone(model, one, PROMPTS[0], options).tokens for name, one in found.items()}
    bank = AdapterBank.for_adapters(model, found.values(), 2)
    engine = Engine(model, backend="program", adapters=bank)
    assert bank.add("legal", found["legal"]) == 0
    running = engine.open(4)
    first = engine.request(PROMPTS[0], options, "legal")
    running.add(first)
    running.step()
    with pytest.raises(InUse, match="in use"):
        bank.remove("legal")
    assert bank.add("medical", found["medical"]) == 1
    second = engine.request(PROMPTS[0], options, "medical")
    running.add(second)
    running.step()
    with pytest.raises(RequestError, match="All 2 slots"):
        bank.add("code", found["code"])
    while first.finish is None:
        running.step()
    bank.remove("legal")
    assert bank.add("code", found["code"]) == 0, "a smaller one takes the place of a larger one"
    third = engine.request(PROMPTS[0], options, "code")
    running.add(third)
    while running.busy:
        running.step()
    for request, name in ((first, "legal"), (second, "medical"), (third, "code")):
        assert request.generation().tokens == expected[name]
    with pytest.raises(RequestError, match="'legal'; there are: code, medical"):
        engine.request(PROMPTS[0], options, "legal")
    abandoned = engine.request(PROMPTS[0], options, "code")
    assert bank.in_use == {"code"}
    del abandoned
    gc.collect()
    assert not bank.in_use


def test_another_bank_takes_the_place_of_one() -> None:
    model = base("llama")
    found = adapters("llama")
    options = SamplingOptions(max_tokens=6, ignore_end=True)
    engine = Engine(model, backend="program", adapters=filled(model, {"medical": found["medical"]}))
    assert engine.adapters is not None
    with pytest.raises(RequestError, match=r"no room for legal: it has no place for .*mlp"):
        engine.adapters.add("legal", found["legal"])
    with pytest.raises(RequestError, match=r"a rank of 6 at .* more than 5"):
        engine.adapters.add("wide", adapter("llama", 0, rank=6, targets=("attention",)))
    for bank, name in ((engine.adapters, "medical"), (filled(model, found), "legal"), (None, "")):
        engine.adapters = bank
        expected = alone(model, found.get(name), PROMPTS[0], options).tokens
        assert engine.generate(PROMPTS[:1], options, adapters=name)[0].tokens == expected


@pytest.mark.parametrize(("name", "dtype"), [("llama", "float32"), ("llama", "bfloat16"), ("gpt2", "float32")])
def test_room_for_any_of_a_rank_is_as_large_as_predicted(name: str, dtype: str) -> None:
    model = tiny.model(name).to(getattr(torch, dtype))
    shapes = block_matrices(ledger_of(dims_of_model(model)))
    bank = AdapterBank.for_adapters(model, [], 5, rank=4)
    held = [getattr(stack, part) for stack in bank.branches.stacks.values() for part in ("a", "b", "scale", "rank")]
    live = sum(tensor.untyped_storage().nbytes() for tensor in held)
    assert live == bank.bytes == bank_bytes(shapes.values(), 5, 4, dtype) > 0
    found = adapter(name, 0, rank=4, targets=("attention", "feed_forward"))
    bank.add("any", found)
    assert shapes.keys() == found.low_rank(model).keys()
    wider = AdapterBank.for_adapters(model, [adapter(name, 0, rank=6, targets=("attention",))], 1, rank=4)
    assert wider.rank == 6 and wider.branches.stacks.keys() == shapes.keys()


def test_adapters_of_another_base(tmp_path: Path) -> None:
    model = tiny.model("llama")
    save_model(model, tmp_path / "base")
    apply(model, [configure("lora", rank=2)])
    save_model(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    found, base = adapters_of.read(tmp_path / "adapter"), load_model(str(tmp_path / "base"))
    AdapterBank.for_adapters(base, [found], 1, base=tmp_path / "base").add("own", found)
    other = tiny.model("llama")
    with torch.no_grad():
        other.model.embed_tokens.weight[0, 0] += 1
    save_model(other, tmp_path / "other")
    with pytest.raises(RequestError, match="other is not the base that the adapter was trained on"):
        AdapterBank.for_adapters(other, [found], 1, base=tmp_path / "other").add("foreign", found)


def test_what_a_bank_does_not_take() -> None:
    model = base("llama")
    plain = adapter("llama", 0, rank=2)
    bank = filled(model, {"plain": plain}, slots=2)
    lacking = Adapter(plain.config, dict(list(plain.tensors.items())[1:]))
    refused: list[tuple[type[HaylessError], str, Adapter]] = [
        (FileDamaged, "lacks", lacking),
        (NotSupported, "dora", Adapter(configure("lora", rank=2, dora=True), {})),
        (NotSupported, "whole", Adapter(configure("lora", rank=2, whole="norm"), {})),
        (NotSupported, "ia3", Adapter(configure("ia3"), {})),
    ]
    for kind, says, one in refused:
        with pytest.raises(kind, match=says):
            bank.add("other", one)
    with pytest.raises(RequestError, match="name"):
        bank.add("plain", plain)
    with pytest.raises(RequestError, match="slots"):
        AdapterBank.for_adapters(model, [plain], 0)
    with pytest.raises(RequestError, match="rank"):
        AdapterBank.for_adapters(model, [], 1, rank=0)
    with pytest.raises(WorkError, match=r"no memory for 1 adapters of rank 1000000000000 .* TB"):
        AdapterBank.for_adapters(model, [], 1, rank=10**12)
    with pytest.raises(RequestError, match="2 adapters for 1"):
        Engine(model, adapters=bank).generate(PROMPTS[:1], adapters=["plain", "plain"])
    with pytest.raises(RequestError, match="'plain'; there are: none"):
        Engine(model).generate(PROMPTS[:1], adapters="plain")
    with pytest.raises(NotSupported, match="exclude drafts"):
        Engine(model, adapters=bank, draft=find("speculative").load()(configure("speculative"), model))
    assert bank.names == ["plain"] and bank.bytes > 0
    worn = tiny.model("llama")
    apply(worn, [configure("lora", rank=2)])
    with pytest.raises(NotSupported, match="has an adapter on"):
        AdapterBank.for_adapters(worn, [], 2)
