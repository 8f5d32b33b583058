"""Scaling by trained vectors on a loaded model, PEFT's files both ways, and merging.

Vectors are float32 parameters of the modules they scale, whatever the base is, and hooks apply them, so that they work
beside any linear module, packed ones included.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.forward import SCALE_IN, SCALE_OUT
from hayless.core.ledger import Layout
from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from hayless.methods.adapters.ia3.config import Ia3Config, Scaled, scaled_of
from hayless.methods.common.adapting import (
    fill,
    freeze,
    modules_of,
    peft_base,
    peft_names,
    refuse_marked,
    thaw,
    trained,
)
from hayless.methods.common.peft_fields import module_names, refuse_others, required
from hayless.methods.common.sites import PEFT_PREFIX
from hayless.methods.common.weights import plain_ledger
from hayless.model.merging import PackedBase
from hayless.model.transform import AdapterFiles, Change, Context


class Ia3:
    """Fills the transform slot, with an adapter's files."""

    @staticmethod
    def apply(model: PreTrainedModel, config: Ia3Config, context: Context) -> Change:
        """Freeze the model and add vectors of ones; the model computes what it did before."""
        Ia3.restore(model, config)
        return Change(config.method, tuple(path for path, *_ in _modules(model, config)), figures=trained(model))

    @staticmethod
    def restore(model: PreTrainedModel, config: Ia3Config) -> None:
        """Freeze the model and add vectors of ones."""
        refuse_marked(model, config.method, (SCALE_IN, SCALE_OUT))
        chosen = list(_modules(model, config))
        freeze(model, config.method)
        for _, module, scaled in chosen:
            device = next(tensor.device for tensor in (*module.parameters(), *module.buffers()))
            module.register_parameter(scaled.parameter, nn.Parameter(torch.ones(scaled.width, device=device)))
            hook = _scale_inputs if scaled.of_inputs else _scale_outputs
            register = module.register_forward_pre_hook if scaled.of_inputs else module.register_forward_hook
            module.ia3_handle = register(hook)

    @staticmethod
    def export(model: PreTrainedModel, config: Ia3Config) -> AdapterFiles:
        """The adapter as PEFT writes it, in float32."""
        chosen = list(_modules(model, config))
        tensors = {
            f"{PEFT_PREFIX}{path}.ia3_l": getattr(module, scaled.parameter).detach().float().view(scaled.peft_shape)
            for path, module, scaled in chosen
        }
        inputs = [path for path, _, scaled in chosen if scaled.of_inputs]
        found = {
            **peft_base(model, "IA3"),
            "target_modules": peft_names(model, [path for path, *_ in chosen]),
            "feedforward_modules": peft_names(model, inputs),
            "fan_in_fan_out": all(scaled.target.row.layout is Layout.CONV1D for *_, scaled in chosen),
            "init_ia3_weights": True,
            "modules_to_save": None,
        }
        return AdapterFiles(found, tensors)

    @staticmethod
    def read(adapter_config: dict[str, Any]) -> MethodConfig:
        """Our config for PEFT's; NotSupported names what is not honoured."""
        known = {"target_modules", "feedforward_modules", "init_ia3_weights"}
        refuse_others(adapter_config, "IA3", known)
        required(adapter_config, "target_modules", "feedforward_modules")
        inputs = module_names(adapter_config, "feedforward_modules")
        outputs = tuple(name for name in module_names(adapter_config, "target_modules") if name not in inputs)
        return configure("ia3", outputs=outputs or None, inputs=inputs or None)

    @staticmethod
    def load(model: PreTrainedModel, config: Ia3Config, tensors: dict[str, Tensor]) -> None:
        """Fill the vectors. FileDamaged for tensors that are missing, unexpected or misshapen."""
        wanted = {
            f"{PEFT_PREFIX}{path}.ia3_l": getattr(module, scaled.parameter).view(scaled.peft_shape)
            for path, module, scaled in _modules(model, config)
        }
        fill(wanted, tensors)

    @staticmethod
    def remove(model: PreTrainedModel, config: Ia3Config) -> None:
        """Take the vectors off; what is not packed trains again."""
        for _, module, scaled in list(_modules(model, config)):
            _detach(module, scaled)
        thaw(model, config)

    @staticmethod
    def merge(model: PreTrainedModel, config: Ia3Config, base: PackedBase | None = None) -> Change:
        """Rows of W (and its bias), or columns, times the vector, rounded once to W's dtype; the vectors go.

        NotSupported for packed weights that `base` does not open. Zeros stay zeros, so a pruned base stays pruned.
        """
        chosen, base = list(_modules(model, config)), base or PackedBase(model)
        base.check((path, module) for path, module, _ in chosen)
        with torch.no_grad():
            for path, module, scaled in chosen:
                vector = getattr(module, scaled.parameter)
                by_rows = scaled.of_inputs == (scaled.target.row.layout is Layout.CONV1D)
                with base.opened(path, module):
                    module.weight.copy_(module.weight.float() * (vector[:, None] if by_rows else vector))
                    _detach(module, scaled)
                if not scaled.of_inputs and getattr(module, "bias", None) is not None:
                    module.bias.copy_(module.bias.float() * vector)
        thaw(model, config)
        return Change(config.method, tuple(path for path, *_ in chosen))


def _scale_inputs(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook before the module: its input times the vector, in the input's dtype."""
    return ((inputs[0] * module.scale_in).to(inputs[0].dtype), *inputs[1:])


def _scale_outputs(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A hook after the module: its output times the vector, in the output's dtype."""
    return (output * module.scale_out).to(output.dtype)


def _detach(module: Any, scaled: Scaled) -> None:
    module.ia3_handle.remove()
    delattr(module, scaled.parameter)
    del module.ia3_handle


def _modules(model: PreTrainedModel, config: Ia3Config) -> Iterator[tuple[str, Any, Scaled]]:
    """Each module that is scaled: its path, itself, and how."""
    for scaled in scaled_of(plain_ledger(model), config):
        for path, module, _ in modules_of(model, [scaled.target]):
            yield path, module, scaled
