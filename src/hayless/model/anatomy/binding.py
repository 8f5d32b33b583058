"""Anatomy: where in a loaded model each row of its family's ledger lives.

Methods change modules in place: they add children and hooks to a module, or change its class and keep what they packed
beside a property that looks the weight up. Paths therefore stay what the family says, and an anatomy can be taken
before or after any method. Where a module no longer holds its weight as an ordinary parameter, `Site.packed` says so:
its weight can be read if the method shows it under the old name, and is never written. A module of another kind that
stands in the place of one of the family's counts as packed too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.core.dims import ModelDims
from hayless.core.errors import NotSupported, RequestError, bad_value
from hayless.core.families import dims_of, family_of, ledger_of
from hayless.core.families.building import Paths
from hayless.core.ledger import Layout, Ledger, Row
from hayless.core.roles import Role

_PLAIN = ("torch.", "transformers.")


def dims_of_model(model: PreTrainedModel) -> ModelDims:
    """ModelDims of a loaded model: its config's, with its own class and the dtype of its weights."""
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    return dims_of(config).with_dtype(str(model.dtype).removeprefix("torch."))


@dataclass(frozen=True, slots=True)
class Site:
    """One row in one layer (None outside the blocks): the parameter of one module."""

    row: Row
    layer: int | None
    module_path: str
    parameter: str

    @property
    def name(self) -> str:
        """Path and parameter, as `state_dict` calls an ordinary one."""
        return f"{self.module_path}.{self.parameter}"

    def module(self, model: nn.Module) -> nn.Module:
        """The module that holds the parameter."""
        return model.get_submodule(self.module_path)

    def packed(self, model: nn.Module) -> bool:
        """True where a method holds the weight in another form."""
        return self.module(model)._parameters.get(self.parameter) is None

    def weight(self, model: nn.Module) -> Tensor:
        """The parameter as the module holds it, or what a packed module shows in its place (made anew each time)."""
        found = getattr(self.module(model), self.parameter, None)
        if not isinstance(found, Tensor):
            raise NotSupported(
                f"{self.name} ({self.row.role.value}) is held in another form by {type(self.module(model)).__name__},"
                " which does not show it.",
                hint="Look at weights before they are packed.",
            )
        return found


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A model's parts by role. `ledger` has the family's own rows, whatever methods the model has had."""

    model: PreTrainedModel
    ledger: Ledger
    sites: tuple[Site, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Anatomy:
        """Bind the rows of the model's family. Sites come in the order embedding and what surrounds the blocks, then
        encoder and decoder blocks, layer by layer.

        NotSupported for a family without a table; RequestError naming role and path where the model does not fit it.
        """
        ledger = ledger_of(dims_of_model(model))
        sites = tuple(_sites(ledger))
        for site in sites:
            _check(model, site)
        return cls(model, ledger, sites)

    @property
    def dims(self) -> ModelDims:
        """The model as numbers."""
        return self.ledger.dims

    def weights(self, roles: Collection[Role]) -> Iterator[Site]:
        """Weight matrices of these roles, layer by layer. A tied head is among the heads: see `site.row.tied_to`."""
        return (site for site in self.sites if site.row.role in roles and site.row.is_matrix)

    def matrix(self, site: Site) -> Tensor:
        """A weight as (out, in), or (experts, out, in) of a stack, or (entries, width) of a table: a detached view of
        the parameter where it is an ordinary one.
        """
        weight = site.weight(self.model).detach()
        return weight.T if site.row.layout is Layout.CONV1D else weight

    def write_matrix(self, site: Site, value: Tensor) -> None:
        """Copy `value`, shaped as `matrix` gives it, into the parameter, in the parameter's dtype.

        Writing a tied head writes the embedding. NotSupported for a packed weight, RequestError for another shape.
        """
        if site.packed(self.model):
            raise NotSupported(
                f"{site.name} ({site.row.role.value}) is packed: its values cannot be written.",
                hint="Change values before weights are packed.",
            )
        target = self.matrix(site)
        if target.shape != value.shape:
            raise bad_value(f"a value for {site.name}", tuple(value.shape), allowed=f"shape {tuple(target.shape)}")
        with torch.no_grad():
            target.copy_(value)

    @property
    def embedding(self) -> nn.Module:
        """The table of token embeddings."""
        return self.model.get_submodule(self._paths.embedding)

    @property
    def blocks(self) -> nn.ModuleList:
        """The (decoder's) blocks."""
        return self._list(self._paths.blocks)

    @property
    def encoder_blocks(self) -> nn.ModuleList | None:
        """The encoder's blocks, where there is an encoder beside the decoder."""
        return self._list(self._paths.encoder_blocks) if self._paths.encoder_blocks else None

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm after the last block, where there is one."""
        path = self._paths.final_norm
        return self.model.get_submodule(path) if path and self.dims.final_norm else None

    @property
    def head(self) -> nn.Module:
        """What turns the last hidden state into logits (or into a score)."""
        return next(self.weights({Role.HEAD})).module(self.model)

    def normed(self, states: Tensor) -> Tensor:
        """States (…, h) behind any block as the head takes them: through the last norm and projection."""
        after = [] if self.final_norm is None else [self.final_norm]
        if self._paths.project_out and self.dims.embedding_width != self.dims.hidden_size:
            after.append(self.model.get_submodule(self._paths.project_out))
        for module in after:
            states = module(states)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Logits (…, v) that the model's own head gives states (…, h) behind any block."""
        logits: Tensor = self.head(self.normed(states))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @property
    def _paths(self) -> Paths:
        paths: Paths = family_of(self.dims.model_type).PATHS
        return paths

    def _list(self, path: str) -> nn.ModuleList:
        found = self.model.get_submodule(path)
        assert isinstance(found, nn.ModuleList), f"{path} is {type(found).__name__}, not a ModuleList"
        return found


def _sites(ledger: Ledger) -> Iterator[Site]:
    found = [
        Site(row, layer, row.module if layer is None else row.module.replace("{layer}", str(layer)), row.parameter)
        for row in ledger.rows
        for layer in (row.layers or (None,))
    ]
    encoder = family_of(ledger.dims.model_type).PATHS.encoder_blocks

    def place(site: Site) -> tuple[int, int]:
        if site.layer is None:
            return 0, 0
        return (1 if encoder and site.module_path.startswith(f"{encoder}.") else 2), site.layer

    return iter(sorted(found, key=place))


def _check(model: PreTrainedModel, site: Site) -> None:
    """Raise RequestError where the model has no such module, or it holds no such parameter of that shape."""
    where = f"{site.row.role.value} at {site.module_path}"
    hint = "Its config.json and its class must belong together; was a module renamed or removed?"
    try:
        module = site.module(model)
    except AttributeError:
        raise RequestError(
            f"This {type(model).__name__} does not fit its family: there is no {where}.", hint=hint
        ) from None
    found = module._parameters.get(site.parameter)
    if found is None:
        if type(module).__module__.startswith(_PLAIN) and not hasattr(type(module), site.parameter):
            raise RequestError(
                f"This {type(model).__name__} does not fit its family: {where} ({type(module).__name__}) has no"
                f" {site.parameter}.",
                hint=hint,
            )
    elif tuple(found.shape) != site.row.shape:
        raise RequestError(
            f"This {type(model).__name__} does not fit its family: {where} has {site.parameter} of shape"
            f" {tuple(found.shape)}, its config says {site.row.shape}.",
            hint=hint,
        )
