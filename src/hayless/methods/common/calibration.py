"""Running calibration text through a model one block at a time, in bounded memory.

    stream = Stream(model, batches)
    for number, block in enumerate(stream.blocks):
        stream.observe(number, [(module, sink)])   # the inputs of modules, batch by batch
        …                                        # change the block
        stream.advance(number)                   # what comes out of it, changed, is what the next block reads

What is held is the input of one block for all tokens (on the CPU), and whatever the sinks keep of what they see: sums,
not inputs. So a block sees what the quantized (or pruned) blocks before it give, as in GPTQ (arXiv:2210.17323, section
3.3) and SparseGPT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.core.roles import Role
from hayless.model.anatomy import Anatomy

Sink = Callable[[tuple[Any, ...]], None]
"""Is given the positional inputs of a module, each time it runs."""


class Moments:
    """Sums over the inputs x (tokens, columns) of a weight: Σ x·xᵀ, Σ |x| and how many there were, in float32.

    The Hessian of ‖W·x − Ŵ·x‖² for each row of W is 2·Σ x·xᵀ; `norms` are ‖x‖₂ of each column.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self.gram = torch.zeros(columns, columns, device=device)
        self.absolute = torch.zeros(columns, device=device)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Take in inputs (…, columns)."""
        flat = x.reshape(-1, x.shape[-1]).float()
        self.gram.addmm_(flat.T, flat)
        self.absolute += flat.abs().sum(dim=0)
        self.tokens += len(flat)

    def scaled(self, by: Tensor) -> Moments:
        """The sums of inputs whose columns are multiplied by `by` (columns,)."""
        found = Moments(0, self.gram.device)
        found.gram, found.absolute, found.tokens = self.gram * by * by[:, None], self.absolute * by.abs(), self.tokens
        return found

    @property
    def norms(self) -> Tensor:
        """‖x‖₂ of each column, (columns,)."""
        return self.gram.diagonal().clamp(min=0).sqrt()


class Stream:
    """Calibration batches (B, S) of token ids on their way through the blocks of a decoder."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Tensor]) -> None:
        self.blocks: list[nn.Module] = list(Anatomy.of(model).blocks)
        with torch.no_grad(), evaluating(model):
            self._calls = _calls(model, self.blocks, batches)
            self._hidden = [_first_input(model, self.blocks[0], batch) for batch in batches]

    def observe(self, number: int, sinks: Sequence[tuple[nn.Module, Sink]]) -> None:
        """Run block `number` on every batch and give each module's inputs to its sinks."""
        handles = [module.register_forward_pre_hook(_giving(sink)) for module, sink in sinks]
        try:
            for _ in self._outputs(number):
                pass
        finally:
            for handle in handles:
                handle.remove()

    def advance(self, number: int) -> None:
        """Run block `number` on every batch; its outputs are the inputs from now on."""
        for place, output in enumerate(self._outputs(number)):
            self._hidden[place] = output.to("cpu", copy=True)

    @torch.no_grad()
    def _outputs(self, number: int) -> Iterator[Tensor]:
        block = self.blocks[number]
        device = next(block.parameters()).device
        with evaluating(block):
            for hidden in self._hidden:
                arguments, options = self._calls[hidden.shape[:2]][number]
                found = block(hidden.to(device), *arguments, **options)
                yield found[0] if isinstance(found, tuple) else found


def expert_inputs(module: nn.Module, arguments: tuple[Any, ...], role: Role) -> Iterator[tuple[int, Tensor]]:
    """(expert, what it reads) of a call of a stack of experts: routed tokens, or what `role` DOWN makes of them."""
    stack: Any = module
    hidden, chosen = arguments[0], arguments[1]
    gate_up = stack.gate_up_proj if role is Role.DOWN else None
    for expert in range(stack.num_experts):
        x = hidden[(chosen == expert).any(dim=-1)]
        if gate_up is not None:
            gate, up = F.linear(x, gate_up[expert]).chunk(2, dim=-1)
            x = stack.act_fn(gate) * up
        yield expert, x


@torch.no_grad()
def routed_tokens(
    model: PreTrainedModel, stacks: Sequence[nn.Module], batches: Sequence[Tensor]
) -> dict[nn.Module, Tensor]:
    """How many tokens of all batches each expert of each stack gets, (experts,), in the model as it is."""
    counts = {stack: torch.zeros(stack.num_experts, dtype=torch.int64) for stack in stacks}  # type: ignore[call-overload]

    def count(stack: nn.Module, arguments: tuple[Any, ...]) -> None:
        counts[stack] += torch.bincount(arguments[1].flatten().cpu(), minlength=len(counts[stack]))

    handles = [stack.register_forward_pre_hook(count) for stack in counts]
    try:
        with evaluating(model):
            for batch in batches:
                model.base_model(input_ids=batch.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def check_batches(batches: Sequence[Tensor], vocab_size: int, method: str) -> None:
    """RequestError where there is nothing to calibrate on, or token ids that the model does not have."""
    if not any(batch.numel() for batch in batches):
        raise RequestError(
            f"{method} is calibrated on text, and there is none.",
            hint="Give a recipe data (or calibration.path), or a Context with token batches.",
        )
    for batch in batches:
        if batch.ndim != 2 or batch.min() < 0 or batch.max() >= vocab_size:
            raise RequestError(
                f"A calibration batch of shape {tuple(batch.shape)} has ids from {int(batch.min())} to"
                f" {int(batch.max())}; {method} needs (rows, tokens) of ids below {vocab_size}.",
                hint="Use the model's own tokenizer.",
            )


def _calls(
    model: PreTrainedModel, blocks: list[nn.Module], batches: Sequence[Tensor]
) -> dict[torch.Size, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """What each block is called with beside its input, by the shape of a batch: masks and rotary tables."""
    found: dict[torch.Size, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
    for batch in batches:
        if batch.shape in found:
            continue
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(_module: nn.Module, arguments: Any, options: Any, seen: list[Any] = seen) -> None:
            seen.append((arguments[1:], {name: value for name, value in options.items() if name != "hidden_states"}))

        handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
        try:
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        found[batch.shape] = seen
    return found


class _Reached(Exception):
    """The first block was reached: nothing after it need run."""


def _first_input(model: PreTrainedModel, first: nn.Module, batch: Tensor) -> Tensor:
    """What the first block reads of a batch, (B, S, hidden), on the CPU."""
    caught: list[Tensor] = []

    def catch(_module: nn.Module, arguments: Any, options: Any) -> None:
        caught.append(arguments[0] if arguments else options["hidden_states"])
        raise _Reached

    handle = first.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model.base_model(input_ids=batch.to(model.device), use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return caught[0].to("cpu", copy=True)


def _giving(sink: Sink) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        sink(arguments)

    return hook


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """No dropout inside the block; modes are as before after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
