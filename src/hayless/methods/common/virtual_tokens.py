"""Virtual tokens before every text: each block attends to keys and values that no token of the text has.

They stand under transformers' own switch of attention, and not in its caches: what a cache holds is the text alone, so
any cache works, and so do packed rows. A text's positions begin behind them, as where PEFT puts them into the cache.
Shapes: n virtual tokens, b rows, s positions, t tokens of the text seen, h heads, d a head's width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

from hayless.core.compose import unmergeable
from hayless.core.families import family_of
from hayless.core.families.building import Paths
from hayless.core.forward import VIRTUAL
from hayless.core.method import MethodConfig
from hayless.methods.common.adapting import fill, freeze, refuse_marked, thaw
from hayless.methods.common.virtual_rows import PEFT_NAME, unserved
from hayless.model.attention import WITH_VIRTUAL, attend_by
from hayless.model.merging import PackedBase
from hayless.model.transform import Change

KeysValues = tuple[Tensor, Tensor]
"""One layer's, each (1, h, n, d)."""


class VirtualTokens(nn.Module):
    """`count` virtual tokens of a model. What is trained are parameters of this module, which `put_on` adds to it."""

    def __init__(self, count: int, keys_values: Callable[[], Sequence[KeysValues]]) -> None:
        super().__init__()
        self.count = count
        self.listening = False
        self._make = keys_values
        self._made: list[KeysValues] = []
        self._made_of: object = None
        self._mask: tuple[Tensor | None, object, Tensor | None] = (None, None, None)

    def heard(self, model: nn.Module, **inputs: Any) -> list[KeysValues]:
        """Keys and values of every layer that a pass of `model` makes, which attends to no virtual tokens.

        Nothing is dropped in it, and nothing of it is computed again: what it does depends on `listening`.
        """
        training = [module for module in model.modules() if module.training]
        self.listening, self._made = True, []
        try:
            model.eval()(**inputs)
            return self._made
        finally:
            self.listening = False
            for module in training:
                module.training = True

    def refresh(self) -> None:
        """Make keys and values for a pass; once for all passes without gradients between changes of the parameters."""
        state = None
        if not torch.is_grad_enabled():
            state = tuple((p.data_ptr(), p._version, p.dtype, p.device) for p in self.parameters())
        if state is None or state != self._made_of:
            self._made = list(self._make())
            self._made_of = state

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> tuple[Tensor, None]:
        """Attention of (b, h, s, d) queries to the virtual tokens, and to the text as far as `mask` lets them."""
        if self.listening:
            self._made.append((key, value))
        else:
            k, v = (each.to(key.dtype).expand(len(key), -1, -1, -1) for each in self._made[module.layer_idx])
            mask = self._widened(mask, query.shape[2], key.shape[2], query.device)
            key, value = torch.cat((k, key), dim=2), torch.cat((v, value), dim=2)
        found: Tensor = sdpa_attention_forward(module, query, key, value, mask, **options)[0]
        return found, None

    def _widened(self, mask: Tensor | None, s: int, t: int, device: torch.device) -> Tensor | None:
        """The mask (…, s, n + t); that of one pass is made once for all its layers."""
        shape = (s, t, device)
        before, of_shape, made = self._mask
        if before is not mask or of_shape != shape:
            made = self._widen(mask, *shape)
            self._mask = (mask, shape, made)
        return made

    def _widen(self, mask: Tensor | None, s: int, t: int, device: torch.device) -> Tensor | None:
        if mask is None:
            # One token sees everything. Several without a mask are the text's first ones, in whatever room a cache has.
            return None if s == 1 else torch.ones(s, self.count + t, dtype=torch.bool, device=device).tril(self.count)
        seen = mask.new_ones if mask.dtype is torch.bool else mask.new_zeros
        return torch.cat((seen((*mask.shape[:-1], self.count)), mask[..., :t]), dim=-1)


class VirtualPart:
    """What `prefix` and `prompt` do alike in the slot of transforms: PEFT's file into the table, and taking it away."""

    @staticmethod
    def load(model: PreTrainedModel, config: MethodConfig, tensors: dict[str, Tensor]) -> None:
        """Fill the table. FileDamaged for tensors that are missing, unexpected or misshapen."""
        tokens: Any = model.get_submodule(VIRTUAL)
        fill({PEFT_NAME: tokens.embedding.weight}, tensors)

    @staticmethod
    def remove(model: PreTrainedModel, config: MethodConfig) -> None:
        """Take the virtual tokens away; what is not packed trains again."""
        take_off(model)
        thaw(model, config)

    @staticmethod
    def merge(model: PreTrainedModel, config: MethodConfig, base: PackedBase | None = None) -> Change:
        """NotSupported: no weight of the base can hold them."""
        raise unmergeable(config)


def begin(model: PreTrainedModel, method: str, make: Callable[[], VirtualTokens]) -> None:
    """Freeze the model and put on the virtual tokens that `make` gives, without drawing from the global generator."""
    refuse_marked(model, method, (VIRTUAL,))
    freeze(model, method)
    with torch.random.fork_rng(devices=[]):
        tokens = make()
    put_on(model, tokens.to(model.device), method)


def put_on(model: PreTrainedModel, tokens: VirtualTokens, method: str) -> None:
    """Let every block of `model` attend to `tokens`. NotSupported where a sliding window would leave them behind."""
    if _slides(model.config):
        raise unserved(method, "it attends within a sliding window, which would leave them behind")
    model.add_module(VIRTUAL, tokens)
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            # Not as a child: it is the model's.
            object.__setattr__(module, "attended_tokens", tokens)
    base = decoder_of(model)
    handles: list[RemovableHandle] = [base.register_forward_pre_hook(_refreshed)]
    for module in base.modules():
        if _holds_positions(base, module):
            handles.append(module.register_forward_pre_hook(_Shift(tokens), with_kwargs=True))
    object.__setattr__(base, "attended_tokens", tokens)
    tokens.handles, tokens.before = handles, model.config._attn_implementation  # type: ignore[assignment]
    attend_by(model, WITH_VIRTUAL, _attend)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The module that holds the blocks, and runs them."""
    paths: Paths = family_of(model.config.model_type).PATHS
    return model.get_submodule(paths.blocks.rpartition(".")[0])


def take_off(model: PreTrainedModel) -> None:
    """Undo `put_on`."""
    tokens: Any = model.get_submodule(VIRTUAL)
    for handle in tokens.handles:
        handle.remove()
    for module in model.modules():
        module.__dict__.pop("attended_tokens", None)
    delattr(model, VIRTUAL)
    model.set_attn_implementation(tokens.before)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """As transformers calls attention: by the virtual tokens of the module's model."""
    tokens: VirtualTokens = module.attended_tokens
    return tokens.attend(module, query, key, value, attention_mask, options)


def _refreshed(base: Any, inputs: tuple[Any, ...]) -> None:
    """Before a pass of the model."""
    tokens: VirtualTokens = base.attended_tokens
    if not tokens.listening:
        tokens.refresh()


class _Shift:
    """A hook before a module of positions: those of a text begin behind the virtual tokens."""

    def __init__(self, tokens: VirtualTokens) -> None:
        self._tokens = tokens

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same inputs, with larger positions."""
        if self._tokens.listening:
            return None
        if isinstance(module, OPTLearnedPositionalEmbedding) and kwargs.get("position_ids") is None:
            mask = args[0]
            before = args[1] if len(args) > 1 else kwargs.get("past_key_values_length", 0)
            found = (mask.cumsum(1) * mask - 1).long()[:, before:]
            return args, {**kwargs, "position_ids": found + self._tokens.count}
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": kwargs["position_ids"] + self._tokens.count}
        return (*args[:-1], args[-1] + self._tokens.count), kwargs


def _holds_positions(base: nn.Module, module: nn.Module) -> bool:
    """Whether a module turns positions into what is added or turned by: rotary frequencies or a table of positions."""
    table = getattr(base, "wpe", None)
    return module is table or isinstance(module, OPTLearnedPositionalEmbedding) or hasattr(module, "inv_freq")


def _slides(config: Any) -> bool:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = any(kind != "full_attention" for kind in kinds) if kinds else config.model_type == "mistral"
    return window is not None and slides
