"""What PyTorch keeps for the backward pass: every tensor autograd saves, each storage once.

Parameters and buffers are left out (they are counted as weights; counting them again gives 1.6 times too much for a
small model), and so are views of what was saved already. Checkpointed blocks show what they keep: their inputs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_LAYER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class SavedActivations:
    """Bytes saved for backward, and the same by the module that saved them first.

    Module paths have `*` for layer numbers; what is saved outside the model (by the loss) is under an empty path.
    """

    bytes: int
    tensors: int
    modules: dict[str, int] = field(default_factory=dict)

    def outside(self) -> int:
        """Bytes saved outside the model: by the loss."""
        return self.modules.get("", 0)


def saved_activations(model: nn.Module, forward: Callable[[], Tensor]) -> SavedActivations:
    """Run `forward` (which gives a loss) and count what it saves for the backward pass, which is not run.

    Gradients must be enabled. The model's training mode is the caller's choice, since dropout saves its masks.
    """
    owned = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, Tensor] = {}
    modules: dict[str, int] = defaultdict(int)
    with _watched(model) as path:

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            if key not in owned and key not in seen and storage.nbytes():
                # Held, so that its memory is not given to another tensor while we count.
                seen[key] = tensor
                modules[path()] += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = forward()
    del loss
    return SavedActivations(sum(modules.values()), len(seen), dict(modules))


@contextmanager
def _watched(model: nn.Module) -> Iterator[Callable[[], str]]:
    """A function that gives the path of the module that runs now, while the context is open."""
    stack: list[str] = []
    handles = []
    for name, module in model.named_modules():
        path = _LAYER.sub(".*", name) or "model"

        def enter(_module: nn.Module, _inputs: Any, path: str = path) -> None:
            stack.append(path)

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            stack.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield lambda: stack[-1] if stack else ""
    finally:
        for handle in handles:
            handle.remove()
