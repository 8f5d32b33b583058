"""What moves the weights: the base of all updaters, which serves fp32, autocast and bf16 as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from hayless.core.errors import FileDamaged, WorkError
from hayless.core.method import MethodConfig
from hayless.train.slots import OptimizerPart, ShrinkingOptimizer, Trainable

_SCALER = "/scaler"
_CLIP_EPS = 1e-6
"""As in torch.nn.utils.clip_grad_norm_."""


class Updater:
    """Moves the model's own parameters with one optimizer: fp32, autocast and bf16.

    `parameters` are the model's, which receive gradients; `moved` are what the optimizer moves. With a `scaler` losses
    are scaled. An update is `begin`, a `backward` for each micro-batch, `norm` once, and `step`.
    """

    def __init__(
        self,
        parameters: Sequence[Trainable],
        moved: Sequence[Trainable],
        part: OptimizerPart,
        config: MethodConfig,
        scaler: GradScaler | None = None,
    ) -> None:
        self._parameters = parameters
        self._moved = moved
        self._scaler = scaler
        self._clip_norm: float | None = None
        self._optimizers = [part.build(config, chunk) for chunk in self._chunks()]
        self._names: dict[Tensor, str] = {trainable.tensor: trainable.name for trainable in self._moved}
        self._peaks = [
            [group["lr"] * group.get("rate", 1.0) for group in optimizer.param_groups] for optimizer in self._optimizers
        ]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._parameters[0].tensor.device

    def begin(self, share: float, clip_norm: float | None, micro_batches: int = 1) -> None:
        """An update of so many backward passes begins, at `share` of the peak learning rate; gradients will be scaled
        down where their norm exceeds `clip_norm`."""
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
        self._clip_norm = clip_norm

    @property
    def moves_in_backward(self) -> bool:
        """Whether `backward` moves the weights already, in the update that has begun."""
        return False

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to those that are there."""
        loss.backward()

    def norm(self) -> Tensor:
        """The norm of all gradients together, a float32 scalar on their device. Called once, before `step`."""
        gradients = [item.tensor.grad for item in self._parameters if item.tensor.grad is not None]
        return norm_of(torch._foreach_norm(gradients, dtype=torch.float32) if gradients else [])

    def step(self, norm: Tensor) -> bool:
        """Move the weights and drop the gradients, whose norm is `norm`.

        False when nothing was moved, because fp16 gradients overflowed.
        """
        self._clip(norm)
        for optimizer in self._optimizers:
            optimizer.step()
        self.drop_gradients()
        return True

    def scale(self) -> float:
        """What losses are multiplied by now; 1 without a scaler."""
        return float(self._scaler.get_scale()) if self._scaler else 1.0

    def rate(self) -> float:
        """The learning rate last set (of the first group)."""
        return float(self._optimizers[0].param_groups[0]["lr"])

    def drop_gradients(self) -> None:
        """Free the gradients."""
        for trainable in self._parameters:
            trainable.tensor.grad = None

    def close(self) -> None:
        """Leave nothing on the model: it is trained no longer."""
        self.drop_gradients()

    def weights(self) -> dict[str, Tensor]:
        """What the optimizer moves, by name: the trained parameters, in `master` their fp32 masters."""
        return {trainable.name: trainable.tensor.detach() for trainable in self._moved}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `weights` gave. FileDamaged for other names or shapes."""
        found = {trainable.name: trainable.tensor for trainable in self._moved}
        _same_names(found, tensors, "trained parameters")
        with torch.no_grad():
            for name, tensor in found.items():
                if tensor.shape != tensors[name].shape or tensor.dtype != tensors[name].dtype:
                    raise FileDamaged(
                        f"{name} is {tuple(tensors[name].shape)} {tensors[name].dtype} in the checkpoint and"
                        f" {tuple(tensor.shape)} {tensor.dtype} in the model."
                    )
                tensor.copy_(tensors[name])
        self._round()

    def optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the optimizer remembers: tensors by `name/key`, numbers by the same names, the scaler's too."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for optimizer in self._optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        tensors[f"{self._names[parameter]}/{key}"] = value
                    elif value is not None:
                        plain[f"{self._names[parameter]}/{key}"] = value
        if self._scaler:
            plain[_SCALER] = self._scaler.state_dict()
        return tensors, plain

    def load_optimizer_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Put back what `optimizer_state` gave."""
        by_name: dict[str, dict[str, Any]] = {}
        numbers = dict(plain)
        if self._scaler:
            if _SCALER not in numbers:
                raise FileDamaged("The checkpoint has no state of the loss scale.")
            self._scaler.load_state_dict(numbers.pop(_SCALER))
        for path, value in {**tensors, **numbers}.items():
            name, _, key = path.rpartition("/")
            by_name.setdefault(name, {})[key] = value
        unknown = by_name.keys() - set(self._names.values())
        if unknown:
            raise FileDamaged(f"The checkpoint's optimizer knows {min(unknown)!r}, which is not trained.")
        for optimizer in self._optimizers:
            current = optimizer.state_dict()
            order = [self._names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            current["state"] = {place: by_name[name] for place, name in enumerate(order) if name in by_name}
            optimizer.load_state_dict(current)
            for parameter, state in optimizer.state.items():
                # torch gives states the weight's dtype, also those that have one of their own.
                for key, value in by_name.get(self._names[parameter], {}).items():
                    if isinstance(value, Tensor) and value.dtype != state[key].dtype:
                        state[key] = value.to(state[key].device)

    def _chunks(self) -> Iterator[Sequence[Trainable]]:
        yield self._moved

    def _clip(self, norm: Tensor) -> None:
        factor = 1.0 if self._clip_norm is None else shrinking(norm, self._clip_norm)
        for optimizer in self._optimizers:
            shrink_for(optimizer, factor)

    @torch.no_grad()
    def _round(self) -> None:
        """Round fp32 masters, where there are any, into the weights."""
        if self._moved is not self._parameters:
            for weight, master in zip(self._parameters, self._moved, strict=True):
                weight.tensor.copy_(master.tensor)


def norm_of(norms: Sequence[Tensor]) -> Tensor:
    """The norm of a vector whose parts have these norms. WorkError where there is none."""
    if not norms:
        raise WorkError("The loss reaches no trainable parameter: there is no gradient.")
    device = norms[0].device
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))


def shrinking(norm: Tensor, clip_norm: float) -> float:
    """What gradients of this norm are multiplied by, 1 at most. A number of the host's, who has seen the norm by then:
    products of 16 bits with a number that lies on a GPU take four times as long, and round it to 16 bits."""
    return float(torch.clamp(clip_norm / (norm.cpu() + _CLIP_EPS), max=1.0))


def shrink(gradients: Sequence[Tensor | None], factor: float) -> None:
    """Multiply gradients, where there are any, by what `shrinking` gives."""
    there = [gradient for gradient in gradients if gradient is not None]
    if factor != 1 and there:
        torch._foreach_mul_(there, factor)


def shrink_for(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Let an optimizer move by its parameters' gradients times `factor`, which it may see to by itself."""
    if isinstance(optimizer, ShrinkingOptimizer):
        optimizer.factor = factor
    else:
        shrink([parameter.grad for group in optimizer.param_groups for parameter in group["params"]], factor)


def check_scale(scale: float, norm: Tensor) -> None:
    """WorkError where gradients overflow fp16 even unscaled."""
    if scale <= 1 and not torch.isfinite(norm):
        raise WorkError("Gradients overflow fp16 even without scaling.", hint="Use precision autocast or fp32.")


def _same_names(wanted: Mapping[str, object], given: Mapping[str, object], what: str) -> None:
    odd = sorted(wanted.keys() ^ given.keys())
    if odd:
        raise FileDamaged(
            f"The checkpoint and the model have different {what}: {len(odd)} are in one only, such as {odd[0]!r}."
        )
