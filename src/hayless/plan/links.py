"""What connects GPUs: bytes a second that one GPU sends, by their makers' data sheets (half of the printed sum of both
directions). Data sheets are never reached; they bound what is predicted from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hayless.core.devices import Device
from hayless.core.errors import bad_value, unknown

HOST = 8
"""GPUs of a host, as in the machines that published runs were made on."""
NETWORK_GIGABITS = 400.0
"""Of each GPU's own link to other hosts: InfiniBand NDR; HDR has 200, XDR 800."""


@dataclass(frozen=True, slots=True)
class Link:
    """A kind of link and the bytes a second that a GPU sends over it."""

    name: str
    bytes_per_second: float


INSIDE: Mapping[str, Link] = {
    "B200": Link("NVLink 5", 900e9),
    "H200": Link("NVLink 4", 450e9),
    "H100": Link("NVLink 4", 450e9),
    "H100 PCIe": Link("PCIe 5 x16", 64e9),
    "A100 80GB": Link("NVLink 3", 300e9),
    "A100": Link("NVLink 3", 300e9),
    "V100": Link("NVLink 2", 150e9),
    "L40S": Link("PCIe 4 x16", 32e9),
    "L4": Link("PCIe 4 x16", 32e9),
    "A10G": Link("PCIe 4 x16", 32e9),
    "T4": Link("PCIe 3 x16", 16e9),
    "RTX 5090": Link("PCIe 5 x16", 64e9),
    "RTX 4090": Link("PCIe 4 x16", 32e9),
    "RTX 3090": Link("PCIe 4 x16", 32e9),
}
"""Device → what connects GPUs of one host."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Hosts of `host` GPUs of one kind, joined inside by `inside`, and outside by a network link for each GPU.

    `utilisation`: the share of the data sheet's arithmetic that one GPU reaches while it computes.
    """

    device: Device
    gpus: int
    utilisation: float
    inside: Link
    host: int = HOST
    network_bytes_per_second: float = NETWORK_GIGABITS * 1e9 / 8

    def __post_init__(self) -> None:
        for field in ("gpus", "host"):
            if getattr(self, field) < 1:
                raise bad_value(field, getattr(self, field), allowed="a whole number of at least 1")
        if not 0 < self.utilisation <= 1:
            raise bad_value("utilisation", self.utilisation, allowed="a share above 0 and up to 1")
        if not self.network_bytes_per_second > 0:
            raise bad_value("network", self.network_bytes_per_second, allowed="a rate above 0")

    def flops_per_second(self, dtype: str) -> float:
        """What one GPU computes."""
        return self.device.rate(dtype) * self.utilisation

    def bytes_per_second(self, ranks: int, stride: int) -> float:
        """What one of `ranks` GPUs, `stride` apart, sends around a ring of them: inside a host over its link there;
        between hosts over the network links of all members that a host has, where the inner link is not slower."""
        if ranks * stride <= self.host:
            return self.inside.bytes_per_second
        members = min(ranks, max(1, self.host // stride))
        return min(self.inside.bytes_per_second, members * self.network_bytes_per_second)


def inside(device: str) -> Link:
    """What connects GPUs of this name in one host."""
    if device not in INSIDE:
        raise unknown("links of device", device, INSIDE)
    return INSIDE[device]
