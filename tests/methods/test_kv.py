"""A quantized cache: what it holds is the reference's, its bytes are those predicted, and models go on reading."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from hayless.core.cost import DecodeShape, kv_cache_bytes, weight_bytes
from hayless.core.decoding import decode_cost, decode_peak
from hayless.core.errors import NotSupported, RequestError
from hayless.core.families import dims_of, ledger_of
from hayless.core.registry import configure, method_of
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.program import Program, plan
from hayless.methods.decoding.kv import reference
from hayless.methods.decoding.kv.cache import HeldLayer
from hayless.methods.decoding.kv.config import KVConfig
from hayless.methods.decoding.kv.part import QuantizedKV
from hayless.methods.decoding.kv.predict import cache_form
from hayless.methods.decoding.kv.readers import through_modules, through_program
from tests import tiny
from tests.decode.test_running import jobs, served
from tests.live import Live

HEADS, HEAD_DIM = 2, 16
PROMPTS = [[0, 5, 9, 30, 31, 32, 60, 7, 8], [0, 17], [44, 45, 46, 47, 0]]


def kv(**options: Any) -> KVConfig:
    config = configure("kv", **{"group_size": 4, "residual": 8, **options})
    assert isinstance(config, KVConfig)
    return config


def numbers(tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys with a channel far from the others, as models have them, and values."""
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(HEADS, tokens, HEAD_DIM, generator=generator) for _ in range(2))
    k[..., 3] = k[..., 3] * 20 + 50
    return k.to(dtype), v.to(dtype)


def after(config: KVConfig, k: Tensor, v: Tensor, pieces: list[int]) -> tuple[HeldLayer, Tensor, Tensor]:
    """A layer that took tokens in by pieces, and what it then says they are."""
    layer = HeldLayer(config)
    for k_piece, v_piece in zip(k.split(pieces, 1), v.split(pieces, 1), strict=True):
        layer.hold(k_piece, v_piece)
    found = torch.full_like(k, torch.nan), torch.full_like(v, torch.nan)
    layer.write(*found)
    return layer, *found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(
    ("tokens", "group", "residual"), [(1, 4, 8), (7, 4, 8), (8, 4, 8), (9, 4, 8), (27, 4, 12), (19, 1, 3), (35, 32, 32)]
)
def test_what_is_held_is_the_reference_s(bits: int, tokens: int, group: int, residual: int, dtype: torch.dtype) -> None:
    config, (k, v) = kv(bits=bits, group_size=group, residual=residual), numbers(tokens, dtype)
    expected = reference.held(k, v, config)
    for pieces in ([tokens], [1] * tokens, [tokens // 2, tokens - tokens // 2]):
        layer, *found = after(config, k, v, pieces)
        for mine, theirs, x in zip(found, expected, (k, v), strict=True):
            torch.testing.assert_close(
                mine, theirs, rtol=torch.finfo(dtype).eps, atol=50 * torch.finfo(torch.float32).eps
            )
            assert torch.equal(mine, x) or tokens >= residual
        item = torch.finfo(dtype).bits // 8
        assert layer.bytes == HEADS * cache_form(config).bytes(HEAD_DIM, item, tokens)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_error_is_at_most_half_a_step(bits: int) -> None:
    config, (k, v) = kv(bits=bits), numbers(32)
    _, found_k, found_v = after(config, k, v, [32])
    by_channel = k.unflatten(1, (-1, 4))
    step = (by_channel.amax(2) - by_channel.amin(2)) / (2**bits - 1)
    assert ((found_k - k).unflatten(1, (-1, 4)).abs().amax(2) <= step / 2 * 1.001 + 1e-5).all()
    by_token = v[:, :-8].unflatten(2, (-1, 4))
    step = (by_token.amax(3) - by_token.amin(3)) / (2**bits - 1)
    assert ((found_v - v)[:, :-8].unflatten(2, (-1, 4)).abs().amax(3) <= step / 2 * 1.001 + 1e-5).all()
    assert torch.equal(found_v[:, -8:], v[:, -8:])


class Rewritten(DynamicLayer):
    """Transformers' own layer, whose earlier tokens are the reference's."""

    def __init__(self, config: KVConfig) -> None:
        super().__init__()
        self.config = config

    def update(self, key_states: Tensor, value_states: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
        before = self.keys.shape[2] if self.is_initialized else 0
        k, v = super().update(key_states, value_states, *more, **named)
        found = reference.held(k[0, :, :before], v[0, :, :before], self.config)
        return tuple(torch.cat([held[None], x[:, :, before:]], 2) for held, x in zip(found, (k, v), strict=True))


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2"])
def test_texts_read_by_pieces_find_what_the_reference_holds(name: str) -> None:
    """However a text comes, and within windows: its keys and values are made from what was held of those before."""
    config, shape = kv(bits=2), tiny.config(name)
    if name != "gpt2":
        shape.sliding_window = 10
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(shape).eval()
    ids = torch.randint(96, (1, 45), generator=torch.Generator().manual_seed(0))
    reader = through_modules(model, config)
    cache = Cache(layers=[Rewritten(config) for _ in range(2)])
    for place, piece in enumerate(ids.split([6, 1, 14, 1, 1, 20, 2], 1)):
        found = reader.join(piece.tolist()) if place == 0 else reader.read(piece)[:, -1]
        with torch.no_grad():
            expected = model(piece, past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_equal_numbers_stay_what_they_are() -> None:
    k, v = torch.full((HEADS, 16, HEAD_DIM), 3.7), torch.zeros(HEADS, 16, HEAD_DIM)
    _, found_k, found_v = after(kv(bits=2), k, v, [16])
    assert torch.equal(found_k, k) and torch.equal(found_v, v)


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_a_residual_that_covers_everything_changes_no_token(name: str) -> None:
    model, options = tiny.model(name), SamplingOptions(max_tokens=10, ignore_end=True)
    whole = Engine(model).generate(PROMPTS, options)
    for backend in {"modules", Engine(model).path.backend}:
        engine = Engine(model, backend=backend, cache=QuantizedKV(kv(bits=2, residual=64), model))
        found = engine.generate(PROMPTS, options)
        assert [each.tokens for each in found] == [each.tokens for each in whole]
        for mine, theirs in zip(found, whole, strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_programs_and_modules_read_the_same_and_close_to_the_whole_cache(bits: int) -> None:
    model = tiny.model("qwen3")
    program = plan(model)
    assert isinstance(program, Program)
    config = kv(bits=bits)
    prompts = [torch.arange(3, 30).tolist(), [5, 6, 7], torch.arange(40, 57).tolist()]
    readers = [through_program(program, config), through_modules(model, config)]
    joined = [reader.join(prompts) for reader in readers]
    torch.testing.assert_close(*joined, rtol=1e-4, atol=1e-5)
    texts, new = [list(prompt) for prompt in prompts], torch.tensor([[8, 9], [10, 11], [12, 13]])
    for _ in range(5):
        texts = [[*text, *more] for text, more in zip(texts, new.tolist(), strict=True)]
        found = [reader.read(new) for reader in readers]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
        assert readers[0].lengths == readers[1].lengths == [len(text) for text in texts]
    readers[0].select([2, 0]), readers[1].select([2, 0])
    found = [reader.read(new[:2, :1])[:, 0] for reader in readers]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        whole = [model(torch.tensor([[*texts[row], int(new[at, 0])]])).logits[0, -1] for at, row in enumerate((2, 0))]
    # A random model's logits; each bit fewer doubles the step.
    error = (found[0] - torch.stack(whole)).abs().max()
    assert 0 < error < torch.stack(whole).std() / (2**bits - 1)
    assert readers[0].cache.bytes == readers[1].cache.bytes


@pytest.mark.parametrize(("name", "backend"), [("llama", "program"), ("llama", "modules"), ("gpt2", "modules")])
def test_requests_join_and_leave_and_get_what_they_get_alone(name: str, backend: Any) -> None:
    model, wanted = tiny.model(name), jobs(7)
    engine = Engine(model, backend=backend, cache=QuantizedKV(kv(bits=4, residual=4), model))
    alone = [engine.generate([prompt], options)[0].tokens for prompt, options in wanted]
    assert served(engine, wanted, rows=3) == alone
    exact = Engine(model, backend=backend, cache=engine.cache, deterministic=True)
    together = exact.generate([prompt for prompt, _ in wanted], [options for _, options in wanted])
    for (prompt, options), found in zip(wanted, together, strict=True):
        assert exact.generate([prompt], options)[0].logprobs == found.logprobs


@pytest.mark.parametrize(("name", "bits"), [("llama", 8), ("gpt2", 4), ("mixtral", 2)])
def test_bytes_are_predicted_exactly_and_the_peak_closely(name: str, bits: int) -> None:
    config, rows, tokens = kv(bits=bits, residual=32), 2, 600
    shape = tiny.config(name)
    shape.max_position_embeddings = 1024
    if name == "gpt2":
        shape.n_positions = 1024
    model = transformers.AutoModelForCausalLM.from_config(shape).eval()
    ledger = ledger_of(dims_of(shape.to_dict()).with_dtype("float32"))
    form = cache_form(config)
    reader, live = through_modules(model, config), Live()
    with live:
        reader.join([[5] * tokens] * rows)
        gc.collect()
        assert live.now == reader.cache.bytes == kv_cache_bytes(ledger.dims, rows, tokens, form=form)
        live.peak = live.now
        reader.read(torch.full((rows, 1), 7))
        gc.collect()
    assert reader.cache.bytes == kv_cache_bytes(ledger.dims, rows, tokens + 1, form=form)
    cost = decode_cost(ledger, rows, tokens + 1, cache_form=form, device="cpu")
    predicted = cost.phases["decode"].total - weight_bytes(ledger)
    assert live.peak == pytest.approx(predicted, rel=0.05), f"{live.peak} measured, {predicted} predicted"
    shape_of = method_of(config).predict_decoding(DecodeShape(rows, tokens + 1, device="cpu"), config)
    assert decode_peak(ledger, shape_of) == cost.peak


def test_what_cannot_be_is_refused() -> None:
    model = tiny.model("llama")
    part = QuantizedKV(kv(), model)
    draft = configure("speculative")
    with pytest.raises(NotSupported, match="excludes drafts and early exits"):
        Engine(model, cache=part, draft=method_of(draft).load()(draft, model, None))
    with pytest.raises(NotSupported, match="'graphs' cannot be used: no kernel reads the codes of heads of 8 channels"):
        Engine(model, cache=part, backend="graphs").generate([[5]])
    with pytest.raises(NotSupported, match="group_size = 3 does not divide the 8 channels"):
        QuantizedKV(kv(group_size=3, residual=9), model)
    reader = part.reader(None)
    reader.join([[5, 6]])
    with pytest.raises(NotSupported, match="cannot be cut back"):
        reader.truncate([1])
    with pytest.raises(RequestError, match="no multiple of group_size 32"):
        configure("kv", residual=100)
    with pytest.raises(RequestError, match="bits"):
        configure("kv", bits=3)


def test_a_model_that_holds_more_than_keys_is_refused() -> None:
    shape = transformers.Lfm2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    with pytest.raises(NotSupported, match="also holds a"):
        QuantizedKV(kv(), transformers.AutoModelForCausalLM.from_config(shape))


def test_a_step_reads_the_codes() -> None:
    model = tiny.model("llama")
    whole, quantized = Engine(model), Engine(model, cache=QuantizedKV(kv(bits=2, residual=4), model))
    dims, form = dims_of(model.config.to_dict()).with_dtype("float32"), cache_form(kv(bits=2, residual=4))
    less = whole.step_bytes(40, 3) - quantized.step_bytes(40, 3)  # type: ignore[operator]
    assert less == kv_cache_bytes(dims, 3, 40) - kv_cache_bytes(dims, 3, 40, form=form) > 0
