"""Runs that are killed in a backward pass: `python -m tests.train.killed FOLDER OPTIMIZER...`.

Each is a fork of this process, which itself computes nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from hayless.core.registry import configure
from hayless.train.trainer import Trainer
from tests import tiny
from tests.train import source

STEPS, KILLED = 8, 6
"""Updates of a whole run, and the one that is not finished."""
_OPTIONS = {"adamw8bit": {"least_elements": 100}, "paged": {"device_share": 0.5}}


def trainer(folder: Path, name: str) -> Trainer:
    """A run with an optimizer; weights are bf16, so that states with a dtype of their own show."""
    return source.trainer(
        folder,
        model=tiny.model("gpt2"),
        optimizer=configure(name, **_OPTIONS.get(name, {})),
        precision="bf16",
        clip_norm=None if name in ("lomo", "adalomo") else 1.0,
        steps=STEPS,
        checkpoint_every=4,
        log_every=1,
    )


def killed(trainer: Trainer) -> None:
    """Train, and die in a backward pass at a gradient of the first block: those of the second were there."""
    passes = 0

    def count(gradient: torch.Tensor) -> None:
        nonlocal passes
        passes += 1
        if passes == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)

    next(trainer.model.transformer.h[0].parameters()).register_hook(count)  # type: ignore[union-attr]
    trainer.run()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for optimizer in sys.argv[2:]:
        child = os.fork()
        if not child:
            killed(trainer(Path(sys.argv[1]) / optimizer, optimizer))
            os._exit(1)
        if os.WTERMSIG(os.waitpid(child, 0)[1]) != signal.SIGKILL:
            sys.exit(f"{optimizer} was not killed")
