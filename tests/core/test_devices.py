"""The roofline and the table of devices."""

from __future__ import annotations

import pytest

from hayless.core.cost import TrainShape, Work, decode_cost, training_cost
from hayless.core.devices import DEVICES, H200_MEASURED, find, step_seconds, this_machine, token_seconds
from hayless.core.errors import RequestError
from hayless.core.families import dims_of, ledger_of
from tests import tiny


def test_a_phase_takes_the_longer_of_arithmetic_and_traffic() -> None:
    device = this_machine("here", 10**9, 1e9, {"float32": 1e12})
    assert device.seconds(Work(flops=2e12, moved_bytes=1e9), "float32") == 2.0
    assert device.bound(Work(flops=2e12, moved_bytes=1e9), "float32") == "arithmetic"
    assert device.seconds(Work(flops=1e12, moved_bytes=3e9), "float32") == 3.0
    assert device.bound(Work(flops=1e12, moved_bytes=3e9), "float32") == "memory"
    launched = Work(launches=1000)
    assert device.seconds(launched, "float32") == pytest.approx(1000 * device.launch_seconds)
    assert device.bound(launched, "float32") == "launches"


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("h200", "H200"),
    ],
)
def test_devices_are_found_by_what_drivers_report(reported: str, name: str) -> None:
    assert find(reported).name == name


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 3090 Ti", "H20", "abacus", ""])
def test_other_devices_are_not_taken_for_known_ones(name: str) -> None:
    with pytest.raises(RequestError, match="H200"):
        find(name)


def test_measured_rates_replace_printed_ones() -> None:
    printed = DEVICES["H200"]
    assert H200_MEASURED.bytes_per_second < printed.bytes_per_second
    assert H200_MEASURED.rate("bfloat16") < printed.rate("bfloat16")
    assert H200_MEASURED.rate("float32") == printed.rate("float32")
    assert H200_MEASURED.source == "measured"
    mine = this_machine("NVIDIA L4", 20 * 10**9, 2.5e11, {"bfloat16": 9e13})
    assert mine.memory_bytes == 20 * 10**9 and mine.rate("float32") == DEVICES["L4"].rate("float32")
    with pytest.raises(RequestError, match="bytes_per_second"):
        this_machine("here", 10**9, 0.0, {})


def test_sixteen_bit_types_stand_in_for_each_other() -> None:
    assert DEVICES["T4"].rate("bfloat16") == DEVICES["T4"].rate("float16")
    assert DEVICES["L4"].rate("float8_e4m3fn") == DEVICES["L4"].rate("float32")
    with pytest.raises(RequestError, match="not known"):
        this_machine("here", 1, 1.0, {}).rate("float32")


def test_times_follow_from_costs() -> None:
    ledger = ledger_of(dims_of(tiny.config("llama").to_dict()))
    training, decoding = training_cost(ledger, TrainShape(2, 16)), decode_cost(ledger, 1, 16)
    slow, fast = (this_machine("here", 10**9, rate, {"float32": rate}) for rate in (1e6, 1e7))
    assert step_seconds(training, slow, "float32") > step_seconds(training, fast, "float32") > 0
    assert token_seconds(decoding, slow, "float32") > token_seconds(decoding, fast, "float32") > 0
    with pytest.raises(RequestError, match="no decoding step"):
        token_seconds(training, slow, "float32")
