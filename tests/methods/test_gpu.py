"""The transforms on a GPU against the same on the CPU."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from transformers import LlamaForCausalLM

from hayless.core.registry import configure, method_of
from hayless.methods.quantize.kmeans.clustering import palettize
from hayless.model.transform import apply
from hayless.train.blocks import compiled
from tests import tiny
from tests.methods.running import batch, check_held, lora_of, predicted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NAMES = ("llama", "gpt2", "mixtral")


def on_gpu(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        ids = batch(model)["input_ids"].cuda()
        return model.eval()(input_ids=ids).logits.cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codebooks_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    values = torch.randn(16, 4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[3, :2000] = 0
    books, codes = palettize(values, 16, iterations=50, keep_zeros=True)
    found_books, found_codes = palettize(values.cuda(), 16, iterations=50, keep_zeros=True)
    torch.testing.assert_close(found_books.cpu(), books, rtol=2e-2, atol=1e-4)
    assert (found_codes.cpu() == codes).float().mean() > 0.98
    assert torch.equal(found_books.gather(1, found_codes.long()) == 0, values.cuda() == 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [3, 4])
def test_packed_on_the_cpu_or_there_it_computes_the_same(name: str, bits: int) -> None:
    config = configure("kmeans", bits=bits, group_size=5)
    model = tiny.model(name)
    apply(model, [config])
    expected = model(**batch(model)).logits.detach()
    torch.testing.assert_close(on_gpu(model.cuda()), expected, rtol=1e-3, atol=1e-3)
    there = tiny.model(name).cuda()
    apply(there, [config])
    check_held(there, predicted(there, [config]))
    torch.testing.assert_close(on_gpu(there), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_weights_are_pruned(name: str) -> None:
    here, there = tiny.model(name), tiny.model(name).cuda()
    for model in (here, there):
        apply(model, [configure("magnitude", nonzero=5000)])
    assert all(torch.equal(value, there.state_dict()[key].cpu()) for key, value in here.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_three_train_and_merge(name: str, dtype: torch.dtype) -> None:
    model = tiny.model(name).to(dtype)
    configs = [configure("magnitude", sparsity=0.5), configure("kmeans", bits=4), lora_of(name)]
    apply(model, configs[:2])
    model.cuda()
    apply(model, configs[2:])
    check_held(model, predicted(model, configs))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, foreach=True)
    ids = batch(model)["input_ids"].cuda()
    found = []
    for _ in range(6):
        loss = model.eval()(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    assert found[-1] < found[0]
    plain = tiny.model(name).cuda()
    config = lora_of(name)
    apply(plain, [config])
    method_of(config).load().merge(plain, config)


def test_zeros_stay_there() -> None:
    model = tiny.model("llama")
    apply(model, [configure("magnitude", sparsity=0.8)])
    model.cuda()
    weight = model.model.layers[0].mlp.up_proj.weight
    zeros = weight.detach() == 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    ids = batch(model)["input_ids"].cuda()
    for _ in range(3):
        model.train()(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weight.detach() == 0, zeros)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_branches_learn_what_others_do(packed: bool, again: bool, dtype: torch.dtype) -> None:
    """Branches in `dtype` beside a base in 16 bits, as wide as a compiler makes other kernels for."""
    found = []
    for compile in (False, True):
        config = tiny.config("llama")
        config.hidden_size, config.intermediate_size, config.head_dim, config.num_hidden_layers = 512, 1024, 128, 4
        config.layer_types = None
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(torch.bfloat16).cuda().train()
        apply(model, [*([configure("nf4")] if packed else []), configure("lora", rank=16)])
        branches = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
        for parameter in branches:
            parameter.data = (0.05 * torch.randn_like(parameter)).to(dtype)
        optimizer = torch.optim.AdamW(branches, lr=1e-2, fused=True)
        ids = torch.randint(3, 96, (4, 256), generator=torch.Generator().manual_seed(0)).cuda()
        losses = []
        with ExitStack() as stack:
            checkpointing = configure("checkpointing")
            if again:
                stack.enter_context(method_of(checkpointing).load().install(model, checkpointing))
            if compile:
                stack.enter_context(compiled(model))
            for _ in range(6):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        found.append(losses)
    assert found[0][-1] < found[0][0]
    assert found[1] == pytest.approx(found[0], rel=0.02)
