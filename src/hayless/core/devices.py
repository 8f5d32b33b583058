"""What devices can do, from their makers' data sheets or by measurement, and how long work takes on them.

A roofline (Williams et al., 2009) of every kernel: it takes as long as its arithmetic or its traffic, whichever is
longer, and a little. A phase takes as long as its kernels, or as the host needs to launch them. Rates of data sheets
are never reached; what share of them is was fitted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hayless.core.cost import Cost
from hayless.core.errors import RequestError, bad_value, unknown
from hayless.core.tape import Unit
from hayless.core.work import Kernel, Work

LAUNCH_SECONDS = 20e-6
"""An operation launched from Python by eager code. It is the host's: 39 µs on that of another H100, 18 to 28 on those
of two H200."""
KERNEL_SECONDS = 3.9e-6
"""What a kernel takes besides its arithmetic and traffic."""
OVERLAPPED_SECONDS = 2.0e-6
"""The same for one that begins while the one before it ends."""


@dataclass(frozen=True, slots=True)
class Reached:
    """Shares of a device's rates that are reached: of products of matrices (`uneven`: where 8 does not divide a width;
    `eight_bit`: of 8-bit numbers) and of fused attention, of memory's traffic by elementwise kernels, and by products
    that wait for their weights."""

    matrix: float = 1.0
    uneven: float = 1.0
    eight_bit: float = 1.0
    attention: float = 1.0
    memory: float = 1.0
    streamed: float = 1.0

    def of(self, unit: Unit) -> float:
        """The share of products that `unit` computes."""
        if unit == "attention":
            return self.attention
        return self.uneven if unit == "uneven" else self.matrix


FITTED = Reached(matrix=0.80, uneven=0.12, eight_bit=0.45, attention=0.47, memory=0.70, streamed=0.85)
"""Shares of the data sheet's rates. These and the times above were fitted to every second timed case of the grid on an
H100, `LAUNCH_SECONDS` anew on the host of a second one (`benchmarks/results/plan.json` has the error on the others),
and are taken for other devices. That of 8-bit numbers is what PyTorch's integer product (`torch._int_mm`) reached on an
H200 at 4096 tokens; it is taken for e4m3 too, of which nothing was measured."""

EIGHT_BIT = ("int8", "float8_e4m3fn")
"""Numbers of 8 bits that units for matrices multiply, on devices that have a rate for them."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device as numbers: memory in bytes as printed, bytes/s to and from it, FLOP/s by dtype (dense products).

    `watts` is the board's power limit by its data sheet, what it draws at most (None: not known). `reached` is what is
    left of the rates in practice. `source` says where the numbers come from.
    """

    name: str
    memory_bytes: int
    bytes_per_second: float
    flops_per_second: Mapping[str, float]
    watts: int | None = None
    launch_seconds: float = LAUNCH_SECONDS
    kernel_seconds: float = KERNEL_SECONDS
    reached: Reached = FITTED
    source: str = "data sheet"

    def rate(self, dtype: str) -> float:
        """FLOP/s of products in `dtype`; 16-bit types stand in for each other and for 8 bits, and float32 for what is
        not known."""
        rates = self.flops_per_second
        narrow = dtype in ("float16", "bfloat16", *EIGHT_BIT)
        for known in (dtype, *(("float16", "bfloat16") if narrow else ()), "float32"):
            if known in rates:
                return rates[known]
        raise RequestError(f"The rate of {dtype} on {self.name} is not known; known: {', '.join(rates)}.")

    def seconds(self, work: Work) -> float:
        """How long `work` takes: its kernels one after the other, or what the host needs to launch them."""
        return max(sum(kernel.count * self._kernel(kernel) for kernel in work.kernels), self.host_seconds(work))

    def host_seconds(self, work: Work) -> float:
        """How long the host takes to launch `work`."""
        return work.launches * self.launch_seconds

    def _kernel(self, kernel: Kernel) -> float:
        """The longer of arithmetic and traffic, and what every kernel takes."""
        if not kernel.flops:
            return kernel.bytes / (self.bytes_per_second * self.reached.memory) + self.kernel_seconds
        traffic = kernel.bytes / (self.bytes_per_second * self.reached.streamed)
        known = kernel.dtype in self.flops_per_second
        widening = 0.0 if known else 2 * kernel.widened / (self.bytes_per_second * self.reached.memory)
        if kernel.unit == "stream":
            return traffic + widening + OVERLAPPED_SECONDS
        share = self.reached.eight_bit if known and kernel.dtype in EIGHT_BIT else self.reached.of(kernel.unit)
        arithmetic = kernel.flops / (self.rate(kernel.dtype) * share)
        return max(arithmetic, traffic) + widening + self.kernel_seconds


def step_seconds(cost: Cost, device: Device) -> float:
    """Seconds of one update: all phases of a training cost, one after the other."""
    return sum(device.seconds(work) for work in cost.work.values())


def token_seconds(cost: Cost, device: Device) -> float:
    """Seconds of one decoding step, which gives each row a token."""
    if "decode" not in cost.work:
        raise RequestError("This is a cost of training, which has no decoding step.")
    return device.seconds(cost.work["decode"])


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
    """A device from measured numbers; a data sheet fills in the dtypes that were not measured, where it is known.

    What is measured is taken to be reached.
    """
    for field, value in (("memory_bytes", memory_bytes), ("bytes_per_second", bytes_per_second)):
        if not value > 0:
            raise bad_value(field, value, allowed="a number above 0")
    try:
        known = find(name)
    except RequestError:
        known = Device(name, memory_bytes, bytes_per_second, {})
    rates = {**known.flops_per_second, **flops_per_second}
    return replace(
        known,
        name=name,
        memory_bytes=memory_bytes,
        bytes_per_second=bytes_per_second,
        flops_per_second=rates,
        reached=Reached(
            uneven=FITTED.uneven / FITTED.matrix,
            eight_bit=FITTED.eight_bit,
            attention=FITTED.attention / FITTED.matrix,
        ),
        source="measured",
    )


def _gpu(
    name: str,
    memory_gb: float,
    terabytes: float,
    bf16: float,
    fp32: float,
    watts: int,
    *,
    int8: float = 0,
    fp8: float = 0,
    float16: float = 0,
) -> Device:
    """GB of memory, TB/s, dense TFLOP/s with float32 sums (int32 for int8; tensor cores, none for fp32), W; 0 where
    tensor cores do not know the numbers."""
    named = {"bfloat16": bf16, "float16": float16, "int8": int8, "float8_e4m3fn": fp8}
    rates = {dtype: rate * 1e12 for dtype, rate in named.items() if rate}
    return Device(name, int(memory_gb * 1e9), terabytes * 1e12, {**rates, "float32": fp32 * 1e12}, watts)


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", name.casefold()))


_OTHER_CHIPS = frozenset({"ti", "super", "laptop", "d", "max", "mobile"})
"""Words that make another chip of a name."""

DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _gpu("B200", 180, 8.0, 2250, 75, 1000, int8=4500, fp8=4500),
        _gpu("H200", 141, 4.8, 989, 67, 700, int8=1979, fp8=1979),
        _gpu("H100 PCIe", 80, 2.0, 756, 51, 350, int8=1513, fp8=1513),
        _gpu("H100", 80, 3.35, 989, 67, 700, int8=1979, fp8=1979),
        _gpu("A100 80GB", 80, 2.039, 312, 19.5, 400, int8=624),
        _gpu("A100", 40, 1.555, 312, 19.5, 400, int8=624),
        _gpu("L40S", 48, 0.864, 362, 91.6, 350, int8=733, fp8=733),
        _gpu("L4", 24, 0.300, 121, 30.3, 72, int8=242, fp8=242),
        _gpu("A10G", 24, 0.600, 70, 31.5, 300, int8=140),
        _gpu("V100", 32, 0.900, 0, 15.7, 300, float16=125),
        _gpu("T4", 16, 0.320, 0, 8.1, 70, float16=65, int8=130),
        _gpu("RTX 5090", 32, 1.792, 209, 104.8, 575, int8=838, fp8=419),
        _gpu("RTX 4090", 24, 1.008, 165, 82.6, 450, int8=660, fp8=330),
        _gpu("RTX 3090", 24, 0.936, 71, 35.6, 350, int8=284),
    )
}
"""Common GPUs; names with more words stand before those they contain."""
