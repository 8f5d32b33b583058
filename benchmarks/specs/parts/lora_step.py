"""Contenders of training steps of LoRA, on a base in 16 bits or in nf4: hayless's update, and PEFT in a bare loop.

All begin with the same base and the same A and B, none of them zero, and learn from the same random tokens with the
same AdamW and clipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from parts.adapters import SCALE, matrices
from parts.scratch import folder
from parts.training import FIRST, NEXT, NORMS, Memory, Training
from torch import Tensor, nn

from hayless.core.registry import configure
from hayless.model.transform import apply
from hayless.study.bench.gate import Plain, close
from hayless.study.bench.spec import Prepared

Pairs = dict[str, tuple[Tensor, Tensor]]
"""A (rank, in) and B (out, rank) by path."""


@dataclass(frozen=True)
class LoraStep:
    """A `step` that trains LoRA of `rank` on every matrix of the blocks; `packed`: in nf4 with double quantization;
    `recomputed`: with checkpointing of every block."""

    step: Training
    rank: int
    packed: bool = False
    recomputed: bool = False

    def hayless(
        self,
        *,
        compile: bool = False,
        memory: Sequence[Memory] = (),
        optimizer: str = "adamw",
    ) -> Prepared:
        """The trainer's update. A, B and their moments are float32, and are multiplied in the base's 16 bits."""
        model, pairs = self._begin()
        lora = configure("lora", rank=self.rank, alpha=SCALE * self.rank)
        apply(model, [configure("nf4"), lora] if self.packed else [lora])
        _fill(model, pairs, "lora_{part}.weight")
        again = ["checkpointing"] if self.recomputed else []
        return self.step.updates(model, "fp32", compile=compile, memory=[*again, *memory], optimizer=optimizer)

    def peft(
        self,
        adapters: torch.dtype = torch.float32,
        *,
        compile: bool = False,
        liger: bool = False,
    ) -> Prepared:
        """PEFT, whose adapters are float32 unless it is told otherwise; bitsandbytes where the base is packed.

        `compile`: block by block. `liger`: with Liger's kernels and loss.
        """
        import peft

        model, pairs = self._begin()
        if self.packed:
            _to_bitsandbytes(model, pairs)
        if liger:
            from liger_kernel.transformers import apply_liger_kernel_to_llama

            apply_liger_kernel_to_llama(model=model)
        kinds = sorted({path.rpartition(".")[2] for path in pairs})
        config = peft.LoraConfig(r=self.rank, lora_alpha=SCALE * self.rank, target_modules=kinds)
        wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=adapters == torch.float32)
        _fill(model, pairs, "lora_{part}.default.weight", adapters)
        if self.recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if compile:
            for block in model.model.layers:
                block.compile()
        return self.step.loop(wrapped, wrapped)

    def unsloth(self) -> Prepared:
        """Unsloth's model and adapters, at what its documents recommend."""
        from unsloth import FastLanguageModel

        model, pairs = self._begin()
        model.save_pretrained(folder() / "unsloth")
        found, _ = FastLanguageModel.from_pretrained(
            str(folder() / "unsloth"),
            max_seq_length=self.step.length,
            dtype=model.dtype,
            load_in_4bit=self.packed,
        )
        wrapped = FastLanguageModel.get_peft_model(
            found,
            r=self.rank,
            lora_alpha=SCALE * self.rank,
            target_modules=sorted({path.rpartition(".")[2] for path in pairs}),
            use_gradient_checkpointing="unsloth" if self.recomputed else False,
        )
        _fill(wrapped.base_model.model, pairs, "lora_{part}.default.weight")
        return self.step.loop(wrapped, wrapped)

    def full(self) -> Prepared:
        """No LoRA: every weight trains, with torch.compile, from the base into which A and B are merged."""
        model, pairs = self._begin()
        with torch.no_grad():
            for path, (a, b) in pairs.items():
                model.get_submodule(path).weight.addmm_(b, a, alpha=SCALE)
        made = self.step.loop(model, torch.compile(model))
        return replace(made, answer=lambda: {FIRST: made.answer()[FIRST]})

    def _begin(self) -> tuple[transformers.PreTrainedModel, Pairs]:
        model = self.step.model()
        return model, matrices(model, 0, self.rank)


def same(reference: Plain, other: Plain) -> str:
    """The first loss and gradient norm within 2%, a few times what bf16 rounds them by, and the next losses, which say
    what was learnt, within 5%. Of whoever trains all weights, and learns something else, the first loss alone."""
    found = close(relative=0.02)(_beginning(reference, other), _beginning(other, other))
    if found or NEXT not in other:
        return found
    return close(relative=0.05)({NEXT: reference[NEXT]}, {NEXT: other[NEXT]})


def _beginning(answer: Plain, asked: Plain) -> Plain:
    return {name: answer[name][:1] for name in (FIRST, NORMS) if name in asked}


def _fill(model: nn.Module, pairs: Pairs, name: str, dtype: torch.dtype | None = None) -> None:
    """Give the parameters called `name` within each module the values of A and B, and `dtype`."""
    for path, (a, b) in pairs.items():
        for part, matrix in (("A", a), ("B", b)):
            parameter = model.get_parameter(f"{path}.{name.format(part=part)}")
            parameter.data = matrix.to(parameter.dtype if dtype is None else dtype)


def _to_bitsandbytes(model: nn.Module, paths: Pairs) -> None:
    """bitsandbytes' nf4 with double quantization in the places of these linear layers."""
    import bitsandbytes

    for path in paths:
        plain: Any = model.get_submodule(path)
        place, _, name = path.rpartition(".")
        with torch.device("meta"):
            packed = bitsandbytes.nn.Linear4bit(
                plain.in_features,
                plain.out_features,
                bias=False,
                compute_dtype=plain.weight.dtype,
                compress_statistics=True,
                quant_type="nf4",
            )
        packed.weight = bitsandbytes.nn.Params4bit(
            plain.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed
        )
        setattr(model.get_submodule(place), name, packed.to(plain.weight.device))
