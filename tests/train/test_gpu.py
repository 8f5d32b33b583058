"""On a CUDA device: bytes from the allocator, fused AdamW, bits that repeat, memory that really runs out."""

import pytest
import torch

from hayless.core.errors import WorkError
from hayless.core.registry import configure
from hayless.train.update import make_updater
from tests import tiny
from tests.train import source
from tests.train.test_resume import Fails, figures, final

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    ("precision", "held", "with_gradients"),
    [("fp32", 12, 16), ("master", 14, 16), ("bf16", 6, 8), ("autocast", 12, 16)],
)
def test_bytes_a_parameter_from_the_allocator(precision, held, with_gradients):
    """Three matrices of 2²⁴ elements each; the chunk of fp32 gradients in `master` is gone after the update."""
    count = 3 * 2**24
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = torch.nn.ModuleList(torch.nn.Linear(2**12, 2**12, bias=False, device="cuda") for _ in range(3))
    updater = make_updater(model, precision, configure("adamw"))
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.cuda.reset_peak_memory_stats()
        updater.begin(1.0, None)
        assert updater.step(updater.norm())
    peak = torch.cuda.max_memory_allocated() - before
    # Adam's counts and what cuBLAS or the norm holds: well under a thousandth.
    assert torch.cuda.memory_allocated() - before == pytest.approx(held * count, rel=1e-3)
    # One matrix of 64 MiB in fp32 is a chunk of its own.
    assert peak <= (with_gradients * count + (4 * 2**24 if precision == "master" else 0)) * 1.001
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert torch.cuda.memory_allocated() - before == pytest.approx(with_gradients * count, rel=1e-3)


def test_adamw_is_fused():
    model = torch.nn.Linear(4, 4, device="cuda")
    updater = make_updater(model, "fp32", configure("adamw"))
    assert updater._optimizers[0].param_groups[0]["fused"]


@pytest.mark.parametrize("precision", ["fp32", "autocast", "master", "bf16", "fp16"])
def test_learns_and_resumes_with_the_same_bits(tmp_path, precision):
    def make(folder, batches):
        return source.trainer(
            folder,
            model=tiny.model("gpt2").cuda(),
            batches=batches,
            precision=precision,
            steps=40,
            checkpoint_every=10,
            log_every=1,
            deterministic=True,
        )

    result = make(tmp_path / "whole", Fails(period=-1)).run()
    Fails.failed.clear()
    with pytest.raises(KeyError):
        make(tmp_path / "stopped", Fails(period=25)).run()
    make(tmp_path / "stopped", Fails(period=25)).run()
    assert source.same(final(tmp_path / "whole", 40), final(tmp_path / "stopped", 40))
    assert figures(tmp_path / "whole") == figures(tmp_path / "stopped")
    lines = source.lines(tmp_path / "whole", "train")
    assert result.loss < 0.7 * lines[0]["loss"]
    if precision != "fp32" and "H200" in torch.cuda.get_device_name():
        assert 0 < lines[-1]["mfu"] < 1


def test_equals_the_cpu(tmp_path):
    found = []
    for device in ("cpu", "cuda"):
        model = tiny.model("llama").to(device)
        source.trainer(tmp_path / device, model=model, optimizer=configure("sgd", learning_rate=0.5), log_every=1).run()
        found.append(source.lines(tmp_path / device, "train"))
    for one, other in zip(*found, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)


def test_checkpointing_lowers_the_peak(tmp_path):
    peaks = []
    for name, memory in (("plain", []), ("recomputed", [configure("checkpointing")])):
        config = tiny.config("llama")
        config.num_hidden_layers, config.hidden_size, config.intermediate_size = 12, 256, 1024
        config.max_position_embeddings = 1024
        model = type(tiny.model("llama"))(config).cuda()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        batches = source.Random(rows=8, width=1024)
        result = source.trainer(tmp_path / name, model=model, batches=batches, memory=memory, steps=2).run()
        peaks.append(result.peak_bytes)
        del model
    assert peaks[1] < 0.5 * peaks[0]


def test_memory_that_really_runs_out(tmp_path):
    model = tiny.model("llama").cuda()

    class Large(torch.nn.Module):
        def forward(self, *arguments, **options):
            return torch.empty(2**45, device="cuda")

    model.model.layers[1].mlp = Large()
    with pytest.raises(WorkError, match=r"Memory ran out: cuda:0 has .* GB, of which"):
        source.trainer(tmp_path, model=model, predicted_bytes=10**9).run()


def test_compiled_with_real_kernels(tmp_path):
    found = []
    for compiled in (False, True):
        run = source.trainer(tmp_path / str(compiled), model=tiny.model("llama").cuda(), compile=compiled, steps=4)
        found.append(run.run().loss)
    assert found[1] == pytest.approx(found[0], rel=1e-3)
