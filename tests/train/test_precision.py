"""What each precision holds in memory, counted from live tensors, and that each of them learns."""

import gc

import pytest
import torch

from hayless.core.errors import WorkError
from hayless.core.registry import configure
from hayless.train.precision import cast_weights, trainables
from hayless.train.slots import Kind
from hayless.train.update import make_updater
from tests import tiny
from tests.train import source


@pytest.fixture(autouse=True)
def _what_other_tests_left_is_not_looked_at():
    """All that a worker has gathered takes seconds to go through, at every look."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def live_bytes() -> int:
    """Bytes of all floating-point storages that exist, each once; scalars (Adam's counts, losses) left out."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        # isinstance would wake lazy modules that gc knows.
        if issubclass(type(item), torch.Tensor) and item.is_floating_point() and item.numel() > 1:
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize(
    ("precision", "weight", "gradient", "optimizer"),
    [("fp32", 4, 4, 8), ("master", 2, 2, 12), ("bf16", 2, 2, 4), ("autocast", 4, 4, 8), ("fp16", 4, 4, 8)],
)
@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16])
def test_bytes_a_parameter_from_live_tensors(precision, weight, gradient, optimizer, loaded):
    before = live_bytes()
    # No buffers and no activations, so that what is counted is weights, gradients and optimizer alone.
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Embedding(11, 7), torch.nn.Linear(30, 5)).to(loaded)
    count = sum(parameter.numel() for parameter in model.parameters())
    updater = make_updater(model, precision, configure("adamw"))
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        if precision == "fp16":
            updater.backward(model[0].weight.sum() * 0)
        updater.begin(1.0, 1.0)
        updater.step(updater.norm())
    assert live_bytes() - before == (weight + optimizer) * count
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert live_bytes() - before == (weight + gradient + optimizer) * count
    for parameter in model.parameters():
        assert parameter.dtype.itemsize == weight
        assert parameter.grad.dtype.itemsize == gradient


def test_master_keeps_no_fp32_copy_of_all_gradients(monkeypatch):
    """Never more than one chunk's gradients have 32 bits, whatever the model's size."""
    monkeypatch.setattr("hayless.train.update._CHUNK_BYTES", 4 * 100)
    model = torch.nn.ModuleList(torch.nn.Linear(10, 9, bias=False) for _ in range(6))
    updater = make_updater(model, "master", configure("adamw"))
    peak = 0
    before = live_bytes()
    original = torch.optim.AdamW.step

    def watched(self, *arguments):
        nonlocal peak
        peak = max(peak, live_bytes())
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    for step in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        start = live_bytes()
        peak = 0
        updater.begin(1.0, None)
        updater.step(updater.norm())
        if step == 1:
            # One fp32 copy, less the 16-bit gradient it replaces.
            assert peak - start == 90 * 4 - 90 * 2
    assert live_bytes() - before == 6 * 90 * 8


def test_master_moves_like_fp32_on_the_same_gradients():
    """Masters follow fp32 AdamW exactly; weights are the masters rounded."""
    torch.manual_seed(0)
    plain, mixed = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    mixed.load_state_dict(plain.state_dict())
    config = configure("adamw", learning_rate=1e-3)
    one, other = make_updater(plain, "fp32", config), make_updater(mixed, "master", config)
    for _ in range(5):
        for a, b in zip(plain.parameters(), mixed.parameters(), strict=True):
            b.grad = torch.randn_like(b)
            a.grad = b.grad.float()
        norm = one.norm()
        assert torch.equal(norm, other.norm())
        for updater in (one, other):
            updater.begin(0.5, 1.0)
            updater.step(norm)
    assert source.same(one.weights(), other.weights())
    for a, b in zip(plain.parameters(), mixed.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)


@pytest.mark.parametrize("precision", ["fp32", "autocast", "master", "bf16", "fp16"])
def test_every_precision_learns(tmp_path, precision):
    result = source.trainer(
        tmp_path,
        precision=precision,
        steps=60,
        batches=source.Random(period=1),
        log_every=1,
    ).run()
    first = source.lines(tmp_path, "train")[0]["loss"]
    assert result.loss < 0.2 * first


def test_frozen_weights_never_grow_and_shared_ones_stay_shared():
    model = tiny.model("llama-tied").bfloat16()
    model.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    rotary = model.model.rotary_emb.inv_freq.dtype
    cast_weights(model, "fp32")
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    assert model.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == rotary
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_kinds_of_parameters():
    found = {item.name: item.kind for item in trainables(tiny.model("gpt2"))}
    assert found["transformer.wte.weight"] is found["transformer.wpe.weight"] is Kind.EMBEDDING
    assert found["transformer.h.0.ln_1.weight"] is found["transformer.h.0.attn.c_attn.bias"] is Kind.VECTOR
    assert found["transformer.h.0.attn.c_attn.weight"] is Kind.MATRIX
    assert "lm_head.weight" not in found
    assert {item.kind for item in trainables(tiny.model("mixtral")) if "experts" in item.name} == {Kind.MATRIX}


class TestLossScale:
    def test_shrinks_on_overflow_and_leaves_weights_and_moments(self):
        model = torch.nn.Linear(4, 4)
        updater = make_updater(model, "fp16", configure("adamw"))
        before = source.weights(model)
        scale = updater.scale()
        updater.backward((model.weight * 1e36).sum())
        updater.begin(1.0, 1.0)
        assert not updater.step(updater.norm())
        assert updater.scale() == scale / 2
        assert source.same(before, source.weights(model))
        assert not updater.optimizer_state()[0]

    def test_grows_after_2000_good_steps(self):
        model = torch.nn.Linear(2, 2)
        updater = make_updater(model, "fp16", configure("sgd", learning_rate=1e-6))
        scale = updater.scale()
        for _ in range(2000):
            assert updater.scale() == scale
            updater.backward(model.weight.sum())
            updater.begin(1.0, None)
            assert updater.step(updater.norm())
        assert updater.scale() == 2 * scale

    def test_comes_back_from_a_checkpoint(self):
        model = torch.nn.Linear(4, 4)
        updater = make_updater(model, "fp16", configure("adamw"))
        for factor in (1e36, 1.0):
            updater.backward((model.weight * factor).sum())
            updater.begin(1.0, 1.0)
            updater.step(updater.norm())
        again = make_updater(torch.nn.Linear(4, 4), "fp16", configure("adamw"))
        tensors, plain = updater.optimizer_state()
        again.load_optimizer_state(tensors, plain)
        assert again.scale() == updater.scale() == 2**15
        assert again.optimizer_state()[1] == plain

    def test_gradients_are_unscaled_before_they_are_clipped(self):
        model = torch.nn.Linear(4, 4, bias=False)
        updater = make_updater(model, "fp16", configure("sgd"))
        updater.backward(model.weight.sum())
        assert float(updater.norm()) == pytest.approx(4.0)

    def test_gives_up_where_no_scale_helps(self):
        model = torch.nn.Linear(4, 4)
        updater = make_updater(model, "fp16", configure("adamw"))
        with pytest.raises(WorkError, match="overflow fp16"):
            for _ in range(100):
                updater.backward((model.weight * float("inf")).sum())
                updater.begin(1.0, 1.0)
                updater.step(updater.norm())


def test_fp16_reports_a_step_left_out(tmp_path):
    """The first scale, 65536, is too large for a loss that is multiplied by a million."""
    model = tiny.model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(3e4)
    source.trainer(
        tmp_path, model=model, precision="fp16", steps=3, optimizer=configure("sgd", learning_rate=1e-9)
    ).run()
    assert any("overflowed" in line["message"] for line in source.lines(tmp_path, "event"))
