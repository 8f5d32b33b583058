"""Packing a model while its weights come: one weight after the other, so that it never exists unpacked.

A parameter is read (or drawn), put in its place on the device, packed there and forgotten. What comes out is, to the
bit, what loading the model and then applying the methods gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from hayless.core.compose import compose
from hayless.core.errors import FileDamaged, RequestError
from hayless.core.families import labels_of, ledger_of, read_config
from hayless.core.foreign import is_foreign
from hayless.core.ledger import Layout, Ledger, Row
from hayless.core.method import MethodConfig
from hayless.core.registry import method_of
from hayless.model import adapters, build, checksums
from hayless.model.anatomy import dims_of_model
from hayless.model.auto import MODEL_TYPE
from hayless.model.build import Task, checked_device, torch_dtype
from hayless.model.checkpoint import HINT, Checkpoint
from hayless.model.load import load_model
from hayless.model.source import local_folder
from hayless.model.transform import Change, Context, Transform, apply, note

Source = Callable[[Row, int], Tensor]
"""Gives a row's parameter in one layer, as its module lays it out."""
_AHEAD = 3
"""Parameters that are read and brought to a GPU while the one before them is packed."""


class OneByOne(Protocol):
    """Packs the weights of some rows, each by itself, in any order."""

    rows: Sequence[Row]

    def pack(self, row: Row, path: str, module: nn.Module) -> None:
        """Pack the parameter of `row` in `module`, which lies at `path`. RequestError where it is not finite."""
        ...

    def change(self) -> Change:
        """What was done."""
        ...


class PackingTransform(Transform, Protocol):
    """A transform that packs each weight by itself."""

    def one_by_one(self, ledger: Ledger, config: Any) -> OneByOne:
        """The packing of a model with this ledger. RequestError for targets that it does not have."""
        ...


def packs_one_by_one(config: MethodConfig) -> bool:
    """Whether a transform packs each weight by itself, and needs nothing but these."""
    method = method_of(config)
    return hasattr(method.load(), "one_by_one") and not method.needed(config)


def load_and_pack(
    source: str | Path,
    configs: Sequence[MethodConfig],
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    task: Task = "causal",
    context: Context | None = None,
) -> tuple[PreTrainedModel, list[Change]]:
    """What `load_model` and then `apply` give, to the bit; weights are packed on `device` as they are read.

    A model that has had methods already, an adapter, and a language model that is given a score head are loaded whole
    first; so is any model where one of `configs` looks at more than one weight at a time, or whose files call weights
    otherwise than transformers writes them today. Raises what the two raise.
    """
    folder = local_folder(source, revision)
    context, ordered = context or Context(), compose(configs)
    if ordered and all(map(packs_one_by_one, ordered)) and _is_plain(folder, task):
        wanted = torch_dtype(dtype) if dtype is not None else None
        streamed = _streamed(folder, ordered, wanted, checked_device(device), task, context)
        if streamed is not None:
            return streamed
    model = load_model(source, dtype=dtype, device=device, revision=revision, task=task)
    return model, apply(model, ordered, context)


def build_and_pack(
    config: dict[str, Any],
    configs: Sequence[MethodConfig],
    *,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
    seed: int = 0,
    context: Context | None = None,
) -> tuple[PreTrainedModel, list[Change]]:
    """A model of a config's shape, its weights drawn on `device` and packed one by one: for shapes that do not fit.

    RequestError for a method that looks at more than one weight at a time, and as in `build_model`.
    """
    ordered, place = compose(configs), checked_device(device)
    for method in ordered:
        if not packs_one_by_one(method):
            raise RequestError(f"{method.method} does not pack each weight by itself.", hint="Build the model whole.")
    model = build.unfilled_model(build.read_config(config), torch_dtype(dtype))
    deviation = float(getattr(model.config, "initializer_range", 0.02))
    generator = torch.Generator(place).manual_seed(seed)

    def draw(row: Row, layer: int) -> Tensor:
        if row.layout is Layout.VECTOR:
            return torch.full(row.shape, float(row.parameter == "weight"), device=place)
        drawn = torch.empty(row.shape, dtype=getattr(torch, row.dtype), device=place)
        return drawn.normal_(0, deviation, generator=generator)

    return model, _filled(model, ordered, draw, place, context or Context(), ahead=0)


def _streamed(
    folder: Path,
    configs: Sequence[MethodConfig],
    dtype: torch.dtype | None,
    place: torch.device,
    task: Task,
    context: Context,
) -> tuple[PreTrainedModel, list[Change]] | None:
    """A plain folder's model, packed as it is read; None where the names in its files are not what is expected."""
    found = read_config(folder)
    shape = build.read_config(found, task)
    shape.name_or_path = str(folder)
    with Checkpoint(folder) as files:
        named = found.get("dtype") or found.get("torch_dtype")
        model = build.unfilled_model(shape, dtype or (torch_dtype(named) if named else files.dtype))
        files.prefix = f"{model.base_model_prefix}."
        ignored = model._keys_to_ignore_on_load_unexpected or ()
        if not files.are_of(ledger_of(dims_of_model(model)), ignored):
            return None
        checksums.verify(folder)
        changes = _filled(model, configs, files.parameter, place, context, ahead=_AHEAD if place.type == "cuda" else 0)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, changes


def _filled(
    model: PreTrainedModel,
    configs: Sequence[MethodConfig],
    source: Source,
    place: torch.device,
    context: Context,
    *,
    ahead: int,
) -> list[Change]:
    """Fill every parameter from `source`, and pack those that a method wants; the model ends on `place`. `ahead`: so
    many parameters are on their way at once, in threads that ask `source` in any order."""
    ledger = ledger_of(dims_of_model(model))
    packers: list[OneByOne] = []
    after = ledger
    for config in configs:
        packers.append(method_of(config).load().one_by_one(after, config))
        after = method_of(config).predict(after, config)
    by_row = {(row.module, row.parameter): packer for packer in packers for row in packer.rows}
    own = [row for row in ledger.rows if not row.tied_to]
    user = torch.cuda.current_stream(place) if place.type == "cuda" else None
    calls = [partial(_brought, source, row, layer, place, user) for row in own for layer in row.layers or (0,)]
    with torch.no_grad(), closing(_in_order(calls, ahead)) as tensors:
        for number, row in enumerate(own):
            context.progress("weights", number, len(own))
            packer = by_row.get((row.module, row.parameter))
            for layer in row.layers or (0,):
                path = row.module.replace("{layer}", str(layer))
                module = model.get_submodule(path)
                _put(module, row.parameter, next(tensors), f"{path}.{row.parameter}", place)
                if packer is not None:
                    packer.pack(row, path, module)
        model.to(place)  # type: ignore[arg-type]
    context.progress("weights", len(own), len(own))
    for config in configs:
        note(model, config)
    return [packer.change() for packer in packers]


def _brought(source: Source, row: Row, layer: int, place: torch.device, user: Any) -> Tensor:
    """A parameter on its device, for use on the stream `user` there. What lies in a file that is mapped into memory
    crosses through pinned memory, which several threads fill at once."""
    found = source(row, layer)
    if user is None or found.is_cuda:
        return found.to(place)
    with torch.cuda.stream(torch.cuda.Stream(place)):
        there = found.pin_memory().to(place)
        there.record_stream(user)
    return there


def _in_order(calls: Sequence[Callable[[], Tensor]], ahead: int) -> Generator[Tensor, None, None]:
    """What the calls give, while up to `ahead` of those that follow are made in threads."""
    if not ahead:
        yield from (call() for call in calls)
        return
    with ThreadPoolExecutor(ahead) as pool:
        waiting = deque(pool.submit(call) for call in calls[:ahead])
        try:
            for call in (*calls[ahead:], *(None for _ in calls[:ahead])):
                if call is not None:
                    waiting.append(pool.submit(call))
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _put(module: nn.Module, name: str, tensor: Tensor, full_name: str, place: torch.device) -> None:
    held = getattr(module, name)
    if held.shape != tensor.shape:
        raise FileDamaged(f"{full_name} is {tuple(tensor.shape)}, and {tuple(held.shape)} is needed.", hint=HINT)
    held.data = tensor.to(place, held.dtype)


def _is_plain(folder: Path, task: Task) -> bool:
    """Whether a folder holds a model that has had no methods, with the head that is wanted."""
    if (folder / adapters.CONFIG).is_file():
        return False
    found = read_config(folder)
    changed = found.get("model_type") == MODEL_TYPE or is_foreign(found) or found.get("hayless") is not None
    return not changed and not (task == "reward" and not labels_of(found))
