"""Paged AdamW (Dettmers et al., 2023, arXiv:2305.14314, section 3), by explicit copies.

The paper lets the driver move pages when memory runs out (managed memory). Here what is paged is said beforehand, and
copies are made and waited for by name, on streams of their own beside the arithmetic: memory is what was planned, and
no access can fault. Pages are ranges of a parameter's flat moments, which AdamW lets move each by itself; small
parameters, such as those of adapters, share a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hayless.core.errors import NotSupported
from hayless.kernels.adamw import Options, Part, move, moved_alone
from hayless.methods.common.decay import decay_groups
from hayless.methods.memory.paged.config import PagedConfig
from hayless.methods.memory.paged.predict import PAGE_ELEMENTS, VECTOR, resident_elements
from hayless.train.slots import ShrinkingOptimizer, Trainable

_MOMENTS = ("exp_avg", "exp_avg_sq")
_PAGED = "_paged"


class Paged:
    """Fills the optimizer slot."""

    fused = False

    @staticmethod
    def build(config: PagedConfig, parameters: Sequence[Trainable]) -> PagedAdamW:
        """AdamW at its peak learning rate."""
        return PagedAdamW(parameters, config)


class PagedAdamW(ShrinkingOptimizer):
    """Remembers for each parameter `step` and its flat moments: `exp_avg` and `exp_avg_sq` of the first elements beside
    it, and with `_paged` those of the rest, which are in pinned host memory where the parameter is on a GPU."""

    def __init__(self, parameters: Sequence[Trainable], config: PagedConfig) -> None:
        for item in parameters:
            if not item.tensor.is_contiguous():
                raise NotSupported(f"{item.name} is not contiguous in memory, which paged needs.", hint="Use adamw.")
        super().__init__(decay_groups(parameters, config.weight_decay, config.decay), {"lr": config.learning_rate})
        self._config = config
        self._shared = [list(_together(group["params"], config.device_share)) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient. On a GPU the host waits until all pages are back."""
        lanes: dict[torch.device, _Lane] = {}
        for group, found in zip(self.param_groups, self._shared, strict=True):
            for shared in found:
                device = shared.parameters[0].device
                if device not in lanes:
                    lanes[device] = _Lane(device)
                self._move(shared, group, lanes[device])
        for lane in lanes.values():
            lane.finish()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put back a state, each part where it belongs, which torch's own would bring to the device whole."""
        order = [parameter for group in self.param_groups for parameter in group["params"]]
        saved = {order[place]: tensors for place, tensors in state_dict["state"].items()}
        self.state.clear()
        for shared in (each for found in self._shared for each in found):
            for number, parameter in enumerate(shared.parameters):
                for name, tensor in saved.get(parameter, {}).items():
                    self._remembered(shared, number)[name].copy_(tensor)

    def _move(self, shared: _Shared, group: dict[str, Any], lane: _Lane) -> None:
        moving = [number for number, parameter in enumerate(shared.parameters) if parameter.grad is not None]
        if not moving:
            return
        here = []
        for number in moving:
            state, resident = self._remembered(shared, number), shared.resident[number]
            if resident:
                here.append(_Range(shared.parameters[number], 0, resident, [state[name] for name in _MOMENTS]))
        self._update(here, group)
        for start, page in lane.pages(shared.moments):
            there = []
            for number in moving:
                place, resident = shared.places[number], shared.resident[number]
                first, last = max(place.start, start), min(place.stop, start + len(page[0]))
                if first < last:
                    moments = [moment[first - start : last - start] for moment in page]
                    before = resident - place.start
                    there.append(_Range(shared.parameters[number], before + first, before + last, moments))
            self._update(there, group)

    def _remembered(self, shared: _Shared, number: int) -> dict[str, Tensor]:
        """The state of one of the parameters; it begins with zeros."""
        parameter = shared.parameters[number]
        state: dict[str, Tensor] = self.state[parameter]
        if not shared.moments:
            shared.moments = [_on_host(parameter, shared.places[-1].stop) for _ in _MOMENTS]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for name, moment in zip(_MOMENTS, shared.moments, strict=True):
                state[name] = parameter.new_zeros(shared.resident[number])
                state[name + _PAGED] = moment[shared.places[number]]
        return state

    def _update(self, ranges: Sequence[_Range], group: dict[str, Any]) -> None:
        """AdamW on ranges of parameters. It counts the steps of a parameter with its last range, and before those of a
        copy."""
        moved = []
        for each in ranges:
            parameter, (first, second) = each.parameter, each.moments
            counted = each.counted(self.state[parameter]["step"])
            pair = each.of(parameter), each.of(parameter.grad)
            moved.append(Part(*pair, first, second, counted, moved_alone(parameter)))
        move(moved, Options(group["lr"], group["weight_decay"], self._config.betas, self._config.eps), self.factor)


@dataclass(eq=False)
class _Shared:
    """Parameters whose paged moments lie one behind the other on the host, and cross together: one, or as many as have
    room in a page. Of each the first `resident` elements' moments are on the device; those of the others are `places`
    of `moments`, which are made with the first gradient."""

    parameters: list[Tensor]
    resident: list[int]
    places: list[slice]
    moments: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Range:
    """Elements `start` to `stop` of a flat parameter, and their moments where they are used."""

    parameter: Tensor
    start: int
    stop: int
    moments: list[Tensor]

    def of(self, tensor: Tensor | None) -> Tensor:
        """These elements of the parameter or of its gradient."""
        assert tensor is not None, "only what has a gradient moves"
        return tensor.reshape(-1)[self.start : self.stop]

    def counted(self, step: Tensor) -> Tensor:
        """The parameter's own count of steps for its last range, else a copy."""
        return step if self.stop == self.parameter.numel() else step.clone()


def _together(parameters: Sequence[Tensor], share: float) -> Iterator[_Shared]:
    """Neighbours of one dtype and device, as many as fill a page. Each begins at a whole vector of any CPU's."""
    found: _Shared | None = None
    for parameter in parameters:
        resident = resident_elements(parameter.numel(), share)
        start = -(-found.places[-1].stop // VECTOR) * VECTOR if found else 0
        place = slice(start, start + parameter.numel() - resident)
        kind = (parameter.dtype, parameter.device)
        if found and ((found.parameters[0].dtype, found.parameters[0].device) != kind or place.stop > PAGE_ELEMENTS):
            yield found
            found, place = None, slice(0, parameter.numel() - resident)
        if found is None:
            found = _Shared([], [], [])
        found.parameters.append(parameter)
        found.resident.append(resident)
        found.places.append(place)
    if found:
        yield found


@dataclass
class _Buffer:
    """Room on the device for a page of each moment; `free`: its last page is back on the host."""

    moments: list[Tensor]
    free: torch.cuda.Event | None = None


class _Lane:
    """Brings pages to a device and back, two at a time. On a CPU pages are used where they lie."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[_Buffer] = []
        self._turn = 0
        if device.type == "cuda":
            self._there, self._back = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def pages(self, moments: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """Where each page of `moments` starts, and the page: what is written to it is written to `moments`."""
        for start in range(0, len(moments[0]), PAGE_ELEMENTS):
            page = [moment[start : start + PAGE_ELEMENTS] for moment in moments]
            if self._device.type != "cuda":
                yield start, page
                continue
            buffer, main = self._buffer(page[0]), torch.cuda.current_stream(self._device)
            staged = [room[: len(page[0])] for room in buffer.moments]
            with torch.cuda.stream(self._there):
                if buffer.free:
                    self._there.wait_event(buffer.free)
                for here, host in zip(staged, page, strict=True):
                    here.copy_(host, non_blocking=True)
            main.wait_stream(self._there)
            yield start, staged
            self._back.wait_stream(main)
            with torch.cuda.stream(self._back):
                for here, host in zip(staged, page, strict=True):
                    host.copy_(here, non_blocking=True)
                buffer.free = self._back.record_event()

    def finish(self) -> None:
        """Wait until every page is back: the host may read them, and the buffers may go."""
        if self._device.type == "cuda":
            self._back.synchronize()

    def _buffer(self, like: Tensor) -> _Buffer:
        """The next of two, as large as the largest page so far."""
        self._turn += 1
        if len(self._buffers) < 2:
            self._buffers.append(self._made(like))
            return self._buffers[-1]
        buffer = self._buffers[self._turn % 2]
        if len(buffer.moments[0]) < len(like):
            self.finish()
            buffer.moments = []
            self._buffers[self._turn % 2] = buffer = self._made(like)
        return buffer

    def _made(self, like: Tensor) -> _Buffer:
        made = [torch.empty(len(like), dtype=like.dtype, device=self._device) for _ in _MOMENTS]
        # What this memory held before may still be in use on the main stream.
        self._there.wait_stream(torch.cuda.current_stream(self._device))
        return _Buffer(made)


def _on_host(parameter: Tensor, elements: int) -> Tensor:
    """Room for so many moments of a parameter: zeros, pinned where they cross to a GPU."""
    return torch.zeros(elements, dtype=parameter.dtype, pin_memory=parameter.is_cuda)
