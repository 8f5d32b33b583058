"""Trying the writer before long work: what comes of it must fit on the disk and come back as it was."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hayless.core.compose import predict
from hayless.core.errors import WorkError
from hayless.core.families import ledger_of
from hayless.core.method import MethodConfig
from hayless.core.units import format_bytes
from hayless.model import packed
from hayless.model.anatomy import dims_of_model
from hayless.model.build import unfilled_model
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import note, record

_VOCABULARY = 64


def try_writer(model: PreTrainedModel, config: MethodConfig, folder: Path | None) -> None:
    """Save a model of one layer as `model` will be after `config`, in `folder` (a temporary one if None), and load it.

    Its vocabulary is small; its other widths, names and dtypes are those of the model. WorkError where it does not come
    back to the bit, and where the disk has no room for the whole; and whatever saving and loading raise.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writer-", dir=folder) as place:
        ledger = predict(ledger_of(dims_of_model(model)), [*record(model), config])
        needed, free = sum(ledger.file_bytes().values()), shutil.disk_usage(place).free
        if needed > free:
            raise WorkError(
                f"The model will take {format_bytes(needed)}, and {place} has {format_bytes(free)} left.",
                hint="Free disk space before the work begins.",
            )
        small = _one_layer(model, config)
        target = Path(place) / "model"
        save_model(small, target)
        after = load_model(target).state_dict()
        for name, tensor in small.state_dict().items():
            if not torch.equal(_bits(tensor), _bits(after[name])):
                raise WorkError(
                    f"The writer was tried on a model of one layer, and {name} did not come back as it was."
                )


@torch.no_grad()
def _one_layer(model: PreTrainedModel, config: MethodConfig) -> PreTrainedModel:
    """The first layer of a model's structure after `config`, with any values."""
    shape = copy.deepcopy(model.config)
    shape.num_hidden_layers = 1
    if getattr(shape, "layer_types", None):
        shape.layer_types = shape.layer_types[:1]
    shape.vocab_size = min(shape.vocab_size, _VOCABULARY)
    if (shape.pad_token_id or 0) >= shape.vocab_size:
        shape.pad_token_id = None
    small = unfilled_model(shape, model.dtype)
    note(small, config)
    packed.restore(small)
    for tensor in small.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.linspace(0.5, 1, max(1, tensor.numel())).view(tensor.shape))
        else:
            # Small numbers, which are zeros of every width.
            tensor.copy_((torch.arange(tensor.numel()) * 7 % 11 % 4).view(tensor.shape))
    return small


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
