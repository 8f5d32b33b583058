"""What other tools say that a trial takes: accelerate's `estimate-memory`, and PyTorch's MemTracker on fake tensors.

Both run in a process of their own (`hayless.measure.process`). accelerate looks a model up on the hub; here its own
functions get the model of a config. MemTracker follows every tensor of one real update that computes nothing.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import transformers

from hayless.core.errors import NotSupported
from hayless.core.registry import configured
from hayless.measure.process import answer
from hayless.model.build import build_model, read_config
from hayless.model.transform import apply
from hayless.train.precision import arithmetic
from hayless.train.trial import Trial, batches, ready

_UPDATES = 2
"""The first one makes the optimizer's state."""


def accelerate_bytes(config: dict[str, Any], dtype: str) -> dict[str, int]:
    """`loading` and `training` (with Adam) by `accelerate estimate-memory` at float32 or 16 bits, in bytes."""
    from accelerate import init_empty_weights
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    with init_empty_weights():
        model = transformers.AutoModel.from_config(read_config(config), dtype=torch.float32)
    size, _ = calculate_maximum_sizes(model)
    wide = dtype == "float32"
    training = estimate_training_usage(size, "float32" if wide else "float16")
    return {"loading": int(size if wide else size / 2), "training": int(max(training.values()))}


def tracked_bytes(trial: Trial) -> int:
    """The peak of a trial by MemTracker, in bytes. NotSupported where an operation needs values."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    pieces = batches(trial)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.device(trial.device):
            model = build_model(trial.config, dtype=trial.dtype, device=trial.device, draw_there=True)
            apply(model, configured(trial.transforms))
            with ready(model, trial, pieces) as work:
                tracker = MemTracker()
                tracker.track_external(model, *work.updater.weights().values())
                with tracker:
                    for _ in range(_UPDATES):
                        work.updater.begin(1.0, None, len(pieces))
                        for piece in pieces:
                            with arithmetic(work.settings.precision, model.device):
                                loss = work.objective.loss(model, piece.to(model.device))
                            work.updater.backward(loss.total)
                            del loss
                            tracker.reset_mod_stats()
                        work.updater.step(work.updater.norm())
                peaks = tracker.get_tracker_snapshot("peak")
    except RuntimeError as error:
        raise NotSupported(f"MemTracker cannot follow this trial: {str(error).splitlines()[0]}") from error
    return sum(int(held["Total"]) for held in peaks.values())


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """The fresh process's side: `accelerate_bytes` of `models`, or `tracked_bytes` of `trial`."""
    if "trial" in request:
        return {"peak_bytes": tracked_bytes(Trial.model_validate(request["trial"]))}
    with contextlib.suppress(ImportError):
        return {"models": [accelerate_bytes(**model) for model in request["models"]]}
    raise NotSupported("accelerate is not installed.")


if __name__ == "__main__":
    answer(_answer)
