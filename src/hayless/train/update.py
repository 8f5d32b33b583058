"""One update of the weights from gradients: clip, move, and in `master` and `fp16` what surrounds that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from hayless.core.errors import FileDamaged, WorkError
from hayless.core.method import MethodConfig
from hayless.core.registry import method_of
from hayless.train.precision import cast_weights, trainables
from hayless.train.settings import Precision
from hayless.train.slots import OptimizerPart, Trainable

_CHUNK_BYTES = 64 * 2**20
"""fp32 gradients that exist at once in `master` (a larger tensor stands alone)."""
_CLIP_EPS = 1e-6
"""As in torch.nn.utils.clip_grad_norm_."""
_SCALER = "/scaler"


def make_updater(model: nn.Module, precision: Precision, config: MethodConfig) -> Updater:
    """Give the model's weights the dtype of `precision` and build the optimizer of `config` over the trained ones."""
    parameters = trainables(model)
    part: OptimizerPart = method_of(config).load()
    if precision == "master":
        # The masters are taken before weights are rounded; an fp32 weight's own storage becomes its master.
        masters = [replace(item, tensor=nn.Parameter(item.tensor.detach().float())) for item in parameters]
        cast_weights(model, precision)
        return MasterUpdater(parameters, masters, part, config)
    cast_weights(model, precision)
    return (ScaledUpdater if precision == "fp16" else Updater)(parameters, parameters, part, config)


class Updater:
    """Moves the model's own parameters with one optimizer: fp32, autocast and bf16.

    `parameters` are the model's, which receive gradients; `moved` are what the optimizer moves.
    """

    def __init__(
        self, parameters: Sequence[Trainable], moved: Sequence[Trainable], part: OptimizerPart, config: MethodConfig
    ) -> None:
        self._parameters = parameters
        self._moved = moved
        self._optimizers = [part.build(config, chunk) for chunk in self._chunks()]
        self._names: dict[Tensor, str] = {trainable.tensor: trainable.name for trainable in self._moved}
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._parameters[0].tensor.device

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to those that are there."""
        loss.backward()

    def norm(self) -> Tensor:
        """The norm of all gradients together, a float32 scalar on their device. Called once, before `step`."""
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in self._gradients()]
        if not norms:
            raise WorkError("The loss reaches no trainable parameter: there is no gradient.")
        device = norms[0].device
        return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))

    def step(self, share: float, norm: Tensor, clip_norm: float | None) -> bool:
        """Move the weights at `share` of the peak learning rate and drop the gradients.

        Gradients are scaled down first where `norm` exceeds `clip_norm`. False when nothing was moved, because fp16
        gradients overflowed.
        """
        self._set_rate(share)
        self._clip(norm, clip_norm)
        for optimizer in self._optimizers:
            optimizer.step()
        self.drop_gradients()
        return True

    def rate(self) -> float:
        """The learning rate last set (of the first group)."""
        return float(self._optimizers[0].param_groups[0]["lr"])

    def drop_gradients(self) -> None:
        """Free the gradients."""
        for trainable in self._parameters:
            trainable.tensor.grad = None

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

    def optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the optimizer remembers: tensors by `name/key`, numbers by the same names."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for optimizer in self._optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        tensors[f"{self._names[parameter]}/{key}"] = value
                    elif value is not None:
                        plain[f"{self._names[parameter]}/{key}"] = value
        return tensors, plain

    def load_optimizer_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Put back what `optimizer_state` gave."""
        by_name: dict[str, dict[str, Any]] = {}
        for path, value in {**tensors, **plain}.items():
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

    def _chunks(self) -> Iterator[Sequence[Trainable]]:
        yield self._moved

    def _gradients(self) -> Iterator[Tensor]:
        return (trainable.tensor.grad for trainable in self._parameters if trainable.tensor.grad is not None)

    def _clip(self, norm: Tensor, clip_norm: float | None) -> None:
        if clip_norm is not None:
            clip_grads_with_norm_([item.tensor for item in self._parameters], clip_norm, norm)

    def _set_rate(self, share: float) -> None:
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share


class ScaledUpdater(Updater):
    """fp16 arithmetic on fp32 weights: the loss is scaled up so that small gradients do not vanish.

    An update whose gradients overflow is left out and the scale halved; after 2000 good ones it doubles.
    """

    def __init__(
        self, parameters: Sequence[Trainable], moved: Sequence[Trainable], part: OptimizerPart, config: MethodConfig
    ) -> None:
        super().__init__(parameters, moved, part, config)
        self._scaler = torch.amp.GradScaler(parameters[0].tensor.device.type)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scaled loss."""
        self._scaler.scale(loss).backward()

    def norm(self) -> Tensor:
        """The norm of the true gradients; not finite where they overflowed."""
        self._scaler.unscale_(self._optimizers[0])
        return super().norm()

    def step(self, share: float, norm: Tensor, clip_norm: float | None) -> bool:
        """Move the weights, or halve the scale. WorkError when gradients overflow even unscaled."""
        if not torch.isfinite(norm) and self.scale() <= 1:
            raise WorkError("Gradients overflow fp16 even without scaling.", hint="Use precision autocast or fp32.")
        self._set_rate(share)
        self._clip(norm, clip_norm)
        self._scaler.step(self._optimizers[0])
        self._scaler.update()
        self.drop_gradients()
        return bool(torch.isfinite(norm))

    def scale(self) -> float:
        """What losses are multiplied by now."""
        return float(self._scaler.get_scale())

    def optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimizer's state, and the scaler's under `/scaler`."""
        tensors, plain = super().optimizer_state()
        return tensors, {**plain, _SCALER: self._scaler.state_dict()}

    def load_optimizer_state(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Put back what `optimizer_state` gave."""
        rest = dict(plain)
        if _SCALER not in rest:
            raise FileDamaged("The checkpoint has no state of the loss scale.")
        self._scaler.load_state_dict(rest.pop(_SCALER))
        super().load_optimizer_state(tensors, rest)


class MasterUpdater(Updater):
    """16-bit weights and gradients, fp32 masters and moments.

    One optimizer serves each chunk of parameters, so that fp32 copies of gradients exist for one chunk at a time and
    never for the whole model.
    """

    def step(self, share: float, norm: Tensor, clip_norm: float | None) -> bool:
        """Move the masters chunk by chunk and round them into the weights."""
        self._set_rate(share)
        shrink = None if clip_norm is None else torch.clamp(clip_norm / (norm + _CLIP_EPS), max=1.0)
        weights = {item.name: item.tensor for item in self._parameters}
        for optimizer, chunk in zip(self._optimizers, self._chunks(), strict=True):
            for master in chunk:
                weight = weights[master.name]
                if weight.grad is not None:
                    # No other name may hold this fp32 copy: it would outlive its chunk.
                    master.tensor.grad = weight.grad.float()
                    weight.grad = None
                    if shrink is not None:
                        # Clipped with 32 bits, so that nothing is rounded twice.
                        master.tensor.grad.mul_(shrink.to(master.tensor.device))
            optimizer.step()
            for master in chunk:
                master.tensor.grad = None
        self._round()
        return True

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back the masters, and round them into the weights."""
        super().load_weights(tensors)
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for weight, master in zip(self._parameters, self._moved, strict=True):
            weight.tensor.copy_(master.tensor)

    def _chunks(self) -> Iterator[Sequence[Trainable]]:
        chunk: list[Trainable] = []
        size = 0
        for item in self._moved:
            if chunk and size + item.tensor.nbytes > _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
            chunk.append(item)
            size += item.tensor.nbytes
        yield chunk


def _same_names(wanted: Mapping[str, object], given: Mapping[str, object], what: str) -> None:
    odd = sorted(wanted.keys() ^ given.keys())
    if odd:
        raise FileDamaged(
            f"The checkpoint and the model have different {what}: {len(odd)} are in one only, such as {odd[0]!r}."
        )
