"""What decoding costs: bytes by cause, and the kernels of a step.

Two ways are known. Through transformers' modules the cache grows by copying, and every operation is launched from
Python. In captured graphs (`hayless.decode.graphs`: Llama's layout on CUDA, weights as they are) the cache has its
largest size from the start, prompts go through PyTorch in pieces, and a step is a few kernels a layer that nobody
launches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from hayless.core.activations import record
from hayless.core.allocator import allocated_bytes, workspace_bytes
from hayless.core.cache_form import CacheForm
from hayless.core.cost import (
    Bytes,
    Cost,
    DecodeShape,
    at_least,
    during,
    is_packed,
    kv_cache_bytes,
    notes_of,
    weight_bytes,
)
from hayless.core.dims import ModelDims
from hayless.core.dtypes import item_bytes
from hayless.core.errors import NotSupported
from hayless.core.forward import RunShape, unpacked_bytes
from hayless.core.ledger import Ledger, Row
from hayless.core.replay import replay
from hayless.core.roles import Role
from hayless.core.tape import Unit
from hayless.core.work import Kernel, Work, elementwise, forward_work

GRAPHED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Values of `model_type` that captured graphs decode."""

CAPACITY_STEP = 256
"""A cache in graphs holds a multiple of so many tokens."""
AHEAD = 4
"""Tokens beyond the last that it holds, for steps that are queued ahead."""
PREFILL_TOKENS = 16384
"""Tokens of a prompt that go through the model at once, all rows together."""


def decode_cost(
    ledger: Ledger,
    batch: int,
    context: int,
    *,
    cache_dtype: str | None = None,
    cache_form: CacheForm | None = None,
    attention: Literal["sdpa", "eager"] = "sdpa",
    device: Literal["cuda", "cpu"] = "cuda",
) -> Cost:
    """What decoding costs `batch` rows: `prefill` reads `context` tokens a row, `decode` adds one token after them.

    The cache has the model's dtype unless `cache_dtype` says otherwise, and is whole unless `cache_form` does.
    """
    at_least(1, batch=batch, context=context)
    dims = ledger.dims
    if dims.family == "bert":
        raise NotSupported("BERT does not continue text.")
    kernels = cache_form is None or cache_form.why_no_kernel(dims.head_dim) is None
    graphs = device == "cuda" and cache_dtype is None and kernels and attention == "sdpa" and _graphed(ledger)
    run = RunShape(batch, context, training=False, attention=attention, logits=1, device=device)
    reading = record(ledger, run)
    weights, beside = weight_bytes(ledger), _beside(ledger, device)
    prefill = forward_work(reading)
    if graphs:
        rows, capacity = _bucket(batch), _capacity(context + AHEAD)
        cache = _room_bytes(dims, rows, capacity, cache_form)
        # A step with several rows is captured on two streams of its own, each with its workspaces.
        beside += workspace_bytes(dims.qkv_bias) * (1 if rows == 1 else 3) + _buffers(dims, rows, capacity)
        resting = Bytes(weights=weights, kv_cache=cache, temporary=beside)
        # What is to be quantized is read whole, a prompt at a time.
        tokens = rows * min(context, max(64, PREFILL_TOKENS // rows)) if cache_form is None else context
        pieces = Bytes(temporary=_prefill_bytes(dims, tokens) + _unpacked(ledger, tokens))
        # What a captured step unpacks lies in its own memory.
        resting += Bytes(temporary=_unpacked(ledger, rows))
        held = kv_cache_bytes(dims, batch, context, form=cache_form)
        step = _graph_work(ledger, rows, held // dims.num_layers)
        return Cost(
            {"prefill": resting + pieces, "decode": resting},
            {"prefill": prefill, "decode": step},
            batch,
            (*notes_of(dims, attention), "decoded in captured graphs"),
        )
    one_token = record(ledger, replace(run, sequence=1))
    cache = kv_cache_bytes(dims, batch, context, cache_dtype, cache_form)
    one_layer = kv_cache_bytes(dims, batch, context, cache_dtype) // dims.num_layers
    item = item_bytes(cache_dtype or dims.dtype)
    # One layer's keys exist twice for a moment; of a quantized cache, one layer exists whole beside its codes.
    moved = one_layer + cache_form.unpacked_bytes(dims.kv_width, item, context) if cache_form else one_layer // 2
    if device == "cuda":
        beside += workspace_bytes(dims.qkv_bias or dims.mlp_bias)
    resting = Bytes(weights=weights, kv_cache=cache, temporary=beside)
    phases = {
        "prefill": resting + during(replay(reading).forward),
        "decode": resting + Bytes(temporary=moved) + during(replay(one_token).forward),
    }
    # The tape of one token attends to itself alone; every layer also reads the cache, and copies it to lengthen it, or
    # writes it out whole from its codes.
    attended = Kernel("attention", dims.dtype, 4.0 * dims.q_width * batch * context, one_layer, dims.num_layers)
    copied = elementwise(one_layer, 2 * dims.num_layers)
    step = forward_work(one_token) + Work((attended, copied), copied.count)
    return Cost(phases, {"prefill": prefill, "decode": step}, batch, notes_of(dims, attention))


def decode_peak(ledger: Ledger, shape: DecodeShape, draft: Ledger | None = None) -> Bytes:
    """Bytes of the moment of decoding that needs most, drafts included.

    `draft` is the model that `shape.draft` names: its weights and its cache are there as long as the target's.
    """
    plain = decode_cost(ledger, shape.batch, shape.context, cache_form=shape.cache, device=shape.device)
    if not shape.drafted:
        return plain.peak
    models = [ledger] if draft is None else [ledger, draft]
    graphs = shape.device == "cuda" and all(map(_graphed, models))
    moments = _drafting_in_graphs(plain, models, shape) if graphs else _drafting(plain, models, shape)
    return max(moments, key=lambda held: held.total)


def _drafting(plain: Cost, models: list[Ledger], shape: DecodeShape) -> list[Bytes]:
    """Moments of drafting through modules. A pass that checks has logits of all its tokens, and their logarithms."""
    target, positions = models[0], shape.drafted + 1
    run = RunShape(shape.batch, positions, training=False, logits=positions, device=shape.device)
    checking = during(replay(record(target, run)).forward)
    logarithms = Bytes(temporary=4 * shape.batch * positions * target.dims.vocab_size)
    resting = Bytes(weights=weight_bytes(target), kv_cache=plain.phases["decode"].kv_cache)
    beside = Bytes(
        weights=sum(map(weight_bytes, models[1:])),
        kv_cache=sum(kv_cache_bytes(model.dims, shape.batch, shape.context) for model in models[1:]),
    )
    return [held + beside for held in (*plain.phases.values(), resting + checking + logarithms)]


def _drafting_in_graphs(plain: Cost, models: list[Ledger], shape: DecodeShape) -> list[Bytes]:
    """Moments of drafting in graphs, whose caches stand beside that of graphs without drafts where those were tried."""
    positions = shape.drafted + 1
    rows, capacity = _bucket(shape.batch), _capacity(shape.context + AHEAD * positions)
    beside = Bytes(
        weights=sum(map(weight_bytes, models[1:])),
        kv_cache=sum(kv_cache_bytes(model.dims, rows, capacity) for model in models),
        temporary=sum(positions * _buffers(model.dims, rows, capacity) for model in models)
        + sum(_beside(model, "cuda") for model in models[1:]),
    )
    kept = plain.phases["decode"].kv_cache if shape.tried else 0
    return [replace(held, kv_cache=kept) + beside for held in plain.phases.values()]


def _room_bytes(dims: ModelDims, rows: int, capacity: int, form: CacheForm | None) -> int:
    """Bytes of a cache in graphs."""
    if form is None:
        return kv_cache_bytes(dims, rows, capacity)
    heads = dims.num_layers * rows * dims.num_kv_heads
    return heads * form.room_bytes(dims.head_dim, item_bytes(dims.dtype), capacity)


def _capacity(tokens: int) -> int:
    """Tokens that a cache in graphs has room for where so many are needed."""
    return -(-tokens // CAPACITY_STEP) * CAPACITY_STEP


def _graphed(ledger: Ledger) -> bool:
    """Whether a model's weights are such that captured graphs decode it."""
    changed = any(row.role is Role.ADAPTER or (is_packed(row) and not row.layers) for row in ledger.rows)
    return ledger.dims.model_type in GRAPHED and ledger.dims.activation == "silu" and not changed


def _bucket(rows: int) -> int:
    """Rows of the graph that serves so many: a power of 2 up to 8, then multiples of 8."""
    if rows > 8:
        return -(-rows // 8) * 8
    found = 1
    while found < rows:
        found *= 2
    return found


def _beside(ledger: Ledger, device: str) -> int:
    """On CUDA, what the memory of weights has beyond their own bytes."""
    if device != "cuda":
        return 0
    rows = (row for row in ledger.rows if not row.tied_to)
    return sum(row.count * sum(allocated_bytes(each.bytes) - each.bytes for each in row.held) for row in rows)


def _buffers(dims: ModelDims, rows: int, capacity: int) -> int:
    """What a graph keeps besides its cache: logits in float32, random numbers, cosines and sines, and a layer's states.

    Its operations' own results lie there too: logits in the model's dtype where there are several rows.
    """
    item = item_bytes(dims.dtype)
    states = rows * (2 * dims.hidden_size + 2 * dims.q_width + 2 * dims.kv_width + dims.intermediate_size) * item
    logits = rows * dims.vocab_size * (4 + (item if rows > 1 else 0))
    return states + logits + capacity * (8 * rows + 12 * dims.head_dim)


def _prefill_bytes(dims: ModelDims, tokens: int) -> int:
    """The most that reading `tokens` of prompts takes: while queries and keys are turned, or in the feed-forward part.

    At both the stream, what attention gave and a normed copy are there.
    """
    turned = dims.q_width + dims.kv_width
    both = 2 * dims.hidden_size + dims.q_width
    # Queries and keys joined and rolled, turned in float32, and those of the layer before.
    turning = turned + dims.kv_width + 3 * turned + (2 if item_bytes(dims.dtype) == 2 else 1) * turned
    feeding = turned + dims.kv_width + 2 * dims.intermediate_size
    return tokens * (both + max(turning, feeding)) * item_bytes(dims.dtype)


def _graph_work(ledger: Ledger, rows: int, cache_bytes: int) -> Work:
    """The kernels of a captured step that reads `cache_bytes` of keys and values a layer.

    One row takes five kernels a layer: products of one input are joined, and norms are part of them. Several rows take
    a kernel for each of eleven operations, and so does one row of packed weights, which may have to be unpacked first.
    """
    dims = ledger.dims
    item = item_bytes(dims.dtype)
    layers = [row for row in ledger.rows if row.layers and row.is_matrix]
    head = next(row for row in ledger.rows if row.role is Role.HEAD and row.is_matrix)
    joined = [{Role.Q, Role.K, Role.V}, {Role.O}, {Role.GATE, Role.UP}, {Role.DOWN}]
    fused = rows == 1 and not any(map(is_packed, layers))
    groups: Iterable[list[Row]] = (
        [[row for row in layers if row.role in roles] for roles in joined] if fused else [[row] for row in layers]
    )
    kernels = [_product(group, rows, dims.num_layers) for group in groups]
    kernels += [elementwise(2 * _scratch(row, rows), row.count) for row in layers if is_packed(row)]
    flops = 4.0 * dims.q_width * cache_bytes / (2 * dims.kv_width * item)
    attended = Kernel("attention", dims.dtype, flops, cache_bytes, dims.num_layers)
    kernels += [attended, _product([head], rows, 1)]
    small = elementwise(3 * rows * dims.hidden_size * item, (0 if fused else 3 * dims.num_layers) + 3)
    return Work((*kernels, small))


def _product(group: list[Row], rows: int, count: int) -> Kernel:
    """Products of one input with the matrices of a group, as one kernel; packed ones are read as they are held."""
    elements = sum(row.in_features * row.out_features for row in group)
    moved = rows * (group[0].in_features + sum(row.out_features for row in group)) * item_bytes(group[0].dtype)
    held = sum(tensor.bytes for row in group for tensor in row.held)
    dtype = next((row.product.dtype for row in group if row.product and row.product.dtype), group[0].dtype)
    widened = sum(unpacked_bytes(row) for row in group if row.product)
    unit: Unit = "stream" if rows == 1 else "matrix"
    return Kernel(unit, dtype, 2.0 * rows * elements, held + moved, count, widened)


def _unpacked(ledger: Ledger, tokens: int) -> int:
    """The most that a product of packed weights with so many tokens takes beside its result."""
    return max((_scratch(row, tokens) for row in ledger.rows if is_packed(row)), default=0)


def _scratch(row: Row, tokens: int) -> int:
    """What one product of a packed row takes on a GPU beside its result: the matrix unpacked unless its method says."""
    if row.product is None or not row.product.serves(tokens, "cuda"):
        return unpacked_bytes(row)
    return row.product.kernel.of(tokens)
