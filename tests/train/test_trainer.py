"""Validation, patience, samples, reports, memory that runs out: what a run does besides updates."""

import io
import json
import math
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo.utils
from rich.console import Console

from hayless.core.errors import MissingExtra, NotSupported, RequestError, WorkError
from hayless.core.registry import configure, method_of
from hayless.train.metrics import MetricsLog, read
from hayless.train.validate import held_out
from tests import tiny
from tests.train import source

HELD_OUT = [source.batch([[12], [5, 4]], 12, seed=100), source.batch([[7]], 12, seed=101)]


@pytest.mark.parametrize(("objective", "name"), [("lm", "llama"), ("sft", "gpt2"), ("lm", "mixtral"), ("lm", "opt")])
def test_overfits_one_batch(tmp_path, objective, name):
    run = source.trainer(
        tmp_path,
        model=tiny.model(name),
        objective=configure(objective),
        batches=source.Random(period=1, answers=objective == "sft"),
        steps=80,
        log_every=1,
        schedule={"shape": "cosine", "warmup": 0.1, "floor": 0.0},
    )
    result = run.run()
    lines = source.lines(tmp_path, "train")
    assert result.loss < 0.2 * lines[0]["loss"]
    if objective == "sft":
        assert lines[0]["token_accuracy"] < 0.3 and lines[-1]["token_accuracy"] > 0.8


def test_validates_every_n_and_at_the_end(tmp_path):
    result = source.trainer(tmp_path, steps=5, validate_every=2, validation=HELD_OUT).run()
    lines = source.lines(tmp_path, "validation")
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert result.validation_loss == lines[-1]["loss"]
    assert result.best_loss == min(line["loss"] for line in lines)


def test_zero_validates_at_the_end_only(tmp_path):
    source.trainer(tmp_path, steps=5, validation=HELD_OUT).run()
    assert [line["step"] for line in source.lines(tmp_path, "validation")] == [5]


def test_held_out_loss_is_a_mean_over_tokens_and_leaves_the_modes_alone():
    model = tiny.model("gpt2").train()
    model.transformer.drop.eval()
    config = configure("lm")
    objective = method_of(config).load()(config)
    batches = [source.batch([[12], [7]], 12, seed=1), source.batch([[3]], 12, seed=2)]
    found = held_out(model, objective, batches, source.settings())
    assert model.training and model.transformer.h[0].training and not model.transformer.drop.training
    model.eval()
    nats = []
    for batch in batches:
        log_p = model(batch.input_ids).logits.log_softmax(-1)
        for row, position in zip(*torch.where(batch.targets >= 0), strict=True):
            nats.append(-float(log_p[row, position, batch.targets[row, position]].detach()))
    assert len(nats) == 22
    assert found == {"loss": pytest.approx(sum(nats) / 22, rel=1e-5)}


def test_stops_early_and_gives_the_best_weights_back(tmp_path):
    """Held-out text the model is taken away from: the loss there only rises after a while."""
    run = source.trainer(
        tmp_path,
        steps=200,
        batches=source.Random(period=1),
        validation=HELD_OUT,
        validate_every=2,
        patience=3,
        keep_last=1,
        log_every=1,
    )
    result = run.run()
    lines = source.lines(tmp_path, "validation")
    assert result.stopped == "patience" and result.steps == lines[-1]["step"] < 200
    best = min(lines, key=lambda line: line["loss"])
    assert result.best_step == best["step"] == result.steps - 6
    assert run.model.training is False
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step-{result.best_step:08d}", f"step-{result.steps:08d}"]
    best_weights = source.weights(run.model)
    objective = method_of(configure("lm")).load()(configure("lm"))
    assert held_out(run.model, objective, HELD_OUT, source.settings())["loss"] == best["loss"]
    # Started once more with a new model, it knows that it was done, and which weights were best.
    more = source.trainer(
        tmp_path, steps=200, batches=source.Random(period=1), validation=HELD_OUT, validate_every=2, patience=3
    )
    assert more.run().steps == result.steps
    assert source.same(source.weights(more.model), best_weights)


def test_keeps_last_k_and_best(tmp_path):
    source.trainer(
        tmp_path,
        steps=12,
        batches=source.Random(period=1),
        optimizer=configure("adamw", learning_rate=0.05),
        validation=HELD_OUT,
        validate_every=1,
        checkpoint_every=1,
        keep_last=2,
    ).run()
    best = min(source.lines(tmp_path, "validation"), key=lambda line: line["loss"])["step"]
    assert best < 11
    kept = [int(path.name[5:]) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert kept == [best, 11, 12]


def test_samples_fixed_prompts_without_touching_the_run(tmp_path):
    tokenizer, _ = source.corpus(tmp_path)
    options = {"model": None, "steps": 6, "sample_every": 3, "prompts": ["the horse", "grass"], "sample_tokens": 5}
    with_samples = source.trainer(tmp_path / "a", tokenizer=tokenizer, **{**options, "model": tiny.model("gpt2")})
    with_samples.run()
    without = source.trainer(tmp_path / "b", model=tiny.model("gpt2"))
    without.run()
    lines = source.lines(tmp_path / "a", "sample")
    assert [(line["step"], line["prompt"]) for line in lines] == [
        (3, "the horse"),
        (3, "grass"),
        (6, "the horse"),
        (6, "grass"),
    ]
    assert all(isinstance(line["text"], str) for line in lines)
    assert source.same(source.weights(with_samples.model), source.weights(without.model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 2}, "patience needs held-out"),
        ({"patience": 2, "validation": HELD_OUT}, "validate_every"),
        ({"sample_every": 2, "prompts": ["a"]}, "needs a tokenizer"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, changes, message):
    with pytest.raises(RequestError, match=message):
        source.trainer(tmp_path, **changes)


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    out = io.StringIO()
    source.trainer(tmp_path, steps=4, log_every=2, console=Console(file=out, width=200), validation=HELD_OUT).run()
    text = out.getvalue()
    assert text.count("step 2/4  loss ") == text.count("step 4/4  loss ") == 1
    for word in ("lr 1.00e-02", "norm ", "tok/s", "trained", "padded", "peak ", "left", "held-out loss"):
        assert word in text
    assert "\x1b" not in text


def test_a_live_line_on_a_terminal(tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    source.trainer(tmp_path, steps=4, log_every=1, console=console, validation=HELD_OUT).run()
    text = out.getvalue()
    assert "4/4" in text and "\x1b[" in text and "held-out loss" in text


def test_metric_lines_have_units_in_their_names_and_count_right(tmp_path):
    source.trainer(tmp_path, steps=2, log_every=1).run()
    lines = source.lines(tmp_path, "train")
    assert set(lines[0]) == {
        "kind",
        "step",
        "loss",
        "learning_rate",
        "gradient_norm",
        "tokens",
        "trained_tokens",
        "padded_tokens",
        "tokens_per_second",
        "data_wait_share",
        "peak_bytes",
        "mfu",
        "seconds",
        "eta_seconds",
    }
    batches = [source.Random().whole(step) for step in range(2)]
    assert lines[1]["tokens"] == sum(batch.input_tokens for batch in batches)
    assert lines[1]["padded_tokens"] == sum(batch.padded_tokens for batch in batches)
    assert lines[1]["mfu"] is None and lines[1]["peak_bytes"] > 10**6


def test_waiting_for_data_is_counted_and_said(tmp_path):
    class Late(source.Random):
        """The last batch comes a while after all others were used."""

        def step(self, step):
            while step == 3 and len(source.lines(tmp_path, "train")) < 3:
                time.sleep(0.01)
            time.sleep(0.3 if step == 3 else 0)
            return super().step(step)

    out = io.StringIO()
    source.trainer(tmp_path, steps=4, batches=Late(), log_every=1, console=Console(file=out, width=200)).run()
    shares = [line["data_wait_share"] for line in source.lines(tmp_path, "train")]
    assert all(0 <= share <= 1 for share in shares) and shares[3] > 0.02
    assert f"{shares[3]:.0%} waiting for data" in out.getvalue()


def test_tensorboard_events(tmp_path):
    source.trainer(tmp_path, steps=2, log_every=1, tensorboard=True).run()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert events.Scalars("train/loss")[1].value == pytest.approx(source.lines(tmp_path, "train")[1]["loss"])


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match="track"):
        source.trainer(tmp_path, tensorboard=True).run()


class TestMemoryRunsOut:
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory."),
            MemoryError(),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        ],
    )
    def test_says_what_was_predicted_and_what_would_fit(self, tmp_path, error):
        class Large(source.Random):
            def whole(self, step):
                raise error

        with pytest.raises(WorkError) as caught:
            source.trainer(tmp_path, batches=Large(), predicted_bytes=3 * 10**9).run()
        text = str(caught.value)
        for part in ("3.00 GB were predicted", "micro_batch_size: 2", "[checkpointing]", "autocast", "Weights take"):
            assert part in text

    def test_a_real_one_on_the_cpu(self, tmp_path):
        model = tiny.model("llama")

        class Large(torch.nn.Module):
            def forward(self, *arguments, **options):
                return torch.empty(2**60)

        model.model.layers[0].mlp = Large()
        with pytest.raises(WorkError, match="Memory ran out"):
            source.trainer(tmp_path, model=model, memory=[configure("checkpointing")]).run()

    def test_advice_leaves_out_what_is_in_use(self, tmp_path):
        class Large(source.Random):
            def whole(self, step):
                raise MemoryError

        run = source.trainer(
            tmp_path, batches=Large(), precision="bf16", micro_batch_size=1, memory=[configure("checkpointing")]
        )
        with pytest.raises(WorkError) as caught:
            run.run()
        assert "micro_batch_size" not in str(caught.value) and "[checkpointing]" not in str(caught.value)


def test_other_runtime_errors_pass_through(tmp_path):
    class Odd(source.Random):
        def whole(self, step):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        source.trainer(tmp_path, batches=Odd()).run()


def test_weights_of_two_dtypes_that_meet_are_a_request_error(tmp_path):
    model = tiny.model("llama").bfloat16().requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    with pytest.raises(RequestError, match="precision autocast"):
        source.trainer(tmp_path / "fp32", model=model).run()
    source.trainer(tmp_path / "autocast", model=model, precision="autocast").run()


def test_a_broken_held_out_loss_stops(tmp_path):
    broken = source.batch([[3]], 12)
    broken.input_ids[0, 0] = 0
    model = tiny.model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = math.inf
    with pytest.raises(WorkError, match="held-out loss at step 2 is not finite"):
        source.trainer(tmp_path, model=model, validation=[broken], validate_every=2).run()


def test_packed_rows_under_an_attention_without_masks_are_refused(tmp_path):
    model = tiny.model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(NotSupported, match="not kept apart"):
        source.trainer(tmp_path, model=model).run()


def test_deterministic_is_on_while_it_trains_and_off_afterwards(tmp_path):
    seen = []

    class Asks(source.Random):
        def whole(self, step):
            seen.append(torch.are_deterministic_algorithms_enabled())
            return super().whole(step)

    source.trainer(tmp_path, batches=Asks(), deterministic=True).run()
    assert all(seen) and not torch.are_deterministic_algorithms_enabled()


def test_the_seed_decides(tmp_path):
    found = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        run = source.trainer(tmp_path / folder, model=tiny.model("gpt2"), seed=seed, steps=2)
        run.run()
        found.append(source.weights(run.model))
    assert source.same(found[0], found[1]) and not source.same(found[0], found[2])


@pytest.mark.parametrize("keep", [None, "nothing", "products"])
def test_compiled_blocks_compute_the_same_and_share_one_compilation(tmp_path, monkeypatch, keep):
    """Without code generation, which takes a minute on a CPU and is torch's; checkpointed, and not (None)."""
    memory = [configure("checkpointing", keep=keep)] if keep else []
    plain = source.trainer(tmp_path / "plain", steps=3).run()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = source.trainer(tmp_path / "compiled", compile=True, steps=3, memory=memory)
    assert run.run().loss == pytest.approx(plain.loss, rel=1e-5)
    # The other is the norm behind the blocks.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    assert all("forward" not in vars(module) for module in run.model.modules())


class TestMetricsLog:
    def test_cuts_what_comes_again_and_torn_lines(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        log = MetricsLog(path, after=0)
        for step in (1, 2, 3):
            log.write("train", step, {"loss": float(step)})
        log.write("sample", 3, {"text": "two\u2028lines"})
        log.close()
        with path.open("a") as file:
            file.write('{"kind": "train", "step": 4, "lo')
        assert [line["step"] for line in read(path)] == [1, 2, 3, 3]
        MetricsLog(path, after=2).close()
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_a_full_disk_is_a_work_error(self):
        log = MetricsLog(Path("/dev/full"), after=0)
        with pytest.raises(WorkError, match="could not be written"):
            log.write("train", 1, {"loss": 1.0})
        log.close()

    def test_writes_null_for_what_json_cannot_say(self, tmp_path):
        log = MetricsLog(tmp_path / "m", after=0)
        log.write("train", 1, {"gradient_norm": math.inf})
        log.close()
        assert read(tmp_path / "m")[0]["gradient_norm"] is None
