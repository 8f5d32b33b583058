"""A decode program: a model of Llama's layout as a flat list of weights, run without its modules.

    program = plan(model)      # a Program, or why the model must run through its own modules
    x_bsh = program.forward(ids_bs, cache)
    logits_bv = program.logits(x_bsh[:, -1])

The weights are the model's own tensors: nothing is copied or merged. `forward` is the plain path, on any device: it
fills the cache with prompts, verifies drafts, and is the reference of the faster ways to take one step:
`hayless.decode.step` in fewer calls, and `hayless.decode.graphs` in kernels. Shapes: b rows, s new tokens, h hidden,
t tokens in the cache, d head_dim, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from hayless.core.dims import ModelDims
from hayless.core.errors import NotSupported, RequestError, bad_value
from hayless.core.roles import Role
from hayless.decode.cache import Cache, StaticCache
from hayless.decode.products import AnyProduct, Branched, Branches, Linear, PackedProduct, RowSlots, base_of
from hayless.model.anatomy import Anatomy, Site
from hayless.model.attention import VARLEN
from hayless.model.packing import PackedLinear, PackedModule

_FAMILIES: dict[str, tuple[Any, str]] = {
    "llama": (modeling_llama, "Llama"),
    "mistral": (modeling_mistral, "Mistral"),
    "qwen2": (modeling_qwen2, "Qwen2"),
    "qwen3": (modeling_qwen3, "Qwen3"),
}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
_OWN_ATTENTION = {"sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention", VARLEN}


@dataclass(frozen=True, slots=True)
class Layer:
    """One block's weights."""

    input_gain: Tensor
    q: AnyProduct
    k: AnyProduct
    v: AnyProduct
    q_gain: Tensor | None
    k_gain: Tensor | None
    o: AnyProduct
    post_gain: Tensor
    gate: AnyProduct
    up: AnyProduct
    down: AnyProduct

    @property
    def products(self) -> tuple[AnyProduct, ...]:
        """All matrices."""
        return self.q, self.k, self.v, self.o, self.gate, self.up, self.down


@dataclass(frozen=True, slots=True)
class Unplanned:
    """Why a model runs through its own modules."""

    reason: str


class Program:
    """The weights of one model, and its forward pass. Made by `plan`."""

    def __init__(self, model: PreTrainedModel, dims: ModelDims, layers: list[Layer], rows: RowSlots) -> None:
        base: Any = model.model
        self.rows = rows
        self.dims = dims
        self.layers = layers
        self.embedding: Tensor = base.embed_tokens.weight.detach()
        self.final_gain: Tensor = base.norm.weight.detach()
        self.head: Tensor = model.lm_head.weight.detach()
        self._to_logits = Linear(self.head, None)
        self.eps: float = base.norm.variance_epsilon
        self.dtype = self.embedding.dtype
        self.device = self.embedding.device
        self._eps, self._zero = torch.tensor(self.eps), torch.tensor(0.0)
        self._rotary = base.rotary_emb
        self._model = model
        self._seen = tuple(_identity(model))
        self._tables: tuple[Tensor, Tensor] | None = None

    def fits(self, model: PreTrainedModel) -> bool:
        """Whether these are still the model's tensors, and its modules still do what they did."""
        return model is self._model and tuple(_identity(model)) == self._seen

    def first(self, layers: int) -> Program:
        """A program of the first layers, with the same norm and head behind them."""
        if not 1 <= layers <= len(self.layers):
            raise bad_value("layers", layers, allowed=f"1 to {len(self.layers)}, what the model has")
        return Program(self._model, replace(self.dims, num_layers=layers), self.layers[:layers], self.rows)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that every step reads: all but the embedding's table (of which it reads a row)."""
        tensors = [self.final_gain, self.head]
        for layer in self.layers:
            tensors += [layer.input_gain, layer.post_gain]
            for product in layer.products:
                tensors += product.tensors
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def packed(self) -> bool:
        """Whether a matrix is packed."""
        return any(isinstance(base_of(product), PackedProduct) for layer in self.layers for product in layer.products)

    @property
    def plain(self) -> bool:
        """Whether every matrix is as it is, with nothing beside it."""
        return all(isinstance(product, Linear) for layer in self.layers for product in layer.products)

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values of one token in the cache."""
        return 2 * len(self.layers) * self.dims.num_kv_heads * self.dims.head_dim * self.embedding.element_size()

    def rope(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (at least `positions`, d) in float32, made by the model's own rotary module.

        The first half of a row of sines is negated, as `_turn` needs it.
        """
        if self._tables is None or len(self._tables[0]) < positions:
            count = max(64, 1 << (positions - 1).bit_length())
            at = torch.arange(count, device=self.device)[None]
            cos, sin = self._rotary(torch.empty(1, device=self.device), at)
            low, high = sin[0].chunk(2, -1)
            self._tables = cos[0], torch.cat((-low, high), -1)
        return self._tables

    @torch.inference_mode()
    def forward(self, ids_bs: Tensor, cache: Cache) -> Tensor:
        """Hidden states (b, s, h) of new tokens after the last block, before its norm; they join the cache.

        Each row's tokens follow the `lengths` it has in the cache. Every row gets s tokens: those that are padding
        are to be cut back.
        """
        s = ids_bs.shape[1]
        attend = cache.entering(s)
        starts = cache.lengths
        longest = max(starts) + s
        even = min(starts) == max(starts)
        cos, sin = self.rope(longest)
        if even:
            cos, sin = cos[starts[0] : longest, None], sin[starts[0] : longest, None]
        else:
            at_bs = torch.tensor(starts, device=self.device)[:, None] + torch.arange(s, device=self.device)
            cos, sin = cos[at_bs][:, :, None], sin[at_bs][:, :, None]
        heads = [self.dims.num_heads, self.dims.num_kv_heads]
        x_bsh = F.embedding(ids_bs, self.embedding)
        for number, layer in enumerate(self.layers):
            y_bsh = self.norm(x_bsh, layer.input_gain)
            q, k, v = self._heads(layer.q(y_bsh)), self._heads(layer.k(y_bsh)), self._heads(layer.v(y_bsh))
            turned = _turn(torch.cat((self.norm(q, layer.q_gain), self.norm(k, layer.k_gain)), 2), cos, sin)
            q, k = turned.transpose(1, 2).split(heads, 1)
            mixed = attend(number, q, k, v.transpose(1, 2))
            x_bsh += layer.o(mixed.transpose(1, 2).flatten(2))
            y_bsh = self.norm(x_bsh, layer.post_gain)
            x_bsh += layer.down(F.silu(layer.gate(y_bsh)).mul_(layer.up(y_bsh)))
        cache.advance(s)
        return x_bsh

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]], cache: StaticCache, chunk: int) -> Tensor:
        """Put prompts into an empty cache, at most `chunk` tokens of each at a time; last hidden states (b, h).

        Shorter prompts are padded on the right; their padding is cut off again.
        """
        lengths = [len(prompt) for prompt in prompts]
        ids_bs = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_bs[row, : len(prompt)] = torch.tensor(prompt)
        ids_bs = ids_bs.to(self.device)
        last_bh = torch.empty(len(prompts), self.dims.hidden_size, dtype=self.dtype, device=self.device)
        for start in range(0, max(lengths), chunk):
            x_bsh = self.forward(ids_bs[:, start : start + chunk], cache)
            for row, length in enumerate(lengths):
                if start < length <= start + chunk:
                    last_bh[row] = x_bsh[row, length - 1 - start]
        cache.truncate(lengths)
        return last_bh

    @torch.inference_mode()
    def logits(self, x_bh: Tensor) -> Tensor:
        """Logits (…, v) in float32 of hidden states (…, h)."""
        return self._to_logits(self.norm(x_bh, self.final_gain)).float()

    def _heads(self, x_bsh: Tensor) -> Tensor:
        """(b, s, heads·d) → (b, s, heads, d)."""
        return x_bsh.unflatten(2, (-1, self.dims.head_dim))

    def norm(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """RMSNorm; x itself without a gain."""
        if gain is None:
            return x
        if not x.is_cpu or x.dtype is not torch.float32:
            return F.rms_norm(x, gain.shape, gain, self.eps)
        # The same in fewer operators than PyTorch takes on a CPU, and for one row in fewer still.
        if x.numel() == x.shape[-1]:
            scale = (torch.linalg.vector_norm(x).item() ** 2 / x.shape[-1] + self.eps) ** -0.5
            return torch.addcmul(self._zero, x, gain, value=scale)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        mean = torch.addcmul(self._eps, length, length, value=1 / x.shape[-1])
        return (x * mean.rsqrt_()).mul_(gain)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of heads (…, d): (low, high) becomes (low·cos − high·sin, high·cos + low·sin)."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def plan(model: PreTrainedModel, branches: Branches | None = None) -> Program | Unplanned:
    """A program for `model`, or the reason why there is none: another family, or modules changed by a method.

    With `branches`, each row of what it computes has those of its slot.
    """
    refused = _refusal(model)
    if refused is not None:
        return Unplanned(refused)
    try:
        anatomy = Anatomy.of(model)
    except (NotSupported, RequestError) as error:
        return Unplanned(error.message)
    odd = next((site for site in anatomy.sites if site.packed(model) and not _multiplies(site, model)), None)
    if odd is not None:
        return Unplanned(f"{odd.name} is held in another form")
    kinds = {_kind(site, model) for site in anatomy.sites}
    if len(kinds) > 1:
        return Unplanned("its weights differ in dtype or device")
    dims = anatomy.dims
    found: dict[int, dict[tuple[Role, str], Site]] = {layer: {} for layer in range(dims.num_layers)}
    for site in anatomy.sites:
        if site.layer is not None:
            name = site.module_path.rpartition(".")[2] if site.row.role is Role.NORM else site.parameter
            found[site.layer][site.row.role, name] = site
    branches = branches or Branches({}, RowSlots())
    beside = branches.stacks.keys() - {site.module_path for site in anatomy.sites if site.layer is not None}
    if beside:
        return Unplanned(f"adapters change {min(beside)}, which is in no block")
    layers = [_layer(model, found[layer], branches) for layer in range(dims.num_layers)]
    return Program(model, dims, layers, branches.rows)


def _multiplies(site: Site, model: PreTrainedModel) -> bool:
    """Whether a packed weight is that of a block's linear module, whose product its method knows."""
    return site.layer is not None and isinstance(site.module(model), PackedLinear)


def _kind(site: Site, model: PreTrainedModel) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of a weight; of a packed one those it is unpacked to."""
    module = site.module(model)
    if isinstance(module, PackedModule) and site.packed(model):
        return module.unpacked_dtype, next(iter(module.pieces(site.parameter).values())).device
    weight = site.weight(model)
    return weight.dtype, weight.device


def _layer(model: PreTrainedModel, sites: dict[tuple[Role, str], Site], branches: Branches) -> Layer:
    def tensor(role: Role, name: str) -> Tensor | None:
        site = sites.get((role, name))
        return None if site is None else site.weight(model).detach()

    def linear(role: Role) -> AnyProduct:
        site, bias = sites[role, "weight"], tensor(role, "bias")
        module = site.module(model)
        packed = PackedProduct(module, bias) if isinstance(module, PackedModule) else None
        base = packed or Linear(site.weight(model).detach(), bias)
        stack = branches.stacks.get(site.module_path)
        return base if stack is None else Branched(base, stack, branches.rows)

    def gain(name: str) -> Tensor:
        return sites[Role.NORM, name].weight(model).detach()

    return Layer(
        input_gain=gain("input_layernorm"),
        q=linear(Role.Q),
        k=linear(Role.K),
        v=linear(Role.V),
        q_gain=tensor(Role.NORM, "q_norm"),
        k_gain=tensor(Role.NORM, "k_norm"),
        o=linear(Role.O),
        post_gain=gain("post_attention_layernorm"),
        gate=linear(Role.GATE),
        up=linear(Role.UP),
        down=linear(Role.DOWN),
    )


def _refusal(model: PreTrainedModel) -> str | None:
    """What in the config or the modules the program does not do."""
    config: Any = model.config
    if config.model_type not in _FAMILIES:
        return f"there is no program for models of type {config.model_type}"
    source, name = _FAMILIES[config.model_type]
    if config.hidden_act != "silu":
        return f"there is no program for hidden_act {config.hidden_act!r}"
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in _STATIC_ROPE:
        return f"there is no program for rope_type {kind!r}"
    window = getattr(config, "sliding_window", None)
    slides = config.model_type == "mistral" or any(
        layer != "full_attention" for layer in getattr(config, "layer_types", None) or ()
    )
    if slides and window is not None and window < config.max_position_embeddings:
        return "it attends within a sliding window"
    if config._attn_implementation not in _OWN_ATTENTION:
        return f"it has an attention of its own ({config._attn_implementation})"
    known = {nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU, type(model.get_submodule("model.layers.0.mlp.act_fn"))}
    known |= {
        getattr(source, f"{name}{part}")
        for part in ("ForCausalLM", "Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")
    }
    for path, module in model.named_modules():
        if type(module) not in known and not isinstance(module, PackedModule):
            return f"{path or 'the model'} is a {type(module).__name__}"
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return f"{path or 'the model'} has hooks, or a forward pass of its own"
    return None


def _identity(model: PreTrainedModel) -> Iterator[object]:
    """What must stay as it is for a program to stay right: classes, hooks, and where each tensor lies.

    Values may change: the program's tensors are the model's own.
    """
    config: Any = model.config
    yield config._attn_implementation
    for module in model.modules():
        yield type(module), len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in module.__dict__
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            yield None if tensor is None else (tensor.data_ptr(), tensor.dtype, tensor.shape)
