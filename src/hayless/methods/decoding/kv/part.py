"""The part that fills the slot for caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.cost import kv_cache_bytes
from hayless.core.dims import ModelDims
from hayless.decode.products import RowSlots
from hayless.decode.program import Program
from hayless.methods.decoding.kv.config import KVConfig
from hayless.methods.decoding.kv.predict import cache_form, check_head
from hayless.methods.decoding.kv.readers import QuantizedReader, through_modules, through_program

if TYPE_CHECKING:
    from hayless.methods.decoding.kv.coded import CodedCache


class QuantizedKV:
    """A quantized cache for `model`. NotSupported where its heads do not fill groups, or it holds more than keys."""

    def __init__(
        self, config: KVConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        text = model.config.get_text_config(decoder=True)
        check_head(config, getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        through_modules(model, config)
        self.config = config
        self._model = model

    def __str__(self) -> str:
        return f"{self.config.bits} bits but for the last {self.config.residual} tokens"

    def reader(self, program: Program | None, adapters: RowSlots | None = None) -> QuantizedReader:
        """The model reading into an empty cache, through its program where there is one, with the rows' adapters."""
        if program is None:
            return through_modules(self._model, self.config, adapters)
        return through_program(program, self.config, adapters)

    def no_kernels(self, program: Program) -> str | None:
        """Why its codes cannot be read in captured graphs, or None."""
        return cache_form(self.config).why_no_kernel(program.dims.head_dim)

    def in_kernels(self, program: Program, rows: int, capacity: int) -> CodedCache:
        """A cache of empty rows that captured graphs read."""
        from hayless.methods.decoding.kv.coded import CodedCache  # needs Triton

        return CodedCache(cache_form(self.config), program, rows, capacity)

    def row_bytes(self, dims: ModelDims, tokens: int) -> int:
        """Bytes of what the cache holds of a row of `tokens`."""
        return kv_cache_bytes(dims, 1, tokens, form=cache_form(self.config))
