"""What is run to verify predictions: each case a line, what is predicted for it and what a fresh process is asked.

A new method is a line of `GPU` with its name in the way to train (`nf4+lora`, `lomo`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hayless.core.compose import compose
from hayless.core.compose import predict as rewrite
from hayless.core.cost import TrainShape
from hayless.core.devices import Device
from hayless.core.families import dims_of, ledger_of
from hayless.core.method import MethodConfig, Part
from hayless.core.registry import method_of
from hayless.plan.memory import Plan, methods_named, plan_decoding, variant
from hayless.plan.presets import config_of

Kind = Literal["cuda", "cpu"]

_SMALL: Mapping[str, dict[str, Any]] = {
    "small-llama": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
        "max_position_embeddings": 2048,
    },
    "small-gpt2": {
        "model_type": "gpt2",
        "n_embd": 256,
        "n_layer": 6,
        "n_head": 8,
        "n_positions": 1024,
        "vocab_size": 8192,
    },
    "small-opt": {
        "model_type": "opt",
        "hidden_size": 256,
        "ffn_dim": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "vocab_size": 8192,
        "max_position_embeddings": 1024,
    },
}
"""Shapes that a CPU trains in seconds."""


@dataclass(frozen=True, slots=True)
class TrainCase:
    """Training `model` (a preset or a small shape) in a `way`, as `hayless plan --compare` names it.

    `batch` rows at once, `accumulation` times an update, each of `documents` documents. `clips`: gradients are clipped
    by their norm, for which those that move weights in the backward pass take a second one. `timed`: its updates are
    timed, alone on the device. `tracked`: PyTorch's MemTracker is asked too.
    """

    model: str
    way: str
    batch: int
    sequence: int
    precision: str = "bf16"
    accumulation: int = 1
    documents: int = 1
    clips: bool = True
    timed: bool = False
    tracked: bool = False

    @property
    def name(self) -> str:
        """What it is, in words that differ from every other case's."""
        extra = [f"{self.documents} documents a row"] * (self.documents > 1) + ["not clipped"] * (not self.clips)
        rows = f"{self.accumulation} × {self.batch}" if self.accumulation > 1 else str(self.batch)
        return ", ".join([f"{self.model} {self.way}", self.precision, f"{rows} × {self.sequence}", *extra])

    @property
    def fused(self) -> bool:
        """Whether weights move in the backward pass, which no gradient outlasts."""
        optimizers = [each for each in methods_named(self.way) if method_of(each).part is Part.OPTIMIZER]
        return any(method_of(each).predict_training(TrainShape(1, 1), each).fused for each in optimizers)

    def predicted(self, on: Device, kind: Kind) -> Plan:
        """Its plan on a device."""
        shape = TrainShape(
            self.batch,
            self.sequence,
            accumulation=self.accumulation,
            precision=self.precision,
            clips=self.clips,
            masked=self.documents > 1,
            device=kind,
        )
        dims = dims_of(config(self.model)).with_dtype(_DTYPES[kind])
        return variant(self.way, dims, [], shape, on, decode=False)

    def asked(self, device: str, kind: Kind, seconds: float) -> dict[str, Any]:
        """What `hayless.train.trial` is asked."""
        methods = methods_named(self.way)
        optimizers = _of(methods, Part.OPTIMIZER)
        return {
            "config": config(self.model),
            "dtype": _DTYPES[kind],
            "device": device,
            "settings": {
                "steps": 1,
                "batch_size": self.batch * self.accumulation,
                "micro_batch_size": self.batch,
                "sequence_length": self.sequence,
                "precision": self.precision,
                **({} if self.clips else {"clip_norm": None}),
            },
            "transforms": _of(methods, Part.TRANSFORM),
            "memory": _of(methods, Part.MEMORY),
            "documents": self.documents,
            "seconds": seconds if self.timed else 0.0,
            **({"optimizer": optimizers[-1]} if optimizers else {}),
        }


@dataclass(frozen=True, slots=True)
class DecodeCase:
    """Decoding `tokens` tokens after prompts of `prompt` tokens, `batch` side by side, in 16 bits (32 on CPUs), or with
    weights that `way` packs."""

    model: str
    batch: int
    prompt: int
    tokens: int = 64
    way: str = ""

    @property
    def name(self) -> str:
        """What it is."""
        model = " ".join(filter(None, (self.model, self.way)))
        return f"{model} decoding, {self.batch} × {self.prompt} + {self.tokens}"

    def predicted(self, on: Device, kind: Kind) -> Plan:
        """Its plan on a device, at the last token."""
        dims = dims_of(config(self.model)).with_dtype(_DTYPES[kind])
        ledger = rewrite(ledger_of(dims), compose(self._methods))
        return plan_decoding(self.name, ledger, self.batch, self.prompt + self.tokens, on, kind)

    def asked(self, device: str, kind: Kind, source: str) -> dict[str, Any]:
        """What `hayless.measure.bench` is asked; `source` is a config.json."""
        decode = {"batch_size": self.batch, "prompt_tokens": self.prompt, "tokens": self.tokens, "repeats": 3}
        transforms = _of(self._methods, Part.TRANSFORM)
        asked = {"source": source, "random": True, "device": device, "dtype": _DTYPES[kind], "decode": decode}
        return {**asked, "transforms": transforms}

    @property
    def _methods(self) -> list[MethodConfig]:
        return methods_named(self.way) if self.way else []


Case = TrainCase | DecodeCase

_DTYPES: Mapping[Kind, str] = {"cuda": "bfloat16", "cpu": "float32"}
"""The dtype of weights as a case starts with them."""
_QUICK: Mapping[Kind, int] = {"cuda": 6, "cpu": 3}
"""Every so-manieth case is run where it must be quick."""


def config(model: str) -> dict[str, Any]:
    """The config of a case's model."""
    return dict(_SMALL[model]) if model in _SMALL else config_of(model)


def cases(kind: Kind, *, quick: bool) -> tuple[Case, ...]:
    """The grid for a kind of device, or a few of its cases."""
    found = CPU if kind == "cpu" else GPU
    return found[:: _QUICK[kind]] if quick else found


def _of(methods: list[MethodConfig], part: Part) -> list[dict[str, Any]]:
    return [config.model_dump(mode="json") for config in methods if method_of(config).part is part]


GPU: tuple[Case, ...] = (
    TrainCase("llama-1b", "full", 1, 512, "master", timed=True),
    TrainCase("llama-1b", "full", 4, 1024, timed=True, tracked=True),
    TrainCase("llama-1b", "full+checkpointing", 4, 2048, "master", timed=True),
    TrainCase("llama-1b", "full+checkpointing", 2, 4096, tracked=True),
    TrainCase("llama-1b", "sgd", 2, 2048, timed=True, tracked=True),
    TrainCase("llama-1b", "full", 1, 1024, "fp32"),
    TrainCase("llama-1b", "full", 2, 1024, "autocast", timed=True, tracked=True),
    TrainCase("llama-1b", "full", 1, 1024, "fp16"),
    TrainCase("llama-1b", "lora", 4, 2048, timed=True),
    TrainCase("llama-1b", "lora", 2, 1024, "master"),
    TrainCase("llama-1b", "lora+checkpointing", 1, 16384, timed=True),
    TrainCase("llama-1b", "sgd+checkpointing", 1, 16384),
    TrainCase("llama-1b", "full", 1, 1024, accumulation=4, timed=True),
    TrainCase("llama-1b", "full", 2, 2048, "master", documents=4),
    TrainCase("llama-3b", "lora", 2, 2048, timed=True),
    TrainCase("llama-3b", "sgd", 1, 1024, timed=True),
    TrainCase("llama-3b", "full+checkpointing", 1, 4096, timed=True),
    TrainCase("llama-3b", "lora+checkpointing", 1, 16384),
    TrainCase("llama-3b", "full+checkpointing", 1, 2048, "master"),
    TrainCase("llama-7b", "lora", 1, 1024, timed=True),
    TrainCase("llama-7b", "lora+checkpointing", 4, 2048, timed=True),
    TrainCase("llama-7b", "lora+checkpointing", 1, 16384),
    TrainCase("llama-7b", "sgd+checkpointing", 1, 2048, timed=True),
    TrainCase("llama-7b", "lora(rank=64)", 1, 512, "master"),
    TrainCase("llama-7b", "lomo", 8, 512, clips=False, timed=True),
    TrainCase("llama-7b", "lomo+checkpointing", 8, 512, clips=False, timed=True),
    TrainCase("llama-7b", "lomo+checkpointing", 1, 512, timed=True),
    TrainCase("llama-7b", "adalomo+checkpointing", 1, 512, clips=False, timed=True),
    TrainCase("llama-1b", "lomo", 2, 2048, timed=True),
    TrainCase("llama-1b", "adalomo", 2, 1024, "master", clips=False),
    TrainCase("llama-1b", "paged", 2, 1024, "master"),
    TrainCase("llama-1b", "paged(device_share=0.5)", 2, 1024),
    TrainCase("llama-1b", "adamw8bit", 2, 1024, timed=True),
    TrainCase("llama-1b", "adafactor", 2, 1024, timed=True),
    TrainCase("llama-1b", "nf4+lora", 4, 2048, timed=True),
    TrainCase("llama-7b", "nf4+lora", 1, 1024, timed=True),
    TrainCase("llama-7b", "qlora+checkpointing", 4, 2048, timed=True),
    TrainCase("llama-1b", "full+chunked_loss", 4, 2048, timed=True),
    TrainCase("llama-1b", "full+fused_kernels+chunked_loss", 4, 2048, timed=True),
    TrainCase("llama-1b", "full+checkpointing(keep=attention)+chunked_loss", 4, 2048, timed=True),
    TrainCase("llama-1b", "full+checkpointing(keep=products)+chunked_loss", 4, 2048, timed=True),
    TrainCase("llama-1b", "lora+checkpointing+offload+chunked_loss", 4, 2048, timed=True),
    TrainCase("llama-7b", "lora+checkpointing+offload", 4, 2048, timed=True),
    TrainCase("llama-1b", "full+float8_linears", 4, 2048, timed=True),
    TrainCase("gpt2", "full", 8, 1024, "master", timed=True, tracked=True),
    TrainCase("gpt2", "full", 4, 1024, "fp32", timed=True),
    TrainCase("gpt2", "lora", 8, 512, timed=True),
    TrainCase("gpt2-medium", "full", 4, 1024, timed=True),
    TrainCase("gpt2-large", "full", 2, 1024, "autocast"),
    TrainCase("gpt2-xl", "full+checkpointing", 2, 1024, timed=True),
    TrainCase("gpt2-xl", "sgd", 1, 1024),
    TrainCase("gpt2-xl", "lora", 4, 1024, timed=True),
    TrainCase("opt-125m", "full", 8, 512, "fp32", timed=True),
    TrainCase("opt-350m", "full", 4, 1024),
    TrainCase("opt-1.3b", "full", 1, 2048, "master", timed=True),
    TrainCase("opt-1.3b", "lora", 4, 1024, timed=True),
    TrainCase("opt-2.7b", "sgd+checkpointing", 2, 2048),
    TrainCase("opt-6.7b", "lora", 1, 2048, timed=True),
    TrainCase("qwen2-0.5b", "full", 4, 1024, "master", timed=True, tracked=True),
    TrainCase("qwen2-0.5b", "full", 1, 8192, timed=True),
    TrainCase("qwen2-0.5b", "full", 4, 2048, documents=8),
    TrainCase("qwen2-0.5b", "sgd(momentum=0.9)", 2, 1024, "fp32"),
    TrainCase("qwen2-1.5b", "lora", 2, 4096, timed=True),
    TrainCase("qwen2-1.5b", "full+checkpointing", 4, 2048, timed=True),
    TrainCase("qwen2.5-3b", "lora+checkpointing", 1, 8192),
    TrainCase("qwen2.5-3b", "sgd", 1, 2048, timed=True),
    TrainCase("qwen2-7b", "lora+checkpointing", 1, 4096, timed=True),
    TrainCase("qwen2-7b", "lora+checkpointing(every=2)", 2, 1024),
    DecodeCase("llama-1b", 1, 448),
    DecodeCase("llama-1b", 16, 960),
    DecodeCase("llama-3b", 8, 1984),
    DecodeCase("llama-7b", 1, 448),
    DecodeCase("llama-3b", 1, 8128),
    DecodeCase("llama-7b", 16, 448),
    DecodeCase("qwen2-0.5b", 1, 448),
    DecodeCase("qwen2-1.5b", 4, 1984),
    DecodeCase("qwen2-7b", 1, 4032),
    DecodeCase("gpt2-xl", 1, 448),
    DecodeCase("opt-1.3b", 8, 960),
    DecodeCase("opt-6.7b", 1, 448),
    DecodeCase("llama-7b", 1, 448, way="int8"),
    DecodeCase("llama-7b", 1, 448, way="uniform(bits=4,group_size=64)"),
    DecodeCase("llama-7b", 1, 448, way="nf4"),
    DecodeCase("llama-7b", 16, 448, way="nf4"),
    DecodeCase("llama-1b", 1, 448, way="nf4"),
    DecodeCase("qwen2-7b", 1, 448, way="uniform(bits=8)"),
)
"""One GPU of 80 GB or more: widths of 0.1 to 7 billion parameters, vocabularies of 32,000 to 152,064."""

CPU: tuple[Case, ...] = (
    TrainCase("small-llama", "full", 8, 256, "fp32"),
    TrainCase("small-gpt2", "full", 8, 256, "fp32"),
    TrainCase("small-opt", "sgd", 8, 256, "fp32"),
    TrainCase("small-llama", "lora", 8, 256, "fp32"),
    TrainCase("small-llama", "full+checkpointing", 8, 512, "fp32"),
    TrainCase("small-llama", "full", 8, 256, "fp32", documents=4),
    TrainCase("small-llama", "full", 8, 256, "bf16"),
    TrainCase("small-gpt2", "lora+checkpointing", 8, 512, "fp32"),
    TrainCase("small-llama", "full", 8, 256, "autocast"),
    TrainCase("gpt2", "full", 2, 256, "fp32"),
    TrainCase("opt-125m", "full", 2, 256, "fp32"),
    TrainCase("qwen2-0.5b", "lora", 1, 256, "fp32"),
    TrainCase("gpt2", "lomo", 2, 256, "fp32", clips=False),
    DecodeCase("small-llama", 1, 448),
    DecodeCase("gpt2", 1, 448),
)
"""A CPU with 8 GB of memory: resident memory alone, and shapes of its own."""
