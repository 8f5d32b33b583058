"""LoRA: the branch against the paper's equation, what is trained, merging, and what is refused by name."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.ledger import Layout
from hayless.core.registry import configure, method_of
from hayless.methods.adapters.lora import layer, reference
from hayless.methods.adapters.lora.config import LoraConfig
from hayless.methods.quantize.nf4.blocks import Blocks, pack_blocks
from hayless.methods.quantize.nf4.form import BlockFormat
from hayless.model.packing import install
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import batch, check_held, logits, lora_of, losses, predicted


def pack_linear(module: nn.Linear) -> None:
    """Pack a linear module's weight to nf4."""
    config = configure("nf4")
    shape = tuple(module.weight.shape)
    form = BlockFormat(
        shape=shape, layout=Layout.LINEAR, type="nf4", block_size=config.block_size, double=config.double
    )
    packing = Blocks(form)
    install(module, "weight", packing, pack_blocks(module.weight.detach()[None], packing, config))


@pytest.mark.parametrize("name", tiny.NAMES)
def test_the_structure_is_the_predicted_one_and_nothing_changes_at_first(name: str) -> None:
    model = tiny.model(name)
    before = logits(model)
    config = lora_of(name, rank=3)
    (change,) = apply(model, [config])
    ledger = predicted(model, [config])
    check_held(model, ledger)
    assert torch.equal(logits(model), before)
    assert change.figures["trainable"] == ledger.trainable


@pytest.mark.parametrize("name", tiny.NAMES)
def test_only_branches_train(name: str) -> None:
    model = tiny.model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    apply(model, [lora_of(name)])
    losses(model, steps=4)
    for key, value in model.state_dict().items():
        assert key not in before or torch.equal(value, before[key]), key
    moved = [p for p in model.parameters() if p.requires_grad]
    assert all(p.abs().sum() > 0 for p in moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "rank"), [(1, 1, 1, 1), (5, 7, 3, 2), (0, 4, 3, 2), (9, 33, 17, 16)]
)
def test_the_branch_is_the_papers(
    dtype: torch.dtype, conv: bool, rslora: bool, rows: int, inputs: int, outputs: int, rank: int
) -> None:
    torch.manual_seed(0)
    module = (Conv1D(outputs, inputs) if conv else nn.Linear(inputs, outputs)).to(dtype)
    config = LoraConfig(rank=rank, alpha=5, rslora=rslora)
    layer.attach(module, inputs, outputs, config)
    nn.init.normal_(module.lora_A.weight)
    nn.init.normal_(module.lora_B.weight)
    x = torch.randn(2, rows, inputs, dtype=dtype, requires_grad=True)
    towards = torch.randn(2, rows, outputs, dtype=dtype)
    module(x).backward(towards)
    # The reference in float64, from the same (rounded) values.
    same = [x, module.weight, module.bias, module.lora_A.weight, module.lora_B.weight]
    wide = [tensor.detach().double().requires_grad_() for tensor in same]
    scale = reference.scaling(5, rank, rslora=rslora)
    w0 = wide[1].T if conv else wide[1]
    expected = reference.forward(wide[0], w0, wide[2], wide[3], wide[4], scale)
    expected.backward(towards.double())
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 3e-2, "atol": 0.6}
    torch.testing.assert_close(module(x).double(), expected, **tolerance)
    for found, wanted in zip(same, wide, strict=True):
        torch.testing.assert_close(found.grad.double(), wanted.grad, **tolerance)
    assert module.lora_A.weight.dtype is torch.float32


def test_a_16_bit_branch_keeps_its_input_as_it_came_and_no_product() -> None:
    module = nn.Linear(48, 24, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    layer.attach(module, 48, 24, LoraConfig(rank=4))
    x = torch.randn(5, 48, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        module(x)
    assert all(tensor.dtype is torch.bfloat16 for tensor in kept)
    # The input, A, B, and of the frozen product its weight.
    assert sorted(tuple(tensor.shape) for tensor in kept) == [(4, 48), (5, 48), (24, 4), (48, 24)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("held", ["trained", "frozen", "packed"])
def test_the_sum_is_made_where_the_product_lies_unless_that_is_a_view_of_a_graph(held: str, bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.Linear(64, 24, bias=bias).requires_grad_(held == "trained")
    if held == "packed":
        pack_linear(module)
    product: list[int] = []
    before = module.register_forward_hook(lambda module, inputs, output: product.append(output.data_ptr()))
    layer.attach(module, 64, 24, LoraConfig(rank=4))
    nn.init.normal_(module.lora_B.weight)
    x, towards = torch.randn(2, 5, 64, requires_grad=True), torch.randn(2, 5, 24)
    a, b = (module.get_submodule(part).weight.detach() for part in ("lora_A", "lora_B"))
    whole = module.weight.detach() + 2 * b @ a
    for alone in (False, True):
        # Beside another hook, which may have put something into the graph, the product's own backward pass runs.
        if alone:
            before.remove()
        x.grad = None
        out = module(x)
        assert alone or (out.data_ptr() == product[-1]) is not bias
        out.backward(towards)
        torch.testing.assert_close(out, nn.functional.linear(x, whole, module.bias), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(x.grad, towards @ whole, rtol=1e-4, atol=1e-5)
        node = out.grad_fn
        assert node is not None
        assert (node.next_functions[0][0] is None) is (alone and held != "trained")
    if held == "trained":
        twice = 2 * towards.view(-1, 24).T @ x.detach().view(-1, 64)
        torch.testing.assert_close(module.weight.grad, twice, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_kept_products_are_those_without_branches(name: str) -> None:
    """Checkpointing has the very tensors; what a branch adds to them is added again."""
    model = tiny.model(name).train().requires_grad_(False)
    apply(model, [lora_of(name, alpha=3)])
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.1)
    gradients = []
    for keep in (None, "nothing", "products"):
        config = configure("checkpointing", keep=keep or "nothing")
        model.zero_grad()
        with method_of(config).load().install(model, config) if keep else contextlib.nullcontext():
            ids = batch(model)["input_ids"]
            # Dropout draws the same each time.
            torch.manual_seed(0)
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for found in gradients[1:]:
        assert all(map(torch.equal, found, gradients[0]))


def test_a_compiled_branch_gives_the_same() -> None:
    torch.manual_seed(0)
    module = nn.Linear(16, 24, bias=False).requires_grad_(False)
    layer.attach(module, 16, 24, LoraConfig(rank=4))
    nn.init.normal_(module.lora_B.weight)
    x = torch.randn(5, 16, requires_grad=True)
    gradients = []
    for run in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
        module.zero_grad()
        x.grad = None
        out = run(x)
        out.square().sum().backward()
        gradients.append([out, x.grad, module.lora_A.weight.grad, module.lora_B.weight.grad])
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_starts_as_kaiming_and_by_the_seed() -> None:
    from hayless.model.transform import Context

    models = [tiny.model("llama") for _ in range(3)]
    state = torch.get_rng_state()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        apply(model, [configure("lora", targets="q")], Context(seed=seed))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    first, same, other = (model.model.layers[0].self_attn.q_proj.lora_A.weight.detach() for model in models)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert first.abs().max() <= 32**-0.5 and first.std() == pytest.approx((3 * 32) ** -0.5, rel=0.1)
    assert not torch.equal(first, models[0].model.layers[1].self_attn.q_proj.lora_A.weight)


@pytest.mark.parametrize("name", tiny.NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_adds_ba_once_rounded_and_leaves_an_ordinary_model(name: str, dtype: torch.dtype) -> None:
    model = tiny.model(name).to(dtype)
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    config = lora_of(name, rank=2, alpha=8, rslora=True)
    apply(model, [config])
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.05)
    expected = {}
    for key, value in plain.items():
        path = key.removesuffix(".weight")
        module = model.get_submodule(path.rpartition(".")[0] if path == key else path)
        expected[key] = value
        if hasattr(module, "lora_A") and path != key:
            delta = module.lora_B.weight.double() @ module.lora_A.weight.double() * (8 / 2**0.5)
            exact = value.double() + (delta.T if isinstance(module, Conv1D) else delta)
            expected[key] = exact.to(dtype)
    before = logits(model)
    method_of(config).load().merge(model, config)
    assert model.state_dict().keys() == plain.keys()
    step = torch.finfo(dtype).eps
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=step, atol=1e-7)
    assert all(parameter.requires_grad for parameter in model.parameters())
    if dtype is torch.float32:
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)


def test_merging_is_refused_where_it_would_undo_another_method() -> None:
    for other, said in (("kmeans", "packed weights"), ("magnitude", "undo magnitude")):
        model = tiny.model("llama")
        config = configure("lora", targets="attention")
        apply(model, [configure(other, targets="attention"), config])
        before = logits(model)
        with pytest.raises(NotSupported, match=said):
            method_of(config).load().merge(model, config)
        assert torch.equal(logits(model), before) and hasattr(model.model.layers[0].self_attn.q_proj, "lora_A")
    model = tiny.model("llama")
    apply(model, [configure("magnitude", targets="feed_forward"), config])
    method_of(config).load().merge(model, config)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    module = nn.Linear(64, 8)
    layer.attach(module, 64, 8, LoraConfig(rank=4, dropout=0.5))
    nn.init.normal_(module.lora_A.weight)
    nn.init.normal_(module.lora_B.weight)
    x = torch.randn(3, 64)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_refused_with_the_way_around(name: str) -> None:
    model = tiny.model(name)
    for attempt in (
        lambda: apply(model, [configure("lora")]),
        lambda: predicted(model, [configure("lora")]),
        lambda: apply(model, [configure("lora", targets=("q", "down"))]),
    ):
        with pytest.raises(NotSupported, match=r"experts[^$]*targets=\[q, k, v, o\]"):
            attempt()
    with pytest.raises(NotSupported, match="router"):
        apply(model, [configure("lora", targets="router")])
    assert all(parameter.requires_grad for parameter in model.parameters())
    apply(model, [configure("lora", targets=("q", "k", "v", "o"))])


def test_embeddings_and_tied_heads_are_refused_and_free_heads_are_not() -> None:
    with pytest.raises(NotSupported, match=r"embed_tokens"):
        apply(tiny.model("llama"), [configure("lora", targets="embedding")])
    for name in ("gpt2", "llama-tied"):
        with pytest.raises(NotSupported, match="tied to"):
            apply(tiny.model(name), [configure("lora", targets=("blocks", "head"))])
    model = tiny.model("llama")
    config = configure("lora", targets=("q", "lm_head"))
    apply(model, [config])
    check_held(model, predicted(model, [config]))


def test_a_new_head_is_not_frozen_in_silence() -> None:
    shape = tiny.config("llama")
    shape.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(shape)
    with pytest.raises(NotSupported, match=r"score\.weight"):
        apply(model, [configure("lora")])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ("q_porj",)}, "q_proj"),
        ({"targets": ("qkv",)}, "Unknown lora target in a llama model"),
        ({"targets": ("model.layers.7.self_attn.q_proj",)}, "Unknown lora target"),
        ({"rank": 17}, r"1 to 16.*\n.*k_proj has 32 inputs and 16 outputs"),
    ],
)
def test_targets_and_ranks_that_cannot_be(options: dict[str, object], said: str) -> None:
    for attempt in (
        lambda m: apply(m, [configure("lora", **options)]),
        lambda m: predicted(m, [configure("lora", **options)]),
    ):
        with pytest.raises(RequestError, match=said):
            attempt(tiny.model("llama"))


@pytest.mark.parametrize(
    "options", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": ()}, {"r": 8}, {"rank": 2.5}]
)
def test_wrong_options(options: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="lora"):
        configure("lora", **options)


def test_a_second_adapter_is_refused() -> None:
    model = tiny.model("llama")
    first, second = configure("lora", targets="q"), configure("lora", targets="v")
    apply(model, [first])
    with pytest.raises(RequestError, match="adapter already"):
        apply(model, [second])
    with pytest.raises(RequestError, match="adapter already"):
        predicted(model, [first, second])
    with pytest.raises(RequestError, match="add a branch to the same modules"):
        apply(tiny.model("llama"), [first, first])


def test_one_layer_by_its_path() -> None:
    model = tiny.model("llama")
    config = configure("lora", targets=("model.layers.1.mlp.up_proj", "layers.0.self_attn.q_proj"))
    (change,) = apply(model, [config])
    assert set(change.changed) == {"model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"}
    check_held(model, predicted(model, [config]))


def test_a_copy_is_independent() -> None:
    model = tiny.model("llama")
    apply(model, [configure("lora")])
    other = copy.deepcopy(model)
    before = logits(model)
    losses(other)
    assert torch.equal(logits(model), before) and not torch.equal(logits(other), before)


def test_files_of_another_shape_are_refused() -> None:
    model = tiny.model("llama")
    config = configure("lora", targets=("q", "v"))
    apply(model, [config])
    part = method_of(config).load()
    tensors = part.export(model, config).tensors
    name = next(iter(tensors))
    for broken, said in (
        ({key: value for key, value in tensors.items() if key != name}, "lacks"),
        (tensors | {"base_model.model.extra.lora_A.weight": tensors[name]}, "unknown"),
        (tensors | {name: tensors[name][:, 1:]}, "is needed"),
    ):
        with pytest.raises(FileDamaged, match=said):
            part.load(model, config, broken)
