"""What a model keeps for its backward pass, family by family: forward passes of transformers' models, on paper.

What is kept follows from the operations (`hayless.core.tape`), so a family below is its own code, line by line,
without values. Models in `VERIFIED` are held against PyTorch's saved tensors in `tests/core/test_activations.py`; the
others are read from their code in transformers 5 in the same way.
"""

from __future__ import annotations

from collections.abc import Callable

from hayless.core.beside import beside_stack
from hayless.core.errors import NotSupported
from hayless.core.forward import Run, RunShape
from hayless.core.ledger import Ledger, Row
from hayless.core.tape import Tape, Tensor

VERIFIED = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt2", "opt", "gpt_neox"})
"""Values of `model_type` whose predictions are held against PyTorch's saved tensors."""


def record(ledger: Ledger, shape: RunShape, weight_dtype: Callable[[Row], str] = lambda row: row.dtype) -> Tape:
    """The tape of one forward pass of the model with the loss of its objective where it trains.

    `weight_dtype` gives the dtype a row's weights have in this run.
    """
    forward = _FORWARDS.get(ledger.dims.family)
    if forward is None:
        raise NotSupported(f"The activations of the {ledger.dims.family} family are not known.")
    tape = Tape(training=shape.training, arithmetic=shape.arithmetic, device=shape.device)
    run = Run(ledger, shape, tape, weight_dtype)
    run.virtual()
    hidden = forward(run)
    with tape.loss():
        run.head(hidden)
        run.exits()
    return tape


def _llama(run: Run) -> Tensor:
    tape, dims = run.tape, run.dims
    x = run.embedded()
    if dims.model_type.startswith("gemma"):
        x = tape.scale(x)
    rotation = run.rotation()
    assert rotation is not None
    for layer in run.blocks():
        with run.block(layer, x):
            x = _llama_block(run, x, layer, rotation)
    tape.hold(*rotation)
    return run.final(x)


def _llama_block(run: Run, x: Tensor, layer: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
    tape, dims = run.tape, run.dims
    at = "model.layers.{layer}"
    attn = f"{at}.self_attn"
    residual = x
    h = run.rms_norm(x, f"{at}.input_layernorm", layer)
    q, k, v = (run.linear(h, f"{attn}.{name}", layer) for name in ("q_proj", "k_proj", "v_proj"))
    if dims.qk_norm:
        q = run.rms_norm(q, f"{attn}.q_norm", layer, dims.head_dim)
        k = run.rms_norm(k, f"{attn}.k_norm", layer, dims.head_dim)
    q, k = run.rotated(q, dims.num_heads, rotation), run.rotated(k, dims.num_kv_heads, rotation)
    out = run.linear(run.attend(q, k, v), f"{attn}.o_proj", layer)
    tape.hold(h, q, k, v)
    if dims.norms_per_block == 4:
        out = run.rms_norm(out, f"{at}.post_attention_layernorm", layer)
    x = tape.add(residual, out)
    residual = x
    before = "pre_feedforward_layernorm" if dims.norms_per_block == 4 else "post_attention_layernorm"
    h = run.rms_norm(x, f"{at}.{before}", layer)
    out = _experts(run, h, layer) if dims.num_experts else _gated(run, h, layer)
    if dims.norms_per_block == 4:
        out = run.rms_norm(out, f"{at}.post_feedforward_layernorm", layer)
    return tape.add(residual, out)


def _gated(run: Run, h: Tensor, layer: int) -> Tensor:
    tape, mlp = run.tape, "model.layers.{layer}.mlp"
    gate = run.linear(h, f"{mlp}.gate_proj", layer)
    if run.shape.fused_kernels and run.dims.activation == "silu":
        inner = tape.swiglu(gate, run.linear(h, f"{mlp}.up_proj", layer))
    else:
        gate = run.activation(gate)
        inner = tape.mul(gate, run.linear(h, f"{mlp}.up_proj", layer))
    out = run.linear(inner, f"{mlp}.down_proj", layer)
    tape.hold(h)
    return out


def _experts(run: Run, h: Tensor, layer: int) -> Tensor:
    """Grouped products over tokens sorted by expert (transformers' `grouped_mm`)."""
    tape, dims, mlp = run.tape, run.dims, "model.layers.{layer}.mlp"
    chosen = run.shape.tokens * dims.experts_per_token
    router = tape.cast(run.linear(h, f"{mlp}.gate", layer), "float32")
    scores = tape.unary(tape.unary(router, "output"), "nothing", chosen)
    weights = tape.mul(scores, tape.unary(scores, "output", run.shape.tokens))
    sort = tape.constant(chosen, "int64")
    x = tape.indexed(h, chosen * dims.hidden_size, sort)
    gate_up, down = (run.weight(f"{mlp}.experts", f"{name}_proj", layer) for name in ("gate_up", "down"))
    assert gate_up is not None and down is not None
    hidden, width = dims.hidden_size, dims.intermediate_size
    # Of many experts a few tokens meet only some.
    missed = (1.0 - dims.experts_per_token / dims.num_experts) ** run.shape.tokens
    unread = [round(missed * weight.bytes) for weight in (gate_up, down)]
    # Grouped products are not among those that autocast makes narrow: they have the weights' dtype.
    with tape.unfused():
        x = tape.cast(x, gate_up.dtype)
        both = tape.linear(x, gate_up, None, chosen, (2 * width, hidden), unread=unread[0])
        both = beside_stack(run, x, both, f"{mlp}.experts", "gate_up_proj", layer)
        gate, up = tape.parts(both, (chosen * width, chosen * width))
        wide = tape.cast(tape.mul(run.activation(gate), up), down.dtype)
        inner = tape.linear(wide, down, None, chosen, (hidden, width), unread=unread[1])
        inner = beside_stack(run, wide, inner, f"{mlp}.experts", "down_proj", layer)
    weighted = tape.mul(inner, tape.indexed(weights, chosen, sort))
    summed = tape.unary(tape.indexed(weighted, weighted.elements, sort), "nothing", h.elements)
    tape.hold(h)
    return tape.cast(summed, h.dtype)


def _gpt2(run: Run) -> Tensor:
    tape, dims = run.tape, run.dims
    at, hidden = "transformer.h.{layer}", dims.hidden_size
    x = tape.dropout(run.embedded(), dims.dropout)
    for layer in run.blocks():
        with run.block(layer, x):
            residual = x
            h = run.layer_norm(x, f"{at}.ln_1", layer)
            size = run.shape.tokens * hidden
            q, k, v = tape.parts(run.linear(h, f"{at}.attn.c_attn", layer), (size, size, size))
            out = run.linear(run.attend(q, k, v, wide_scores=False), f"{at}.attn.c_proj", layer)
            tape.hold(h)
            x = tape.add(tape.dropout(out, dims.dropout), residual)
            residual = x
            h = run.layer_norm(x, f"{at}.ln_2", layer)
            wide = run.activation(run.linear(h, f"{at}.mlp.c_fc", layer))
            out = run.linear(wide, f"{at}.mlp.c_proj", layer)
            tape.hold(h)
            x = tape.add(residual, tape.dropout(out, dims.dropout))
    return run.final(x)


def _opt(run: Run) -> Tensor:
    tape, dims = run.tape, run.dims
    at = "model.decoder.layers.{layer}"
    x = run.embedded()
    first = dims.norm_first
    for layer in run.blocks():
        with run.block(layer, x):
            residual = x
            h = run.layer_norm(x, f"{at}.self_attn_layer_norm", layer) if first else x
            q = tape.scale(run.linear(h, f"{at}.self_attn.q_proj", layer))
            k, v = (run.linear(h, f"{at}.self_attn.{name}", layer) for name in ("k_proj", "v_proj"))
            out = run.linear(run.attend(q, k, v), f"{at}.self_attn.out_proj", layer)
            tape.hold(h, q, k, v)
            x = tape.add(residual, tape.dropout(out, dims.dropout))
            x = x if first else run.layer_norm(x, f"{at}.self_attn_layer_norm", layer)
            residual = x
            h = run.layer_norm(x, f"{at}.final_layer_norm", layer) if first else x
            out = run.linear(run.activation(run.linear(h, f"{at}.fc1", layer)), f"{at}.fc2", layer)
            x = tape.add(residual, tape.dropout(out, dims.dropout))
            x = x if first else run.layer_norm(x, f"{at}.final_layer_norm", layer)
    return run.final(x)


def _gpt_neox(run: Run) -> Tensor:
    tape, dims = run.tape, run.dims
    at = "gpt_neox.layers.{layer}"
    x = tape.dropout(run.embedded(), dims.dropout)
    rotation = run.rotation()
    assert rotation is not None
    size = run.shape.tokens * dims.hidden_size
    for layer in run.blocks():
        with run.block(layer, x):
            h = run.layer_norm(x, f"{at}.input_layernorm", layer)
            q, k, v = tape.parts(run.linear(h, f"{at}.attention.query_key_value", layer), (size, size, size))
            q, k = (run.rotated(part, dims.num_heads, rotation) for part in (q, k))
            # NeoX's concatenation lays heads before tokens, and fused attention answers in the layout of q; by lengths,
            # it wants tokens first.
            if run.by_lengths:
                q, k = tape.copy(q), tape.copy(k)
            attended = run.attend(q, k, v)
            if not run.by_lengths and run.shape.attention != "eager":
                attended = tape.copy(attended)
            attended = run.linear(attended, f"{at}.attention.dense", layer)
            tape.hold(h, q, k)
            attended = tape.dropout(attended, dims.dropout)
            base = x if dims.parallel_residual else tape.add(attended, x)
            h = run.layer_norm(base, f"{at}.post_attention_layernorm", layer)
            wide = run.activation(run.linear(h, f"{at}.mlp.dense_h_to_4h", layer))
            out = tape.dropout(run.linear(wide, f"{at}.mlp.dense_4h_to_h", layer), dims.dropout)
            x = tape.add(tape.add(out, attended), x) if dims.parallel_residual else tape.add(out, base)
    tape.hold(*rotation)
    return run.final(x)


def _bert(run: Run) -> Tensor:
    tape, dims = run.tape, run.dims
    at = "bert.encoder.layer.{layer}"
    x = run.embedded()
    types = run.weight("bert.embeddings.token_type_embeddings", "weight")
    assert types is not None
    x = tape.add(x, tape.embedding(tape.constant(run.shape.tokens, "int64"), types, x.elements))
    x = tape.dropout(run.layer_norm(x, "bert.embeddings.LayerNorm"), dims.dropout)
    for layer in run.blocks():
        with run.block(layer, x):
            attn = f"{at}.attention"
            q, k, v = (run.linear(x, f"{attn}.self.{name}", layer) for name in ("query", "key", "value"))
            out = run.linear(run.attend(q, k, v, wide_scores=False), f"{attn}.output.dense", layer)
            tape.hold(q, k, v)
            x = run.layer_norm(tape.add(tape.dropout(out, dims.dropout), x), f"{attn}.output.LayerNorm", layer)
            wide = run.activation(run.linear(x, f"{at}.intermediate.dense", layer))
            out = tape.dropout(run.linear(wide, f"{at}.output.dense", layer), dims.dropout)
            x = run.layer_norm(tape.add(out, x), f"{at}.output.LayerNorm", layer)
    x = run.activation(run.linear(x, "cls.predictions.transform.dense"))
    return run.layer_norm(x, "cls.predictions.transform.LayerNorm")


def _t5(run: Run) -> Tensor:
    tape, dims = run.tape, run.dims
    encoded = tape.dropout(run.embedded(), dims.dropout)
    for layer in range(dims.encoder_layers):
        with run.block(layer, encoded):
            encoded = _t5_block(run, encoded, "encoder", layer, None)
    encoded = tape.dropout(run.rms_norm(encoded, "encoder.final_layer_norm"), dims.dropout)
    x = tape.dropout(run.embedded(), dims.dropout)
    for layer in range(dims.num_layers):
        with run.block(dims.encoder_layers + layer, x):
            x = _t5_block(run, x, "decoder", layer, encoded)
    tape.hold(encoded)
    x = tape.dropout(run.rms_norm(x, "decoder.final_layer_norm"), dims.dropout)
    return tape.scale(x) if dims.tied_embeddings else x


def _t5_block(run: Run, x: Tensor, stack: str, layer: int, encoded: Tensor | None) -> Tensor:
    tape, dims = run.tape, run.dims
    at = f"{stack}.block.{{layer}}.layer"
    parts: list[tuple[str, str, Tensor | None]] = [("0.SelfAttention", "0.layer_norm", None)]
    if encoded is not None:
        parts.append(("1.EncDecAttention", "1.layer_norm", encoded))
    for module, norm, source in parts:
        h = run.rms_norm(x, f"{at}.{norm}", layer)
        q = run.linear(h, f"{at}.{module}.q", layer)
        k, v = (run.linear(source or h, f"{at}.{module}.{name}", layer) for name in ("k", "v"))
        out = run.linear(run.attend(q, k, v, wide_scores=False, fused=False), f"{at}.{module}.o", layer)
        tape.hold(h, q, k, v)
        x = tape.add(x, tape.dropout(out, dims.dropout))
    last = 1 if encoded is None else 2
    dense = f"{at}.{last}.DenseReluDense"
    h = run.rms_norm(x, f"{at}.{last}.layer_norm", layer)
    if dims.gated:
        wide = run.activation(run.linear(h, f"{dense}.wi_0", layer))
        wide = tape.mul(wide, run.linear(h, f"{dense}.wi_1", layer))
    else:
        wide = run.activation(run.linear(h, f"{dense}.wi", layer))
    out = run.linear(tape.dropout(wide, dims.dropout), f"{dense}.wo", layer)
    tape.hold(h)
    return tape.add(x, tape.dropout(out, dims.dropout))


_FORWARDS: dict[str, Callable[[Run], Tensor]] = {
    "llama": _llama,
    "mixtral": _llama,
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt_neox": _gpt_neox,
    "bert": _bert,
    "t5": _t5,
}
