"""A run of a model on paper: its weights by path, and the modules that families share, recorded on a tape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hayless.core.beside import Beside
from hayless.core.dtypes import item_bytes
from hayless.core.families import family_of
from hayless.core.ledger import Ledger, Row
from hayless.core.new_rows import NAME as NEW_ROWS
from hayless.core.roles import Role
from hayless.core.run_shape import RunShape
from hayless.core.tape import Packed, Tape, Tensor, wider

SCALE_IN, SCALE_OUT = "scale_in", "scale_out"
"""What a module calls a trained vector that its inputs, or its outputs, are multiplied by."""
VIRTUAL = "virtual_tokens"
"""The module of virtual tokens, which every block attends to before the text."""
_ENDS = 2
"""Equal blocks that are recorded at each end of a row of them."""


class Run:
    """One run being recorded: the model's weights by path, and the modules all families share."""

    def __init__(self, ledger: Ledger, shape: RunShape, tape: Tape, weight_dtype: Callable[[Row], str]) -> None:
        self.dims, self.shape, self.tape = ledger.dims, shape, tape
        self.paths = family_of(ledger.dims.model_type).PATHS
        self.rows: dict[tuple[str, str], Row] = {(row.module, row.parameter): row for row in ledger.rows}
        self._layers = [(place, set(row.layers)) for place, row in enumerate(ledger.rows) if row.layers]
        self._by_layers: dict[tuple[str, str], list[Row]] = {}
        for row in ledger.rows:
            self._by_layers.setdefault((row.module, row.parameter), []).append(row)
        self._beside = Beside(ledger)
        self._weight_dtype = weight_dtype
        self._leaves: dict[tuple[str, str, int], Tensor] = {}
        self._hidden_dtype = "float32"
        self._held: list[Tensor] = []
        self._virtual: list[tuple[Tensor, Tensor]] = []
        self._attended = 0
        self._states: dict[int, Tensor] = {}
        self._times: dict[int, int] = {}
        self.mask: Tensor | None = None

    @property
    def heads(self) -> int:
        """Tokens times heads: the rows of attention."""
        return self.shape.tokens * self.dims.num_heads

    @property
    def by_lengths(self) -> bool:
        """Whether attention knows documents by their cumulative lengths, and has all positions in one dimension."""
        return self.shape.masked and self.shape.attention == "varlen"

    @property
    def _seen(self) -> float:
        """Keys that a query sees on average: all, or those up to its own; of documents in a row no more is known."""
        every = self.dims.family in ("bert", "t5")
        return float(self.shape.sequence) if every else (self.shape.sequence + 1) / 2

    def weight(self, module: str, parameter: str, layer: int = 0) -> Tensor | None:
        """A weight as a leaf, the same object for shared ones; None where the model has none of that name."""
        found = self._by_layers.get((module, parameter), ())
        row = next((row for row in found if not row.layers or layer in row.layers), None)
        if row is None:
            return None
        if row.tied_to:
            module, parameter, row = row.tied_to, "weight", self.rows[row.tied_to, "weight"]
        return self._leaf(row, layer if row.layers else 0)

    def linear(self, x: Tensor, module: str, layer: int = 0) -> Tensor:
        """A linear module with its bias and the branches that methods added beside it."""
        row = self.rows[module, "weight"]
        weight, bias = self.weight(module, "weight", layer), self.weight(module, "bias", layer)
        assert weight is not None
        tokens = x.elements // row.in_features
        x = self._scaled(x, module, SCALE_IN, layer)
        shape = (row.out_features, row.in_features)
        if self.shape.float8 and row.layers and not unpacked_bytes(row):
            out = self._float8(x, weight, bias, tokens, shape)
        else:
            out = self.tape.linear(x, weight, bias, tokens, shape, self._packed(row, weight, tokens))
        return self._scaled(self._beside.add(self, x, out, module, layer), module, SCALE_OUT, layer)

    def _float8(self, x: Tensor, weight: Tensor, bias: Tensor | None, tokens: int, shape: tuple[int, int]) -> Tensor:
        """A product of 8-bit floats: codes of both factors, forward and backward, where hosts transpose W before."""
        tape, (out, width) = self.tape, shape
        forward = tokens * width + out * width + 4 * (tokens + out)
        backward = tokens * out + out * width + 4 * (tokens + width)
        backward += 0 if self.shape.device == "cuda" else weight.bytes
        x = tape.cast(x, self.shape.arithmetic or x.dtype)
        with tape.unfused():
            return tape.linear(x, weight, bias, tokens, shape, Packed(forward, backward, numbers="float8_e4m3fn"))

    def _scaled(self, x: Tensor, module: str, parameter: str, layer: int) -> Tensor:
        """`x` times a trained vector of the module, in x's dtype; `x` where there is none."""
        vector = self.weight(module, parameter, layer)
        return x if vector is None else self.tape.cast(self.tape.mul(x, vector), x.dtype)

    def _packed(self, row: Row, weight: Tensor, tokens: int) -> Packed:
        """What the product of a packed row with `tokens` tokens takes beside its result."""
        unpacked, product = unpacked_bytes(row), row.product
        if product is None or not product.serves(tokens, self.shape.device):
            return Packed(unpacked, unpacked)
        scratch = product.kernel if self.shape.device == "cuda" else product.plain
        less = weight.bytes - sum(tensor.bytes for tensor in row.held)
        return Packed(scratch.of(tokens), unpacked, max(0, less), product.dtype)

    def rms_norm(self, x: Tensor, module: str, layer: int = 0, width: int = 0) -> Tensor:
        """Llama's norm: in float32, then back to the input's dtype, then times the gain."""
        tape, dtype = self.tape, x.dtype
        weight = self.weight(module, "weight", layer)
        assert weight is not None
        gemma = self.dims.model_type.startswith("gemma")
        if self.shape.fused_kernels:
            rows = x.elements // (width or self.dims.hidden_size)
            return tape.rms_norm(x, weight, rows, dtype if gemma else wider(x, weight))
        wide = tape.cast(x, "float32")
        square = tape.unary(wide, "input")
        mean = tape.unary(square, "nothing", x.elements // (width or self.dims.hidden_size))
        normed = tape.mul(wide, tape.unary(tape.scale(mean), "output"))
        if gemma:
            gain = tape.scale(tape.cast(weight, "float32"))
            return tape.cast(tape.mul(normed, gain), dtype)
        return tape.mul(weight, tape.cast(normed, dtype))

    def layer_norm(self, x: Tensor, module: str, layer: int = 0) -> Tensor:
        """nn.LayerNorm."""
        weight = self.weight(module, "weight", layer)
        assert weight is not None
        tokens = x.elements // self.dims.hidden_size
        return self.tape.layer_norm(x, weight, self.weight(module, "bias", layer), tokens)

    def activation(self, x: Tensor) -> Tensor:
        """The activation function, as transformers writes it."""
        tape, name = self.tape, self.dims.activation
        if name in ("gelu_new", "gelu_python_tanh", "gelu_fast", "gelu_accurate"):
            half = tape.scale(x)
            # On GPUs autocast takes powers in float32.
            power = tape.cast(x, "float32") if self.shape.arithmetic and self.shape.device == "cuda" else x
            inner = tape.scale(tape.add(x, tape.scale(tape.unary(power, "input"))))
            return tape.mul(half, tape.scale(tape.unary(inner, "output")))
        return tape.unary(x, "output" if name in ("relu", "tanh", "sigmoid") else "input")

    def rotation(self) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of all positions; one row where positions are those of a plain sequence."""
        if self.paths.rotary is None:
            return None
        rows = self.shape.batch if self.shape.masked else 1
        size = rows * self.shape.sequence * self.rotary_width
        return self.tape.constant(size, self._hidden_dtype), self.tape.constant(size, self._hidden_dtype)

    @property
    def rotary_width(self) -> int:
        """How much of a head turns with its position."""
        return max(2, int(self.dims.head_dim * self.dims.rotary_share) // 2 * 2)

    def rotated(self, x: Tensor, heads: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Rotary positions applied to queries or keys of `heads` heads."""
        tape = self.tape
        cos, sin = rotation
        if self.shape.fused_kernels:
            return tape.rotary(x, cos, sin)
        turned = self.shape.tokens * heads * self.rotary_width
        part, rest = x, None
        if turned != x.elements:
            part, rest = tape.parts(x, (turned, x.elements - turned))
        product = tape.mul(part, cos)
        low, high = tape.parts(part, (turned // 2, turned // 2))
        half = tape.join(tape.scale(high), low)
        whole = tape.add(product, tape.mul(half, sin))
        tape.hold(product, x)
        return whole if rest is None else tape.join(whole, rest)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, wide_scores: bool = True, fused: bool = True) -> Tensor:
        """Attention of this run's kind over keys and values with their own number of heads.

        `wide_scores`: the family's eager attention takes its softmax in float32. `fused` False: a trained bias on the
        scores keeps fused attention from running.
        """
        tape, dims = self.tape, self.dims
        groups = dims.num_heads // dims.num_kv_heads
        if self._virtual:
            k, v = self._behind_virtual(k, v)
        if not fused or self.shape.attention == "eager":
            return self._scored(q, k, v, wide=wide_scores or self.shape.arithmetic is not None)
        if not self._fusible(q):
            with tape.unfused():
                wide = [tape.cast(x, "float32") for x in (q, k, v)]
                return tape.cast(self._scored(*wide, wide=True), self.shape.arithmetic or q.dtype)
        if self.by_lengths:
            out = tape.attention(q, k, v, self.heads, self._seen)
            # Without the kernel documents are attended one by one, and put together.
            return out if self.shape.device == "cuda" else tape.join(out)
        if groups > 1 and (self.mask is not None or dims.head_dim > 256):
            k, v = tape.copy(k, k.elements * groups), tape.copy(v, v.elements * groups)
        masks = () if self.mask is None else (tape.cast(self.mask, q.dtype),)
        return tape.attention(q, k, v, self.heads, self._seen, masks)

    def virtual(self) -> None:
        """Keys and values of virtual tokens, where the model has some.

        They are taken for a table, or for what a network makes of one; a soft prompt's own pass is left out.
        """
        row = self.rows.get((f"{VIRTUAL}.embedding", "weight"))
        if row is None:
            return
        tape, dims, count = self.tape, self.dims, row.shape[0]
        made = self._leaf(row, 0)
        layers = [row for (module, _), row in self.rows.items() if module in (f"{VIRTUAL}.inner", f"{VIRTUAL}.outer")]
        for weight, bias in zip(layers[::2], layers[1::2], strict=True):
            wide, width = weight.shape
            made = tape.linear(made, self._leaf(weight, 0), self._leaf(bias, 0), count, (wide, width))
            made = tape.unary(made, "output") if module_of(weight) == "inner" else made
        size = count * dims.kv_width
        if made.elements != 2 * size * dims.num_layers:
            made = tape.copy(made, 2 * size * dims.num_layers)
        parts = tape.parts(made, [size] * (2 * dims.num_layers))
        self._virtual = list(zip(parts[::2], parts[1::2], strict=True))

    def _behind_virtual(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values with those of the virtual tokens before them, in every row."""
        tape, rows = self.tape, self.shape.batch
        virtual = self._virtual[self._attended % len(self._virtual)]
        self._attended += 1
        first = [tape.parts(tape.cast(each, k.dtype), (rows * each.elements,))[0] for each in virtual]
        return tape.join(first[0], k), tape.join(first[1], v)

    def _scored(self, q: Tensor, k: Tensor, v: Tensor, *, wide: bool) -> Tensor:
        """Attention that writes all scores down; their softmax in float32 if `wide`."""
        tape, dims = self.tape, self.dims
        repeated = k.elements // dims.kv_width * dims.q_width
        # Heads are made contiguous: q, k and v are copied, for queries of a group each its own k and v.
        q, k, v = tape.copy(q), tape.copy(k, repeated), tape.copy(v, repeated)
        scores = tape.scale(tape.matmul(q, k, self.heads * self.shape.sequence, dims.head_dim))
        scores = tape.add(scores, tape.constant(self.shape.sequence**2, scores.dtype))
        if wide:
            scores = tape.cast(scores, "float32")
        probs = tape.dropout(tape.cast(tape.unary(scores, "output"), q.dtype), dims.attention_dropout)
        return tape.copy(tape.matmul(probs, v, q.elements, self.shape.sequence))

    def _fusible(self, q: Tensor) -> bool:
        """Whether PyTorch has a fused kernel; where it has none, it writes scores down, in float32.

        There is none for dropout on CPUs, nor for grouped queries in float32 on GPUs.
        """
        if self.shape.device == "cpu":
            return not (self.shape.training and self.dims.attention_dropout > 0)
        grouped = self.dims.num_heads > self.dims.num_kv_heads and self.mask is None and not self.by_lengths
        return not (grouped and (self.shape.arithmetic or q.dtype) == "float32")

    def embedded(self) -> Tensor:
        """Token embeddings, with learned positions and a projection where the family has them."""
        tape, dims = self.tape, self.dims
        table = self.weight(self.paths.embedding, "weight")
        assert table is not None
        self._hidden_dtype = table.dtype
        ids = tape.constant(self.shape.tokens, "int64")
        x = tape.embedding(ids, table, self.shape.tokens * dims.embedding_width)
        new = self.weight(f"{self.paths.embedding}.{NEW_ROWS}", "weight")
        if new is not None:
            found = tape.embedding(tape.constant(self.shape.tokens, "int64"), new, x.elements)
            found = tape.scale(found) if dims.model_type == "gemma3_text" else found
            x = tape.choose(tape.cast(found, x.dtype), x, self.shape.tokens)
        self._held.append(x)
        if self.paths.project_in and dims.embedding_width != dims.hidden_size:
            x = self.linear(x, self.paths.project_in)
        positions = self.weight(self.paths.position, "weight") if self.paths.position else None
        if positions is not None:
            rows = self.shape.batch if self.shape.masked or dims.family == "opt" else 1
            places = tape.constant(rows * self.shape.sequence, "int64")
            placed = tape.embedding(places, positions, rows * self.shape.sequence * dims.hidden_size)
            self._held.append(placed)
            x = tape.add(x, placed)
        if self.shape.masked and not self.by_lengths:
            self.mask = tape.constant(self.shape.batch * self.shape.sequence**2, "bool")
        if self._virtual:
            if self.mask is not None:
                self._held.append(self.mask)
            rows = self.shape.batch if self.shape.masked else 1
            before = self._virtual[0][0].elements // dims.kv_width
            self.mask = tape.constant(rows * self.shape.sequence * (before + self.shape.sequence), "bool")
        return x

    def final(self, x: Tensor) -> Tensor:
        """What stands between the last block and the head."""
        if self.paths.final_norm and self.dims.final_norm:
            norm = self.rms_norm if self.dims.family in ("llama", "mixtral") else self.layer_norm
            x = norm(x, self.paths.final_norm)
        if self.paths.project_out and self.dims.embedding_width != self.dims.hidden_size:
            x = self.linear(x, self.paths.project_out)
        return x

    def exits(self) -> None:
        """The losses of the states that leave early, each from all of its logits, added to what there is."""
        tape = self.tape
        for layer in self.shape.exits:
            head = next(row for row in self.rows.values() if row.role is Role.HEAD and row.is_matrix)
            logits = self._logits(self.final(self._states[layer]), head)
            loss = tape.cross_entropy(logits, tape.constant(self.shape.tokens, "int64"))
            tape.hold(logits)
            assert tape.result is not None, "only a run that trains has exits"
            tape.result = tape.add(tape.result, tape.scale(loss))

    def head(self, hidden: Tensor) -> None:
        """Logits, and where the run trains their cross-entropy; without a head, a loss on the last states."""
        tape = self.tape
        # The base model's own variables live until it returns.
        tape.hold(*self._held)
        found = next((row for row in self.rows.values() if row.role is Role.HEAD and row.is_matrix), None)
        if found is None:
            tape.result = tape.unary(hidden, "nothing", 1) if self.shape.training else None
            return
        if self.shape.logits:
            rows = min(self.shape.logits, self.shape.sequence) * self.shape.batch
            hidden = tape.copy(hidden, rows * hidden.elements // self.shape.tokens)
        if self.shape.training and self.shape.loss_chunk:
            tape.result = self._chunked_loss(hidden, found)
            return
        logits = self._logits(hidden, found)
        if self.shape.training:
            tape.result = tape.cross_entropy(logits, tape.constant(self.shape.tokens, "int64"))
            tape.hold(logits)

    def _logits(self, hidden: Tensor, head: Row) -> Tensor:
        """Logits, those of new tokens from their own rows."""
        tape, width = self.tape, head.in_features
        logits, new = self.linear(hidden, head.module), self._new_rows(head)
        if new is None:
            return logits
        shape = (new.elements // width, width)
        extra = tape.linear(hidden, tape.cast(new, hidden.dtype), None, hidden.elements // width, shape)
        return tape.put(logits, extra)

    def _new_rows(self, head: Row) -> Tensor | None:
        """The head's rows of new tokens, where they train alone."""
        return self.weight(f"{head.tied_to or head.module}.{NEW_ROWS}", "weight")

    def _chunked_loss(self, hidden: Tensor, head: Row) -> Tensor:
        """The loss a chunk of tokens at a time; a head that is more than its weight is computed again backward."""
        tape, tokens, chunk = self.tape, self.shape.tokens, self.shape.loss_chunk
        weight, bias = self.weight(head.module, "weight"), self.weight(head.module, "bias")
        assert weight is not None
        more = [self.weight(head.module, parameter) for parameter in (SCALE_IN, SCALE_OUT)] + [self._new_rows(head)]
        if not (self._beside.at(head.module) or unpacked_bytes(head) or any(extra is not None for extra in more)):
            shape, targets = (head.out_features, head.in_features), tape.constant(tokens, "int64")
            found = tape.linear_cross_entropy(hidden, weight, bias, targets, shape, chunk)
            tape.hold(hidden)
            return found
        sizes = [min(chunk, tokens - start) for start in range(0, tokens, chunk)]
        parts = tape.parts(hidden, [size * head.in_features for size in sizes])
        losses = []
        for place in range(len(sizes)):
            with tape.block(checkpointed=True):
                logits, targets = self._logits(parts[place], head), tape.constant(sizes[place], "int64")
                losses.append(tape.cross_entropy(logits, targets))
                tape.hold(logits)
        return tape.unary(tape.join(*losses), "nothing", 1)

    def blocks(self) -> list[int]:
        """The numbers of the blocks to record. Of a long row of equal ones a few are, and the one in the middle stands
        for those that are left out (`Segment.times`): from one block to the next of them, all grows by as much."""
        numbers = list(range(self.dims.num_layers))
        if self.shape.exits or self._virtual:
            return numbers
        found: list[int] = []
        while numbers:
            kind, alike = self._kind(numbers[0]), [numbers[0]]
            while len(alike) < len(numbers) and self._kind(numbers[len(alike)]) == kind:
                alike.append(numbers[len(alike)])
            numbers = numbers[len(alike) :]
            if len(alike) > 2 * _ENDS + 1:
                self._times[alike[_ENDS]] = len(alike) - 2 * _ENDS
                alike = [*alike[: _ENDS + 1], *alike[-_ENDS:]]
            found += alike
        return found

    def _kind(self, number: int) -> str:
        """Equal for blocks that compute the same."""
        rows = [str(place) for place, layers in self._layers if number in layers]
        return f"{self.shape.recomputes(number)} {' '.join(rows)}"

    @contextmanager
    def block(self, number: int, entering: Tensor) -> Iterator[None]:
        """Record a block; the loop over blocks holds what enters it until it is done."""
        self._states[number] = entering
        checkpointed = self.shape.training and self.shape.recomputes(number)
        offloaded = entering if checkpointed and self.shape.offload else None
        keeps, times = self.shape.checkpoint_keeps, self._times.get(number, 1)
        with self.tape.block(checkpointed=checkpointed, keeps=keeps, offloaded=offloaded, times=times):
            yield
        self.tape.hold(entering)

    def _leaf(self, row: Row, layer: int) -> Tensor:
        key = (row.module, row.parameter, layer)
        if key not in self._leaves:
            size = row.elements // row.count
            self._leaves[key] = self.tape.leaf(size, self._weight_dtype(row), row.trainable)
        return self._leaves[key]


def module_of(row: Row) -> str:
    """The last part of a row's path."""
    return row.module.rpartition(".")[2]


def unpacked_bytes(row: Row) -> int:
    """Bytes of one matrix of a packed row while it is unpacked; 0 for a plain one."""
    plain = len(row.held) == 1 and row.held[0].shape == row.shape
    return 0 if plain else row.elements // row.count * item_bytes(row.dtype)
