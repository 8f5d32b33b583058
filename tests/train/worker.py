"""A run that tests kill: `python -m tests.train.worker FOLDER [saving|step]`.

With `saving` it stands still for a minute while the checkpoint of step 6 is being saved, with `step` in the middle of
step 11; a file of that name tells that it does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hayless.data.batches import Batches, one_pass
from hayless.train.metrics import Kind, MetricsLog
from hayless.train.trainer import Trainer
from tests import tiny
from tests.train import source

STEPS = 16


def make(folder: Path) -> Trainer:
    """GPT-2, because it has dropout; real batches, several epochs, micro-batches, validation, in `master`."""
    tokenizer, prepared = source.corpus(folder)
    return source.trainer(
        folder / "run",
        model=tiny.model("gpt2"),
        tokenizer=tokenizer,
        batches=Batches(prepared.train, sequence_length=32, batch_size=4, micro_batch_size=2),
        validation=list(one_pass(prepared.heldout, sequence_length=32, rows=4)),
        precision="master",
        sequence_length=32,
        steps=STEPS,
        micro_batch_size=2,
        checkpoint_every=3,
        validate_every=5,
        sample_every=4,
        prompts=["the horse"],
        sample_tokens=4,
        log_every=1,
    )


def _wait(folder: Path, mark: str) -> None:
    (folder / mark).touch()
    time.sleep(60)


def _stand_still_saving(folder: Path) -> None:
    rename = Path.rename

    def slow_rename(self: Path, target: Any) -> Path:
        if Path(target).name == "step-00000006":
            _wait(folder, "saving")
        return rename(self, target)

    Path.rename = slow_rename  # type: ignore[method-assign]


def _stand_still_in_step(folder: Path) -> None:
    write = MetricsLog.write

    def slow_write(self: MetricsLog, kind: Kind, step: int, fields: Mapping[str, Any]) -> None:
        write(self, kind, step, fields)
        if step == 11:
            _wait(folder, "step")

    MetricsLog.write = slow_write  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    if sys.argv[2:] == ["saving"]:
        _stand_still_saving(place)
    elif sys.argv[2:] == ["step"]:
        _stand_still_in_step(place)
    make(place).run()
