"""Paged AdamW (Dettmers et al., 2023, arXiv:2305.14314, section 3), by explicit copies.

The paper lets the driver move pages when memory runs out (managed memory). Here what is paged is said beforehand, and
copies are made and waited for by name, on streams of their own beside the arithmetic: memory is what was planned, and
no access can fault. Pages are ranges of a parameter's flat moments, which AdamW lets move each by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from hayless.core.errors import NotSupported
from hayless.methods.common.decay import decay_groups
from hayless.methods.memory.paged.config import PagedConfig
from hayless.methods.memory.paged.predict import PAGE_ELEMENTS, resident_elements
from hayless.train.slots import Trainable

_MOMENTS = ("exp_avg", "exp_avg_sq")
_PAGED = "_paged"


class Paged:
    """Fills the optimizer slot."""

    fused = False

    @staticmethod
    def build(config: PagedConfig, parameters: Sequence[Trainable]) -> PagedAdamW:
        """AdamW at its peak learning rate."""
        return PagedAdamW(parameters, config)


class PagedAdamW(torch.optim.Optimizer):
    """Remembers for each parameter `step` and its flat moments: `exp_avg` and `exp_avg_sq` of the first elements beside
    it, and with `_paged` those of the rest, which are in pinned host memory where the parameter is on a GPU."""

    def __init__(self, parameters: Sequence[Trainable], config: PagedConfig) -> None:
        for item in parameters:
            if not item.tensor.is_contiguous():
                raise NotSupported(f"{item.name} is not contiguous in memory, which paged needs.", hint="Use adamw.")
        super().__init__(decay_groups(parameters, config.weight_decay, config.decay), {"lr": config.learning_rate})
        self._config = config

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient. On a GPU the host waits until all pages are back."""
        lanes: dict[torch.device, _Lane] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    lane = lanes.setdefault(parameter.device, _Lane(parameter.device))
                    self._move(parameter, group, lane)
        for lane in lanes.values():
            lane.finish()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put back a state, each part where it belongs, which torch's own would bring to the device whole."""
        order = [parameter for group in self.param_groups for parameter in group["params"]]
        self.state.clear()
        for place, saved in state_dict["state"].items():
            parameter = order[place]
            for name, tensor in saved.items():
                made = (
                    _on_host(parameter, len(tensor))
                    if name.endswith(_PAGED)
                    else torch.empty_like(tensor, device=parameter.device)
                )
                self.state[parameter][name] = made.copy_(tensor)

    def _move(self, parameter: Tensor, group: dict[str, Any], lane: _Lane) -> None:
        state = self.state[parameter]
        resident = resident_elements(parameter.numel(), self._config.device_share)
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for name in _MOMENTS:
                state[name] = parameter.new_zeros(resident)
                state[name + _PAGED] = _on_host(parameter, parameter.numel() - resident)
        weights, gradients = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]
        if resident:
            here = slice(0, resident)
            self._update(weights[here], gradients[here], [state[name] for name in _MOMENTS], state["step"], group)
        away = [state[name + _PAGED] for name in _MOMENTS]
        for start, moments in lane.pages(away):
            part = slice(resident + start, resident + start + len(moments[0]))
            self._update(weights[part], gradients[part], moments, state["step"], group)
        state["step"] += 1

    def _update(
        self, weights: Tensor, gradients: Tensor, moments: Sequence[Tensor], step: Tensor, group: dict[str, Any]
    ) -> None:
        """torch's own AdamW on a range of a parameter; it counts steps itself, here those of a copy."""
        one, two = self._config.betas
        first, second = moments
        adamw(
            [weights],
            [gradients],
            [first],
            [second],
            [],
            [step.clone()],
            foreach=False,
            fused=weights.is_cuda,
            amsgrad=False,
            beta1=one,
            beta2=two,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=self._config.eps,
            maximize=False,
        )


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
