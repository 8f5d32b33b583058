"""The random generators a training step may draw from: seeded once, kept in checkpoints, put back exactly."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int) -> None:
    """Seed torch (all devices), Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def capture(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of every generator, as tensors and plain data. NumPy's is its global one."""
    version, python, next_gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(python, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
    }
    if device.type != "cpu":
        tensors["device"] = torch.get_device_module(device).get_rng_state()
    plain = {
        "python": {"version": version, "next_gauss": next_gauss},
        "numpy": {"name": name, "position": int(position), "has_gauss": int(has_gauss), "cached": float(cached)},
    }
    return tensors, plain


def restore(device: torch.device, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Put back what `capture` gave."""
    torch.set_rng_state(tensors["torch"])
    python, numpy = plain["python"], plain["numpy"]
    random.setstate((python["version"], tuple(tensors["python"].tolist()), python["next_gauss"]))
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    if device.type != "cpu" and "device" in tensors:
        torch.get_device_module(device).set_rng_state(tensors["device"])


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch use deterministic kernels only, while the context is open (an operation without one is an error)."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    # cuBLAS reads this when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
