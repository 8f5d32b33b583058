"""Contenders that read a Hugging Face folder of 16-bit weights and pack the linear layers of its blocks to nf4.

Each load is looked at while it runs: how much anonymous memory of the host it holds at once. Pages of the files
themselves, which the system keeps as it likes, are not counted.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import Tensor

from hayless.core.registry import configure
from hayless.model.packing import PackedModule
from hayless.model.streaming import load_and_pack
from hayless.study.bench.gate import Answer
from hayless.study.bench.spec import Figure, Prepared

ANONYMOUS = "peak anonymous host memory"
SHARD_BYTES = 2 * 10**9
_CACHE = Path(__file__).resolve().parents[2] / ".cache"
_EVERY = 0.002
"""Seconds between two looks at memory."""


@dataclass(frozen=True)
class Loading:
    """Loads of `config`'s shape in bf16, random weights in shards of at most `shard_bytes`."""

    name: str
    config: Mapping[str, Any]
    device: str
    shard_bytes: int = SHARD_BYTES

    @property
    def folder(self) -> Path:
        """Where the files are: made once, and kept for the processes that follow until someone deletes them."""
        return _CACHE / self.name

    def make(self) -> None:
        """Write the folder, in a process of its own, unless it is there."""
        if not self.folder.is_dir():
            code = f"from parts.loading import write, Loading; write({self!r})"
            subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
        if self.device == "cuda":
            torch.zeros(1, device="cuda")

    def hayless(self) -> Prepared:
        """Weights are packed as they are read."""
        config = configure("nf4")

        def load() -> transformers.PreTrainedModel:
            return load_and_pack(self.folder, [config], device=self.device)[0]

        def matrix(module: Any) -> Tensor | None:
            return module.unpacked("weight") if isinstance(module, PackedModule) else None

        return _prepared(load, matrix)

    def transformers(self) -> Prepared:
        """transformers' own way to bitsandbytes' nf4."""
        from bitsandbytes.functional import dequantize_4bit
        from bitsandbytes.nn import Linear4bit

        quantized = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )

        def load() -> transformers.PreTrainedModel:
            return transformers.AutoModelForCausalLM.from_pretrained(
                self.folder, quantization_config=quantized, dtype=torch.bfloat16, device_map={"": self.device}
            )

        def matrix(module: Any) -> Tensor | None:
            if not isinstance(module, Linear4bit):
                return None
            return dequantize_4bit(module.weight.data, module.weight.quant_state)

        return _prepared(load, matrix)


def write(loading: Loading) -> None:
    """Write a folder as transformers does."""
    torch.manual_seed(0)
    with torch.device(loading.device):
        config = transformers.AutoConfig.for_model(**loading.config)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    partial = loading.folder.with_suffix(".partial")
    model.save_pretrained(partial, max_shard_size=loading.shard_bytes)
    partial.rename(loading.folder)


def _prepared(load: Callable[[], transformers.PreTrainedModel], matrix: Callable[[Any], Tensor | None]) -> Prepared:
    watched = _Watched()

    def run() -> None:
        with watched:
            load()
        gc.collect()

    def answer() -> Answer:
        """How large the packed weights are: all, and those of the first row and the first column."""
        found = []
        for module in load().modules():
            weight = matrix(module)
            if weight is not None:
                found.append([part.float().abs().mean().item() for part in (weight, weight[0], weight[:, 0])])
        gc.collect()
        return {"mean magnitudes": torch.tensor(found)}

    return Prepared(run, answer, figures=lambda: [Figure(ANONYMOUS, "B", watched.most)])


class _Watched:
    """Notes while it is open how much anonymous memory this process holds beyond what it held before."""

    def __init__(self) -> None:
        self.most = 0
        self._process = psutil.Process()

    def __enter__(self) -> None:
        self._done = threading.Event()
        self._before = self._anonymous()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(_EVERY):
            self.most = max(self.most, self._anonymous() - self._before)

    def _anonymous(self) -> int:
        found = self._process.memory_info()
        return int(found.rss - found.shared)
