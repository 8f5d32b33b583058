"""A quantized cache in captured graphs; without a GPU a captured step is the step itself, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import transformers

from hayless.core.cost import kv_cache_bytes
from hayless.core.decoding import CAPACITY_STEP, decode_cost
from hayless.core.errors import NotSupported
from hayless.core.families import dims_of, ledger_of
from hayless.core.registry import configure
from hayless.decode import engine
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.program import Program, plan
from hayless.methods.decoding.kv.config import KVConfig
from hayless.methods.decoding.kv.part import QuantizedKV
from hayless.methods.decoding.kv.predict import cache_form
from hayless.methods.decoding.kv.readers import through_program
from tests import tiny

pytest.importorskip("triton", reason="triton is not installed")

from hayless.decode.kernel_pass import KernelPass
from hayless.methods.decoding.kv.coded import CodedCache
from tests.decode import captured

pytestmark = pytest.mark.usefixtures("exact_float32")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROMPTS = [torch.arange(3, 24).tolist(), [5, 6, 7], torch.arange(40, 57).tolist()]


def kv(bits: int = 4, group: int = 4, residual: int = 8) -> KVConfig:
    config = configure("kv", bits=bits, group_size=group, residual=residual)
    assert isinstance(config, KVConfig)
    return config


def model(name: str = "llama") -> transformers.PreTrainedModel:
    """A tiny model with heads as wide as the kernel's narrowest."""
    shape = tiny.config(name)
    shape.head_dim, shape.num_attention_heads, shape.num_key_value_heads, shape.num_hidden_layers = 32, 2, 1, 1
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(shape).eval().to(DEVICE)


@pytest.mark.parametrize(("name", "bits"), [("qwen3", 4), ("llama", 2)])
def test_a_pass_reads_and_holds_what_the_program_does(name: str, bits: int) -> None:
    program, config = plan(model(name)), kv(bits)
    assert isinstance(program, Program)
    reader = through_program(program, config)
    reader.join(PROMPTS)
    cache = CodedCache(cache_form(config), program, len(PROMPTS), 48)
    for row, prompt in enumerate(PROMPTS):
        cache.prefill(row, prompt)
    lengths_b = torch.tensor(reader.lengths, dtype=torch.int32, device=DEVICE)
    run = KernelPass(program, cache, lengths_b)
    for token in range(2):
        tokens_b = torch.tensor([7, 8, 9], device=DEVICE) + token
        torch.testing.assert_close(run.launch(tokens_b), reader.read(tokens_b[:, None])[:, 0], rtol=1e-4, atol=1e-4)
        lengths_b += 1


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("deterministic", [False, True])
def test_graphs_give_what_the_program_gives(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    if DEVICE.type == "cpu":
        captured.at_once(monkeypatch)
    found, options = model(), [SamplingOptions(max_tokens=count, ignore_end=True) for count in (3, 2)]
    graphed = Engine(found, cache=QuantizedKV(kv(), found), deterministic=deterministic)
    plain = Engine(found, cache=graphed.cache, backend="program")
    assert graphed.path.backend == "graphs"
    together = graphed.generate(PROMPTS[:2], options)
    for one, other in zip(together, plain.generate(PROMPTS[:2], options), strict=True):
        assert one.tokens == other.tokens
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=1e-3, atol=1e-3)
    if deterministic:
        [alone] = graphed.generate(PROMPTS[:1], options[:1])
        assert alone.logprobs == together[0].logprobs


def test_room_is_predicted_exactly() -> None:
    found = model()
    program, form = plan(found), cache_form(kv(bits=2, group=8, residual=40))
    assert isinstance(program, Program)
    cache = CodedCache(form, program, 2, CAPACITY_STEP)
    ledger = ledger_of(dims_of(found.config.to_dict()).with_dtype("float32"))
    cost = decode_cost(ledger, 2, 200, cache_form=form)
    assert cost.phases["decode"].kv_cache == cache.bytes < kv_cache_bytes(ledger.dims, 2, CAPACITY_STEP)
    assert "captured graphs" in " ".join(cost.notes)
    narrow = ledger_of(dims_of(tiny.config("llama").to_dict()).with_dtype("float32"))
    assert "captured graphs" not in " ".join(decode_cost(narrow, 2, 200, cache_form=form).notes)


def test_what_no_kernel_reads_runs_in_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_no_graphs", lambda program: None)
    narrow, wide = tiny.model("llama"), model()
    for found, config, words in (
        (narrow, kv(), "heads of 8 channels"),
        (wide, kv(group=16, residual=48), None),
        (wide, KVConfig(group_size=256, residual=256), "groups of 256"),
    ):
        path = Engine(found, cache=QuantizedKV(config, found)).path
        assert path.backend == ("graphs" if words is None else "program") and (words or "") in path.reason
        if words is not None:
            with pytest.raises(NotSupported, match=words):
                Engine(found, cache=QuantizedKV(config, found), backend="graphs").generate([[5]])
