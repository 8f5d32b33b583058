"""Loading models and tokenizers: from a folder or the hub, checked to the last tensor.

A folder is one of four kinds. An ordinary Hugging Face folder is read by transformers, and what transformers would
only report (missing, unexpected or misshapen tensors, weights that should be tied and are not) is an error. A packed
one (`model_type: "hayless"`) is rebuilt method by method and filled by name, and so is one whose weights are packed in
another library's layout (`quantization_config`), where a method reads that. An adapter (PEFT's folder) is added to its
base. Pickles are never read and no code is ever taken from a model's folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hayless.core.errors import FileDamaged, RequestError
from hayless.core.families import labels_of, read_config
from hayless.core.foreign import is_foreign
from hayless.model import adapters, checksums, packed
from hayless.model.anatomy import dims_of_model
from hayless.model.auto import MODEL_TYPE
from hayless.model.build import Task, auto_class, build_model, checked_device, empty_model, refused, torch_dtype
from hayless.model.build import read_config as to_config
from hayless.model.source import fetch_config, local_folder
from hayless.model.tensors import listed, weight_files

__all__ = ["build_model", "check_tokenizer", "empty_model", "fetch_config", "load_model", "load_tokenizer", "task_of"]

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")

_OF_PRETRAINING = {
    "bert.pooler.dense.weight",
    "bert.pooler.dense.bias",
    "cls.seq_relationship.weight",
    "cls.seq_relationship.bias",
}
"""What published BERTs have for their second objective, whether one sentence follows another; left out here."""


def load_model(
    source: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    task: Task = "causal",
) -> PreTrainedModel:
    """The model in a folder or on the hub, in evaluation mode.

    `dtype` is that of the weights in memory, as stored if None; rotary frequencies stay in float32. `task="reward"`
    loads a model that scores a sequence; a language model then gets a new score head, the same each time, and loses its
    own. RequestError for a source that is not there or not such a model, FileDamaged for files that are not whole,
    NotSupported for families and checkpoints that are not covered.
    """
    folder = local_folder(source, revision)
    place = checked_device(device)
    wanted = torch_dtype(dtype) if dtype is not None else None
    checksums.verify(folder)
    if (folder / adapters.CONFIG).is_file():
        model = adapters.load(folder, lambda base: load_model(base, dtype=wanted, task=task))
    else:
        found = read_config(folder)
        if found.get("model_type") == MODEL_TYPE:
            model = packed.load(folder, found, wanted, task)
        elif is_foreign(found):
            model = packed.load_foreign(folder, found, wanted, task)
        else:
            model = _load_plain(folder, found, wanted, task)
    return model.to(place).eval()  # type: ignore[arg-type]


def task_of(source: str | Path, revision: str | None = None) -> Task:
    """What a folder or hub id was made for, by the head its config (an adapter's base's config) names."""
    folder = local_folder(source, revision)
    if (folder / adapters.CONFIG).is_file():
        folder = adapters.base_of(folder)
    found = read_config(folder)
    return "reward" if labels_of(found) else "causal"


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or on the hub; an adapter without one takes its base's.

    RequestError where there is none, FileDamaged where it cannot be read.
    """
    folder = local_folder(source, revision)
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        if (folder / adapters.CONFIG).is_file():
            return load_tokenizer(adapters.base_of(folder))
        raise RequestError(f"{folder} has no tokenizer ({', '.join(_VOCABULARIES)}).", hint="Give one: tokenizer=…")
    try:
        with _quiet():
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # The tokenizers library raises bare Exceptions for files it cannot read.
        reason = " ".join(str(error).split())[:300]
        raise FileDamaged(f"The tokenizer in {folder} cannot be read: {reason}", hint="Copy it again.") from error
    return found


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """RequestError where the tokenizer gives ids that the model has no embedding for, or has no entries at all."""
    ids = tokenizer.get_vocab().values()
    rows = dims_of_model(model).vocab_size
    if not ids:
        raise RequestError("The tokenizer has no entries.", hint="Give the tokenizer that the model was trained with.")
    if max(ids) >= rows:
        raise RequestError(
            f"The tokenizer does not match the model: its ids go up to {max(ids)}, the model has {rows} embeddings.",
            hint="Give the tokenizer that the model was trained with.",
        )


def _load_plain(folder: Path, found: dict[str, Any], dtype: torch.dtype | None, task: Task) -> PreTrainedModel:
    """An ordinary Hugging Face folder."""
    weight_files(folder)
    shape = to_config(found, task)
    shape.name_or_path = str(folder)
    new_head = task == "reward" and not labels_of(found)
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            model, info = auto_class(shape, task).from_pretrained(
                folder,
                config=shape,
                dtype=dtype or "auto",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (SafetensorError, OSError) as error:
        raise FileDamaged(f"{folder} cannot be read: {' '.join(str(error).split())[:300]}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise refused(error) from error
    info["unexpected_keys"] = set(info["unexpected_keys"]) - _OF_PRETRAINING
    _check_loaded(folder, info, new_head=new_head)
    _check_ties(folder, model)
    if new_head:
        _draw_score(model)
    model.config.architectures = [type(model).__name__]
    packed.restore(model)
    return model


def _check_loaded(folder: Path, info: dict[str, Any], *, new_head: bool) -> None:
    """FileDamaged where the files and the model do not hold the same tensors."""
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if new_head:
        missing.discard("score.weight")
        unexpected -= {"lm_head.weight", "embed_out.weight"}
    for what, names in (("lacks", missing), ("has, beside the model's, ", unexpected)):
        if names:
            raise FileDamaged(
                f"{folder} {what.strip()} {listed(names)}.", hint="config.json and weights must belong to one model."
            )
    misshapen = [f"{name} is {tuple(there)}, not {tuple(wanted)}" for name, there, wanted in info["mismatched_keys"]]
    if misshapen:
        raise FileDamaged(
            f"{folder} does not fit its config.json: {listed(misshapen, 3)}.",
            hint="config.json and weights must belong to one model.",
        )
    if info.get("error_msgs"):
        raise FileDamaged(f"{folder} cannot be read: {info['error_msgs'][0]}")


def _check_ties(folder: Path, model: PreTrainedModel) -> None:
    """FileDamaged where the config ties head and embedding, and the files hold two different tensors."""
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if head.weight is not embedding.weight:
        raise FileDamaged(
            f"{folder} says that head and embedding are one tensor (tie_word_embeddings), and holds two that differ.",
            hint="Set tie_word_embeddings to false in config.json to use both, or take the head out of the file.",
        )


def _draw_score(model: PreTrainedModel) -> None:
    """Small normal weights for a new score head, the same each time."""
    weight: torch.Tensor = model.score.weight  # type: ignore[union-attr, assignment]
    deviation = float(getattr(model.config, "initializer_range", 0.02))
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * deviation
    with torch.no_grad():
        weight.copy_(drawn)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' reports and progress bars: what matters in them is an error here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
