"""GPTQ: columns against the naive derivation, models against predictions, stopping and going on, what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hayless.core.errors import FileDamaged, HaylessError, NotSupported, RequestError, WorkError
from hayless.core.ledger import Layout
from hayless.core.registry import configure, find, method_of
from hayless.methods.common import calibrated
from hayless.methods.common.calibration import Moments, Stream
from hayless.methods.common.integer_packing import codes_of, fit, in_groups, out_of_groups, values_of
from hayless.methods.common.integers import IntegerFormat
from hayless.methods.quantize.gptq.reference import obq
from hayless.methods.quantize.gptq.solve import solve
from hayless.model import writer
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import Context, apply
from tests import tiny
from tests.methods.running import batch, check_held, logits, predicted


def text(rows: int = 8, length: int = 32, seed: int = 5) -> list[torch.Tensor]:
    """Batches of random tokens, two to a batch."""
    ids = torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(seed))
    return list(ids.split(2))


def case(rows: int = 5, columns: int = 200, tokens: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and Σ x·xᵀ of inputs that hang together, in float64."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / 5
    x = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ (mixing + torch.eye(columns))
    return weight, x.T @ x


def shaped(weight: torch.Tensor, **options: object) -> IntegerFormat:
    settings = {"bits": 3, "group_size": 64, **options}
    return IntegerFormat(shape=tuple(weight.shape), layout=Layout.LINEAR, **settings)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, "row"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_columns_are_those_of_the_naive_derivation(act_order: bool, group_size: object, symmetric: bool) -> None:
    weight, gram = case()
    form = shaped(weight, group_size=group_size, symmetric=symmetric)
    found = solve(weight, gram, form, torch.float32, act_order=act_order)
    hessian = 2 * gram
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    order = gram.diagonal().argsort(descending=True).tolist() if act_order else list(range(200))
    scale, zero = fit(in_groups(weight, form), form, torch.float32)

    def rounded(column: int, left: torch.Tensor) -> torch.Tensor:
        group = column // form.width
        if not act_order and group_size != "row" and column % form.width == 0:
            scale[:, group], zero[:, group] = fit(left[:, column : column + form.width], form, torch.float32)
        code = codes_of(left[:, column, None], scale[:, group], zero[:, group], form)
        return values_of(code, scale[:, group], zero[:, group])[:, 0]

    expected = obq(weight, hessian, rounded, order)
    values = values_of(in_groups(found.codes, form), found.scale, found.zero)
    torch.testing.assert_close(out_of_groups(values, form, len(weight)), expected)


def lost(weight: torch.Tensor, gram: torch.Tensor, form: IntegerFormat, **options: object) -> float:
    found = solve(weight, gram, form, torch.float32, **options)
    values = out_of_groups(values_of(in_groups(found.codes, form), found.scale, found.zero), form, len(weight))
    return float(calibrated.output_error(values - weight, gram))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_less_is_lost_than_by_rounding(bits: int) -> None:
    weight, gram = case()
    form = shaped(weight, bits=bits)
    nearest = lost(weight, torch.eye(200, dtype=torch.float64), form, damp=1e-6)
    values = weight - weight
    scale, zero = fit(in_groups(weight, form), form, torch.float32)
    plain = values_of(codes_of(in_groups(weight, form), scale, zero, form), scale, zero)
    values = out_of_groups(plain, form, len(weight))
    rtn = float(calibrated.output_error(values - weight, gram))
    # Inputs that do not hang together leave nothing to make up for: that is rounding to the nearest.
    assert nearest == pytest.approx(float((values - weight).square().sum()))
    for act_order in (False, True):
        assert lost(weight, gram, form, act_order=act_order) < 0.6 * rtn


def test_a_column_without_inputs_is_rounded_to_the_nearest() -> None:
    weight, gram = case()
    gram[7] = gram[:, 7] = 0
    found = solve(weight, gram, shaped(weight, group_size="row"), torch.float32)
    form = shaped(weight, group_size="row")
    assert torch.equal(found.codes[:, 7], codes_of(weight[:, 7:8], found.scale[:, 0], found.zero[:, 0], form)[:, 0])


def test_a_hessian_that_cannot_be_inverted_says_so() -> None:
    weight, gram = case()
    with pytest.raises(WorkError, match=r"gptq\.damp"):
        solve(weight, -gram, shaped(weight), torch.float32)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "opt-350m", "gpt_neox", "qwen3_moe"])
def test_a_model_is_as_predicted_and_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model, config = tiny.model(name), configure("gptq", bits=4, group_size=32, symmetric=name != "llama")
    before = logits(model)
    (change,) = apply(model, [config], Context(calibration=text(), folder=tmp_path / "work"))
    check_held(model, predicted(model, [config]))
    assert not change.skipped and 0 < change.figures["output_error"] < 0.05
    assert (logits(model) - before).norm() < 0.3 * before.norm()
    save_model(model, tmp_path / "model")
    assert torch.equal(logits(load_model(tmp_path / "model")), logits(model))


def test_blocks_read_what_the_model_gives_them() -> None:
    for name in ("gemma3", "gpt2", "opt", "gpt_neox", "mixtral"):
        model = tiny.model(name).train()
        batches = text(rows=4)
        stream, seen = Stream(model, batches), {}
        hooks = [
            block.register_forward_pre_hook(
                lambda module, arguments, options, place=place, seen=seen: seen.setdefault(place, []).append(
                    arguments[0] if arguments else options["hidden_states"]
                ),
                with_kwargs=True,
            )
            for place, block in enumerate(stream.blocks)
        ]
        with torch.no_grad():
            for ids in batches:
                model.eval().base_model(input_ids=ids, use_cache=False)
        for hook in hooks:
            hook.remove()
        model.train()
        for place in range(len(stream.blocks)):
            for mine, theirs in zip(stream._hidden, seen[place], strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
            stream.advance(place)
        assert model.training


def test_each_expert_has_the_moments_of_its_own_tokens() -> None:
    model = tiny.model("mixtral")
    stream = Stream(model, text())
    config = configure("gptq")
    (weight,) = (w for w in calibrated.packable(model, configure("gptq", targets="down")) if ".0." in w.path)
    stage = next(s for s in calibrated.stages(calibrated.dims_of_model(model)) if weight.row.role in s.readers)
    block = calibrated.Block(model, 0, [stage], {weight.row.role: weight}, config, stream)
    (moments,) = block.moments([stage])
    inputs: dict[int, list[torch.Tensor]] = {}
    linear = torch.nn.functional.linear
    stack = weight.module

    def noted(x: torch.Tensor, matrix: torch.Tensor, bias: object = None) -> torch.Tensor:
        for expert in range(4):
            if matrix.data_ptr() == stack.down_proj[expert].data_ptr():
                inputs.setdefault(expert, []).append(x)
        return linear(x, matrix, bias)

    model.set_experts_implementation("eager")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", noted)
        stream.observe(0, [])
    for expert, found in enumerate(moments):
        x = torch.cat(inputs[expert])
        assert found.tokens == len(x)
        torch.testing.assert_close(found.gram, x.T @ x, rtol=1e-4, atol=1e-7)


def test_moments_are_sums_over_all_tokens() -> None:
    x = torch.randn(3, 7, 5)
    found = Moments(5, torch.device("cpu"))
    found.add(x[:1])
    found.add(x[1:].bfloat16().float())
    flat = torch.cat([x[:1], x[1:].bfloat16().float()]).reshape(-1, 5)
    torch.testing.assert_close(found.gram, flat.T @ flat)
    torch.testing.assert_close(found.norms, flat.norm(dim=0))
    torch.testing.assert_close(found.absolute, flat.abs().sum(0))
    assert found.tokens == 21


class Killed(Exception):
    pass


@pytest.mark.parametrize(("method", "name"), [("gptq", "llama"), ("awq", "mixtral")])
def test_work_that_was_killed_goes_on_to_the_same_bits(name: str, method: str, tmp_path: Path) -> None:
    config = configure(method, group_size=32)
    whole = tiny.model(name)
    (expected,) = apply(whole, [config], Context(calibration=text()))

    def dying(what: str, done: int, total: int) -> None:
        if what == method and done == 1:
            raise Killed

    work = Context(calibration=text(), folder=tmp_path / "work")
    with pytest.raises(Killed):
        apply(tiny.model(name), [config], replace(work, progress=dying))
    assert sorted(path.name for path in work.folder.iterdir()) == ["block-0.safetensors", "blocks.json"]
    packed = []
    with pytest.MonkeyPatch.context() as patch:
        original = calibrated.Block.moments
        patch.setattr(calibrated.Block, "moments", lambda self, of: packed.append(self.number) or original(self, of))
        model = tiny.model(name)
        (change,) = apply(model, [config], work)
    assert set(packed) == {1}
    assert change == expected
    for key, value in whole.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    with pytest.raises(RequestError, match="other weights, text or settings"):
        apply(tiny.model(name), [config], replace(work, calibration=text(seed=6)))
    file = work.folder / "block-1.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(FileDamaged, match="not whole"):
        apply(tiny.model(name), [config], work)


def test_the_writer_is_tried_before_anything_is_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise WorkError("the writer is broken")

    model = tiny.model("llama")
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(calibrated, "Stream", None)
    monkeypatch.setattr(writer, "save_model", broken)
    with pytest.raises(WorkError, match="the writer is broken"):
        apply(model, [configure("gptq")], Context(calibration=text()))
    monkeypatch.undo()
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    with pytest.raises(WorkError, match=r"1\.00 kB left"):
        apply(model, [configure("gptq")], Context(calibration=text()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_text_that_is_missing_wrong_or_too_short_says_so(method: str) -> None:
    model, config = tiny.model("llama"), configure(method)
    before = copy.deepcopy(model.state_dict())
    for batches, said in (
        ([], "there is none"),
        ([torch.full((1, 99), 96)], "below 96"),
        ([torch.zeros(1, 47, dtype=torch.int64)], r"47 tokens reach model\.layers\.0\.mlp\.down_proj.* 48 inputs"),
    ):
        with pytest.raises(RequestError, match=said):
            apply(model, [config], Context(calibration=batches))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_an_expert_that_too_few_tokens_reach_is_refused_or_rounded(method: str) -> None:
    model = tiny.model("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate.weight.data[3] = -layer.mlp.gate.weight.data[:3].sum(0) * 100
    rare = Context(calibration=text(rows=2, length=30))
    with pytest.raises(RequestError, match=r"experts\.\w+\[\d\]"):
        apply(model, [configure(method)], rare)
    (change,) = apply(model, [configure(method, round_unseen=True)], rare)
    assert any("rounded to the nearest" in reason for reason in change.skipped.values())
    assert all("experts" in path or "nearest" not in reason for path, reason in change.skipped.items())


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_is_no_decoders_block_is_refused(method: str) -> None:
    context = Context(calibration=text())
    for name in ("bert", "t5"):
        for attempt in (
            lambda name=name: apply(tiny.model(name), [configure(method)], context),
            lambda name=name: predicted(tiny.model(name), [configure(method)]),
        ):
            with pytest.raises(NotSupported, match="uniform, kmeans"):
                attempt()
    for target in ("head", "router"):
        with pytest.raises(HaylessError, match="inside blocks"):
            apply(tiny.model("mixtral"), [configure(method, targets=target)], context)
    assert find(method).needs and method_of(configure(method)) is find(method)


def test_batches_of_two_shapes_are_read() -> None:
    model = tiny.model("qwen3")
    batches = [*text(rows=4), batch(model, rows=1, length=17)["input_ids"]]
    stream = Stream(model, batches)
    stream.advance(0)
    assert [tuple(hidden.shape) for hidden in stream._hidden] == [(2, 32, 32), (2, 32, 32), (1, 17, 32)]
