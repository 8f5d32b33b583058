"""What devices can do, from their makers' data sheets or by measurement, and how long work takes on them.

A roofline (Williams et al., 2009): a phase takes as long as its arithmetic or its traffic, whichever is longer, and a
little for every kernel that is launched. Rates of data sheets are never reached; measured ones should replace them
where there are any (`hayless.measure.machine`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hayless.core.cost import Cost, Work
from hayless.core.errors import RequestError, bad_value, unknown

LAUNCH_SECONDS = 2e-5
"""An operation launched from Python by transformers' eager code: decoding on an H200's host took 18 to 28 µs each."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device as numbers: memory in bytes as printed, bytes/s to and from it, FLOP/s by dtype (dense products).

    `source` says where the numbers come from.
    """

    name: str
    memory_bytes: int
    bytes_per_second: float
    flops_per_second: Mapping[str, float]
    launch_seconds: float = LAUNCH_SECONDS
    source: str = "data sheet"

    def rate(self, dtype: str) -> float:
        """FLOP/s of products in `dtype`; 16-bit types stand in for each other, and float32 for what is not known."""
        rates = self.flops_per_second
        for known in (dtype, *(("float16", "bfloat16") if dtype in ("float16", "bfloat16") else ()), "float32"):
            if known in rates:
                return rates[known]
        raise RequestError(f"The rate of {dtype} on {self.name} is not known; known: {', '.join(rates)}.")

    def measured(self, bytes_per_second: float, flops_per_second: Mapping[str, float]) -> Device:
        """This device with measured rates in the place of printed ones."""
        rates = {**self.flops_per_second, **flops_per_second}
        return replace(self, bytes_per_second=bytes_per_second, flops_per_second=rates, source="measured")

    def seconds(self, work: Work, dtype: str) -> float:
        """How long `work` takes: the longer of arithmetic in `dtype` and traffic, and the launches."""
        arithmetic, traffic = work.flops / self.rate(dtype), work.moved_bytes / self.bytes_per_second
        return max(arithmetic, traffic) + work.launches * self.launch_seconds

    def bound(self, work: Work, dtype: str) -> str:
        """What `work` waits for most: `arithmetic`, `memory` or `launches`."""
        times = {
            "arithmetic": work.flops / self.rate(dtype),
            "memory": work.moved_bytes / self.bytes_per_second,
            "launches": work.launches * self.launch_seconds,
        }
        return max(times, key=lambda name: times[name])


def step_seconds(cost: Cost, device: Device, dtype: str) -> float:
    """Seconds of one update: all phases of a training cost, one after the other."""
    return sum(device.seconds(work, dtype) for work in cost.work.values())


def token_seconds(cost: Cost, device: Device, dtype: str) -> float:
    """Seconds of one decoding step, which gives each row a token."""
    if "decode" not in cost.work:
        raise RequestError("This is a cost of training, which has no decoding step.")
    return device.seconds(cost.work["decode"], dtype)


def find(name: str) -> Device:
    """A device by its short name, or by the longer one its driver reports; RequestError names what there is."""
    words = _words(name)
    for known, device in DEVICES.items():
        if _words(known) <= words and not (words - _words(known)) & _OTHER_CHIPS:
            return device
    raise unknown("device", name, DEVICES)


def this_machine(
    name: str, memory_bytes: int, bytes_per_second: float, flops_per_second: Mapping[str, float]
) -> Device:
    """A device from measured numbers; a data sheet fills in the dtypes that were not measured, where it is known."""
    for field, value in (("memory_bytes", memory_bytes), ("bytes_per_second", bytes_per_second)):
        if not value > 0:
            raise bad_value(field, value, allowed="a number above 0")
    try:
        known = find(name)
    except RequestError:
        return Device(name, memory_bytes, bytes_per_second, dict(flops_per_second), source="measured")
    return replace(known, name=name, memory_bytes=memory_bytes).measured(bytes_per_second, flops_per_second)


def _gpu(name: str, memory_gb: float, terabytes: float, bf16: float, fp32: float, **others: float) -> Device:
    """GB of memory, TB/s, dense TFLOP/s with float32 sums (tensor cores for 16 bits, none for fp32)."""
    rates = {"bfloat16": bf16 * 1e12} if bf16 else {}
    rates |= {dtype: rate * 1e12 for dtype, rate in others.items()}
    return Device(name, int(memory_gb * 1e9), terabytes * 1e12, {**rates, "float32": fp32 * 1e12})


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", name.casefold()))


_OTHER_CHIPS = frozenset({"ti", "super", "laptop", "d", "max", "mobile"})
"""Words that make another chip of a name."""

DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _gpu("B200", 180, 8.0, 2250, 75),
        _gpu("H200", 141, 4.8, 989, 67),
        _gpu("H100 PCIe", 80, 2.0, 756, 51),
        _gpu("H100", 80, 3.35, 989, 67),
        _gpu("A100 80GB", 80, 2.039, 312, 19.5),
        _gpu("A100", 40, 1.555, 312, 19.5),
        _gpu("L40S", 48, 0.864, 362, 91.6),
        _gpu("L4", 24, 0.300, 121, 30.3),
        _gpu("A10G", 24, 0.600, 70, 31.5),
        _gpu("V100", 32, 0.900, 0, 15.7, float16=125),
        _gpu("T4", 16, 0.320, 0, 8.1, float16=65),
        _gpu("RTX 5090", 32, 1.792, 209, 104.8),
        _gpu("RTX 4090", 24, 1.008, 165, 82.6),
        _gpu("RTX 3090", 24, 0.936, 71, 35.6),
    )
}
"""Common GPUs; names with more words stand before those they contain."""

H200_MEASURED = DEVICES["H200"].measured(4.27e12, {"bfloat16": 715e12})
"""An H200 as this project measured it: a copy of gigabytes (read and written bytes counted), a large bf16 product."""
