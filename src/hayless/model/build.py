"""Models from a config alone: with random weights, on no device, or waiting for weights to be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from hayless.core.errors import NotSupported, RequestError, bad_value, nearest
from hayless.core.families import FAMILIES, dims_of, labels_of
from hayless.model.anatomy import Anatomy

Task = Literal["causal", "reward"]
FLOATS = ("float32", "bfloat16", "float16")
_OLD_FIELDS = {
    "rope_theta",
    "rope_scaling",
    "rotary_pct",
    "rotary_emb_base",
    "torch_dtype",
    "num_labels",
    "transformers_version",
    "_name_or_path",
    "hayless",
    "quantization_config",
}
"""Fields that transformers still reads, or writes itself, though its config classes do not declare them."""


def build_model(
    config: Mapping[str, Any],
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    seed: int = 0,
    task: Task = "causal",
    draw_there: bool = False,
) -> PreTrainedModel:
    """A model of a config's shape with random weights, in evaluation mode.

    The same config, dtype, seed and versions give the same weights, whatever the device: they are drawn on the CPU.
    With `draw_there` they are drawn on the device, which is quick for large models and gives other weights.
    RequestError for fields that are missing, unknown or impossible.
    """
    shape = read_config(config, task)
    _check_fields(config)
    place = checked_device(device if draw_there else "cpu")
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), place:
        torch.manual_seed(seed)
        model = _from_config(shape, torch_dtype(dtype))
    _keep_wide(model)
    return (model if draw_there else model.to(checked_device(device))).eval()  # type: ignore[arg-type]


def empty_model(
    config: Mapping[str, Any], dtype: str | torch.dtype = "float32", *, task: Task = "causal"
) -> PreTrainedModel:
    """A model of a config's shape on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return _from_config(read_config(config, task), torch_dtype(dtype)).eval()


def unfilled_model(shape: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model on the CPU whose parameters hold what memory held; buffers, which no file has, are as they must be."""
    with no_init_weights():
        model = _from_config(shape, dtype)
    model.tie_weights()
    _keep_wide(model)
    return model.eval()


def read_config(config: Mapping[str, Any], task: Task = "causal") -> PretrainedConfig:
    """transformers' config of a mapping, with its `architectures` set to the class that it is for.

    RequestError for missing and impossible fields and for a task that the config's classifier does not do.
    NotSupported for a family without a table, and for quantized checkpoints and code from elsewhere.
    """
    dims_of(config)
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "an unnamed method")
        raise NotSupported(f"The weights are quantized by {method}; such checkpoints are not read here.")
    wanted = {**config}
    if task == "reward":
        _check_reward(config)
        wanted |= {"num_labels": 1, "id2label": None, "label2id": None}
    elif labels_of(config):
        raise RequestError("This is a reward model, not a language model.", hint='Load it with task="reward".')
    model_type = wanted.pop("model_type")
    try:
        shape: PretrainedConfig = AutoConfig.for_model(model_type, **wanted)
    except Exception as error:
        raise refused(error) from error
    shape.architectures = [auto_class(shape, task)._model_mapping[type(shape)].__name__]
    return shape


def auto_class(shape: PretrainedConfig, task: Task) -> Any:
    """The Auto class of transformers that builds this kind of model."""
    if task == "reward":
        return transformers.AutoModelForSequenceClassification
    if shape.model_type == "bert":
        return transformers.AutoModelForMaskedLM
    return transformers.AutoModelForSeq2SeqLM if shape.model_type == "t5" else transformers.AutoModelForCausalLM


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """torch's dtype of a name. RequestError for what weights are not kept in."""
    name = str(dtype).removeprefix("torch.")
    if name not in FLOATS:
        raise bad_value("dtype", name, allowed=", ".join(FLOATS))
    found: torch.dtype = getattr(torch, name)
    return found


def checked_device(device: str | torch.device) -> torch.device:
    """The device, once something was put there; `auto` is the first CUDA device where there is one, else the CPU.

    RequestError for one that torch does not have.
    """
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"device = {str(device)!r} is not there: {reason}", hint="Use cpu.") from None
    return found


def refused(error: Exception) -> RequestError:
    """transformers' refusal of a config, as an error of ours."""
    reason = " ".join(str(error).split())
    return RequestError(f"transformers refuses the config ({type(error).__name__}): {reason[:400]}")


def _check_fields(config: Mapping[str, Any]) -> None:
    """Refuse fields that transformers would carry along without a word, such as misspelt ones."""
    for name in config.keys() - _fields():
        near = nearest(name, _fields())
        raise RequestError(
            f"A {config['model_type']} config has no field {name!r}.",
            hint=f"Did you mean {near!r}?" if near else "Leave it out.",
        )


@cache
def _fields() -> frozenset[str]:
    """Names that the config of some covered model has. Models read fields of others too: Qwen3-MoE Llama's head_dim."""
    found = {"model_type", *_OLD_FIELDS}
    for model_type in (name for types in FAMILIES.values() for name in types):
        blank = AutoConfig.for_model(model_type)
        found |= {*blank.to_dict(), *blank.attribute_map}
    return frozenset(found)


def _keep_wide(model: PreTrainedModel) -> None:
    """Give each parameter the dtype that it has after a reload: T5 in float16 keeps some in float32."""
    for site in Anatomy.of(model).sites:
        parameter = site.module(model)._parameters[site.parameter]
        if parameter is not None and not site.row.tied_to:
            parameter.data = parameter.data.to(getattr(torch, site.row.dtype))


def _from_config(shape: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    task: Task = "reward" if labels_of(shape.to_dict()) else "causal"
    try:
        model: PreTrainedModel = auto_class(shape, task).from_config(shape, dtype=dtype)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise refused(error) from error
    model.config.architectures = [type(model).__name__]
    return model


def _check_reward(config: Mapping[str, Any]) -> None:
    family, labels = dims_of(config).family, labels_of(config)
    if family in ("bert", "t5"):
        raise NotSupported(f"Reward models are built from decoders; the {family} family is none.")
    if labels > 1:
        raise RequestError(f"This classifier has {labels} labels; a reward model has one.")
