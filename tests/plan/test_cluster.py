"""Training on many GPUs, on paper: what the formulas must fulfil for any split, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hayless.cli.plan import app
from hayless.core.devices import DEVICES
from hayless.core.errors import RequestError
from hayless.core.families import dims_of, ledger_of
from hayless.plan import cluster_tables, links
from hayless.plan.cluster import Job, Prediction, Split, predict, search
from hayless.plan.links import INSIDE, Cluster
from hayless.plan.presets import config_of

DIMS = dims_of(config_of("llama-3-8b"))
JOB = Job(ledger_of(DIMS), 64, 1024)


def cluster(ranks: int, **changes: Any) -> Cluster:
    return replace(Cluster(DEVICES["H100"], ranks, 0.4, INSIDE["H100"]), **changes)


def predicted(split: Split, job: Job = JOB, **changes: Any) -> Prediction:
    return predict(job, split, cluster(split.ranks, **changes))


POWERS = st.sampled_from([1, 2, 4, 8])


@settings(max_examples=30, deadline=None)
@given(POWERS, POWERS, POWERS, st.integers(0, 3), st.sampled_from([1, 2, 4]), st.sampled_from([0.0, 1.0]))
def test_any_split_computes_the_same_and_never_beats_the_ideal(
    data: int, tensor: int, pipeline: int, stage: int, micro: int, again: float
) -> None:
    split = Split(data, tensor, pipeline, stage, micro, again)
    found = predicted(split)
    whole = predicted(Split(micro_batch=micro, recompute=again))
    micros = -(-64 // (data * micro))
    # Rows are rounded up to whole micro-batches of every rank.
    assert found.seconds["compute"] * split.ranks == pytest.approx(
        whole.seconds["compute"] * micros * data * micro / 64
    )
    assert 0 < found.efficiency <= 1 and found.rate == found.tokens / found.step_seconds
    assert found.seconds["bubble"] >= (pipeline - 1) / micros * found.seconds["compute"] * (1 - 1e-9)
    assert (found.seconds["bubble"] == 0) == (pipeline == 1)
    assert (found.sent["tensors"] == 0) == (tensor == 1) and (found.sent["stages"] == 0) == (pipeline == 1)
    assert (found.sent["gradients"] == 0) == (data == 1)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([2, 4, 16]), POWERS, st.sampled_from([1, 2, 4]))
def test_later_stages_hold_less_and_the_third_sends_half_as_much_again(data: int, tensor: int, pipeline: int) -> None:
    found = [predicted(Split(data, tensor, pipeline, stage, 64 // data)) for stage in range(4)]
    states = [each.held.weights + each.held.gradients + each.held.optimizer + each.held.master for each in found]
    assert states == sorted(states, reverse=True)
    assert states[3] == pytest.approx(states[0] / data, rel=1e-6)
    sent = [each.sent["gradients"] + each.sent["weights"] for each in found]
    # One micro-batch: ZeRO's 1, 1, 1 and 1.5 times plain data parallelism.
    assert [each / sent[0] for each in sent] == pytest.approx([1, 1, 1, 1.5])


def test_stages_that_keep_nothing_whole_send_for_every_micro_batch() -> None:
    once, often = (predicted(Split(8, stage=3, micro_batch=micro)) for micro in (8, 2))
    assert often.sent["weights"] == pytest.approx(4 * once.sent["weights"])
    once, often = (predicted(Split(8, stage=1, micro_batch=micro)) for micro in (8, 2))
    assert often.sent == once.sent


def test_traffic_is_hidden_as_far_as_there_is_work_to_hide_it() -> None:
    split = Split(16, stage=3, micro_batch=4)
    slow = predicted(split, network_bytes_per_second=1e9)
    assert predicted(split).seconds["exposed"] == 0 < slow.seconds["exposed"]
    ring = 15 / 16 * 2 * ledger_of(DIMS).parameters
    # Eight members of a host share its links; two gathers and a reduce-scatter, less both passes.
    assert slow.seconds["exposed"] == pytest.approx(3 * ring / 8e9 - slow.seconds["compute"])


def test_a_ring_is_as_fast_as_its_slowest_link() -> None:
    there = cluster(64)
    nvlink, network = there.inside.bytes_per_second, there.network_bytes_per_second
    assert there.bytes_per_second(8, 1) == nvlink and there.bytes_per_second(8, 8) == network
    assert there.bytes_per_second(16, 1) == 8 * network and there.bytes_per_second(16, 4) == 2 * network
    assert set(INSIDE) == set(DEVICES)


def test_pipelines_hold_no_less_activations_and_tensors_split_them() -> None:
    one, tensors, stages = (predicted(split) for split in (Split(), Split(1, 8), Split(1, 1, 8)))
    assert tensors.held.activations == pytest.approx(one.held.activations / 8, rel=1e-6)
    assert stages.held.activations == one.held.activations
    assert predicted(Split(recompute=1.0)).held.activations < one.held.activations / 8


def test_the_search_finds_what_fits_and_says_why_not() -> None:
    fitting, failing = search(JOB, cluster(16))
    rates = [each.rate for each in fitting]
    assert rates == sorted(rates, reverse=True) and all(each.split.ranks == 16 for each in fitting)
    assert all(each.needed_bytes <= DEVICES["H100"].memory_bytes for each in fitting)
    assert "8 key-value heads" in failing["tensor 16"]
    small = replace(DEVICES["H100"], memory_bytes=10 * 10**9)
    fitting, failing = search(replace(JOB, batch=8), cluster(16, device=small))
    assert fitting and "rows" in failing["data 16"] and "needs" in failing["pipeline 16"]
    assert "no 64 stages" in search(JOB, cluster(64))[1]["pipeline 64"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpus": 0}, "gpus"),
        ({"utilisation": 0.0}, "utilisation"),
        ({"utilisation": 1.5}, "utilisation"),
        ({"host": 0}, "host"),
        ({"network_bytes_per_second": 0.0}, "network"),
    ],
)
def test_impossible_clusters_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        cluster(8, **change)


def test_impossible_jobs_are_refused() -> None:
    for make in (lambda: Job(JOB.ledger, 0, 8), lambda: Job(JOB.ledger, 8, 0), lambda: predicted(Split(0))):
        with pytest.raises(RequestError, match="at least 1"):
            make()
    with pytest.raises(RequestError, match="links of device"):
        links.inside("Abacus")


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["cluster", *map(str, arguments)])
    if isinstance(result.exception, RequestError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_the_verb_prints_published_runs_splits_and_the_ideal_line(tmp_path: Path) -> None:
    shown = run()
    for words in ("5,762", "8,532", "torchtitan", "14.06", "Unverified", "copies", "median error"):
        assert words in shown
    picture = tmp_path / "times.svg"
    found = json.loads(run("--preset", "llama-1b", "--gpus", 4, "--batch", 16, "--out", picture, "--json"))
    splits, comparison, line = found["tables"]
    assert splits["rows"][0]["fits"] and splits["rows"][0]["verified"] is False
    assert splits["rows"][0]["tokens_per_second"] >= splits["rows"][1]["tokens_per_second"]
    assert {row["copies_of_weights"] for row in comparison["rows"]} == {1, 4}
    # 16 rows of an update feed 16 data ranks; more GPUs must split the model, whose 16 layers and 8 heads end at 128.
    assert [row["predicted_minutes"] is None for row in line["rows"]].count(True) == 0
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gpus", 0), "gpus = 0"),
        (("--gpus", 2048), "1 to 1,024"),
        (("--gpu-days", 0), "gpu_days"),
        (("--batch", 0), "batch"),
        (("--seq", 0), "sequence"),
        (("--utilisation", 2), "utilisation"),
        (("--network", 0), "network"),
        (("--host", 0), "host"),
        (("--device", "H20"), "H200"),
        (("--preset", "llama-8"), "preset"),
        (("--precision", "int3"), "precision"),
        (("--out", "x.doc"), "png"),
    ],
)
def test_wrong_requests_are_refused(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        run(*arguments)


def test_the_measured_share_is_that_of_the_committed_result() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "train_1b.json"
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    rates = {row["contender"]: row["value"] for row in rows if row["metric"] == "rate"}
    job = Job(ledger_of(dims_of(config_of("llama-1b"))), 8, 2048, precision="bf16")
    for contender, kind in (("hayless", "eager"), ("hayless, compile", "compiled")):
        share = rates[contender] * job.flops / (8 * 2048) / DEVICES["H200"].rate("bfloat16")
        assert cluster_tables.MEASURED[kind] == pytest.approx(share, abs=0.001)
