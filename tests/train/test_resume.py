"""A run that is stopped, in whatever way, ends with the bits of one that is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from hayless.core.errors import FileDamaged, RequestError
from hayless.core.registry import configure
from hayless.train.failures import Interrupted
from hayless.train.metrics import read
from tests import tiny
from tests.train import source, worker

TIMED = {"tokens_per_second", "data_wait_share", "seconds", "eta_seconds", "peak_bytes", "mfu"}
ROOT = Path(__file__).parents[2]


def final(folder, steps):
    """Every tensor of the last checkpoint, random states included."""
    path = folder / "checkpoints" / f"step-{steps:08d}"
    return {f"{file.name}/{name}": t for file in path.glob("*.safetensors") for name, t in load_file(file).items()}


def figures(folder):
    """All metric lines without events and times."""
    lines = [line for line in read(folder / "metrics.jsonl") if line["kind"] != "event"]
    return [{name: value for name, value in line.items() if name not in TIMED} for line in lines]


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.train.worker", str(folder), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_twice_once_during_a_save_ends_with_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    worker.make(whole).run()

    process = start(killed, "saving")
    wait_for((killed / "saving").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    checkpoints = killed / "run" / "checkpoints"
    assert not (checkpoints / "step-00000006").exists()
    assert list(checkpoints.glob(".step-00000006.*"))
    assert max(line["step"] for line in read(killed / "run" / "metrics.jsonl")) == 6

    process = start(killed, "step")
    wait_for((killed / "step").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert max(line["step"] for line in read(killed / "run" / "metrics.jsonl")) == 11
    assert not list(checkpoints.glob(".*"))

    process = start(killed)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    events = [line["message"] for line in source.lines(killed / "run", "event")]
    assert [event for event in events if event.startswith("Going on")] == [
        "Going on from step 5.",
        "Going on from step 10.",
    ]
    assert not list(checkpoints.glob(".*"))
    assert source.same(final(whole / "run", worker.STEPS), final(killed / "run", worker.STEPS))
    assert figures(whole / "run") == figures(killed / "run")


class Fails(source.Random):
    """Raises at one step, once."""

    failed: ClassVar[set[int]] = set()

    def whole(self, step):
        if step == self.period and step not in self.failed:
            self.failed.add(step)
            raise KeyError("stopped")
        return source.batch([[12], [5, 4], [9], [7]], 12, seed=step % 3)


@pytest.mark.parametrize("precision", ["fp32", "autocast", "master", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", [configure("adamw"), configure("sgd", momentum=0.9)], ids=["adamw", "sgd"])
def test_resumes_with_the_same_bits_in_every_precision(tmp_path, precision, optimizer):
    def make(folder, batches):
        options = {"precision": precision, "steps": 9, "checkpoint_every": 2, "log_every": 1}
        return source.trainer(folder, model=tiny.model("gpt2"), batches=batches, optimizer=optimizer, **options)

    make(tmp_path / "whole", Fails(period=-1)).run()
    Fails.failed.clear()
    with pytest.raises(KeyError):
        make(tmp_path / "stopped", Fails(period=5)).run()
    make(tmp_path / "stopped", Fails(period=5)).run()
    assert source.same(final(tmp_path / "whole", 9), final(tmp_path / "stopped", 9))
    assert figures(tmp_path / "whole") == figures(tmp_path / "stopped")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_can_go_on(tmp_path, number):
    class Signalled(source.Random):
        def whole(self, step):
            if step == 3:
                os.kill(os.getpid(), number)
            return super().whole(step)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=rf"Stopped by {number.name} after step \d of 6; everything is saved"):
        source.trainer(tmp_path / "run", batches=Signalled(), log_every=1).run()
    assert signal.getsignal(number) is before
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    source.trainer(tmp_path / "run", log_every=1).run()
    source.trainer(tmp_path / "whole", log_every=1).run()
    assert source.same(final(tmp_path / "whole", 6), final(tmp_path / "run", 6))
    assert figures(tmp_path / "whole") == figures(tmp_path / "run")


def test_a_damaged_newest_checkpoint_is_said_and_the_run_still_ends_the_same(tmp_path):
    for name in ("whole", "run"):
        source.trainer(tmp_path / name, checkpoint_every=2, keep_last=3, log_every=1).run()
    newest = tmp_path / "run" / "checkpoints" / "step-00000006" / "weights-1.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    source.trainer(tmp_path / "run", checkpoint_every=2, keep_last=3, log_every=1).run()
    said = [line["message"] for line in source.lines(tmp_path / "run", "event")]
    where = said.index("Going on from step 4.")
    assert "damaged" in said[where - 1] and "step-00000006" in said[where - 1]
    assert source.same(final(tmp_path / "whole", 6), final(tmp_path / "run", 6))
    assert figures(tmp_path / "whole") == figures(tmp_path / "run")


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = source.trainer(tmp_path)
    result = first.run()

    class Forbidden(source.Random):
        def whole(self, step):
            raise AssertionError

    again = source.trainer(tmp_path, batches=Forbidden())
    assert again.run().loss == result.loss
    assert source.same(source.weights(first.model), source.weights(again.model))


def test_other_settings_are_refused_by_name(tmp_path):
    source.trainer(tmp_path).run()
    with pytest.raises(RequestError, match="steps = 6, not 7"):
        source.trainer(tmp_path, steps=7).run()
    with pytest.raises(RequestError, match=r"optimizer = .*0\.01"):
        source.trainer(tmp_path, optimizer=configure("adamw", learning_rate=2e-2)).run()
    source.trainer(tmp_path, keep_last=5, micro_batch_size=2).run()


def test_another_model_is_refused(tmp_path):
    source.trainer(tmp_path).run()
    with pytest.raises(FileDamaged, match="different trained parameters"):
        source.trainer(tmp_path, model=tiny.model("gpt2")).run()


def test_only_what_trains_is_saved_and_buffers_that_change(tmp_path):
    class Counting(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.register_buffer("seen", torch.zeros(1), persistent=False)

        def forward(self, *arguments, **options):
            self.seen += 1
            return self.inner(*arguments, **options)

    def make():
        model = tiny.model("llama").requires_grad_(False)
        model.model.norm.weight.requires_grad_(True)
        model.model.layers[0].mlp = Counting(model.model.layers[0].mlp)
        return model

    run = source.trainer(tmp_path, model=make())
    run.run()
    saved = final(tmp_path, 6)
    names = {name.split("/", 1)[1] for name in saved if name.startswith(("weights", "buffers"))}
    assert names == {"model.norm.weight", "model.layers.0.mlp.seen"}
    again = source.trainer(tmp_path, model=make())
    again.run()
    assert float(again.model.model.layers[0].mlp.seen) == 6
