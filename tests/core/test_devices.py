"""The roofline and the table of devices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hayless.core.cost import TrainShape, training_cost
from hayless.core.decoding import decode_cost
from hayless.core.devices import DEVICES, Reached, find, step_seconds, this_machine, token_seconds
from hayless.core.errors import RequestError
from hayless.core.families import dims_of, ledger_of
from hayless.core.work import Kernel, Work, elementwise
from tests import tiny

HERE = replace(this_machine("here", 10**9, 1e9, {"float32": 1e12}), kernel_seconds=0.0, reached=Reached())


def test_a_kernel_takes_the_longer_of_arithmetic_and_traffic() -> None:
    busy, hungry = Kernel("matrix", "float32", 2e12, 1e9), Kernel("matrix", "float32", 1e12, 3e9)
    assert HERE.seconds(Work((busy,))) == 2.0
    assert HERE.seconds(Work((hungry,))) == 3.0
    assert HERE.seconds(Work((busy, hungry)).times(2)) == 10.0
    assert HERE.seconds(Work((elementwise(5e8, count=4),))) == 2.0


def test_a_phase_takes_as_long_as_its_kernels_or_as_their_launches() -> None:
    assert HERE.seconds(Work(launches=1000)) == pytest.approx(1000 * HERE.launch_seconds)
    slow = replace(HERE, kernel_seconds=1.0)
    assert slow.seconds(Work((elementwise(1e9),), launches=1)) == 2.0


def test_shares_of_rates_are_those_of_the_unit() -> None:
    shared = replace(HERE, reached=Reached(matrix=0.5, uneven=0.1, attention=0.25, memory=0.8))
    seconds = {
        unit: shared.seconds(Work((Kernel(unit, "float32", 1e12, 0.0),))) for unit in ("matrix", "uneven", "attention")
    }
    assert seconds == pytest.approx({"matrix": 2.0, "uneven": 10.0, "attention": 4.0})
    assert shared.seconds(Work((elementwise(8e8),))) == pytest.approx(1.0)


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


def test_eight_bits_take_the_time_of_sixteen_where_a_device_has_no_units_for_them() -> None:
    def seconds(name: str, dtype: str) -> float:
        bare = replace(DEVICES[name], kernel_seconds=0.0, reached=Reached(matrix=0.8, eight_bit=0.4))
        return bare.seconds(Work((Kernel("matrix", dtype, 1e12, 0.0),)))

    assert seconds("H100", "int8") == pytest.approx(1 / (1979 * 0.4)) == seconds("H100", "float8_e4m3fn")
    assert seconds("A100", "int8") == pytest.approx(1 / (624 * 0.4))
    assert seconds("A100", "float8_e4m3fn") == seconds("A100", "bfloat16") == pytest.approx(1 / (312 * 0.8))
    assert seconds("V100", "int8") == seconds("V100", "float16")
    # A packed factor is written in 16 bits there, and read again.
    wide = replace(HERE, flops_per_second={"bfloat16": 1e12}, bytes_per_second=1e9)
    packed = Kernel("matrix", "int8", 1.0, 1e9, widened=2e9)
    assert wide.seconds(Work((packed,))) == pytest.approx(5.0)
    native = replace(wide, flops_per_second={"bfloat16": 1e12, "int8": 1e12})
    assert native.seconds(Work((packed,))) == pytest.approx(1.0)


def test_measured_rates_replace_printed_ones() -> None:
    mine = this_machine("NVIDIA L4", 20 * 10**9, 2.5e11, {"bfloat16": 9e13})
    assert mine.source == "measured" and mine.reached.memory == mine.reached.matrix == 1.0
    assert mine.memory_bytes == 20 * 10**9 and mine.watts == DEVICES["L4"].watts
    assert mine.rate("float32") == DEVICES["L4"].rate("float32")
    with pytest.raises(RequestError, match="bytes_per_second"):
        this_machine("here", 10**9, 0.0, {})


def test_sixteen_bit_types_stand_in_for_each_other() -> None:
    assert DEVICES["T4"].rate("bfloat16") == DEVICES["T4"].rate("float16")
    assert DEVICES["L4"].rate("float64") == DEVICES["L4"].rate("float32")
    with pytest.raises(RequestError, match="not known"):
        this_machine("here", 1, 1.0, {}).rate("float32")


def test_times_follow_from_costs() -> None:
    ledger = ledger_of(dims_of(tiny.config("llama").to_dict()))
    training, decoding = training_cost(ledger, TrainShape(2, 16)), decode_cost(ledger, 1, 16)
    slow, fast = (this_machine("here", 10**9, rate, {"float32": rate}) for rate in (1e6, 1e7))
    assert step_seconds(training, slow) > step_seconds(training, fast) > 0
    assert token_seconds(decoding, slow) > token_seconds(decoding, fast) > 0
    with pytest.raises(RequestError, match="no decoding step"):
        token_seconds(training, slow)
