"""Early exit for one text, without a cache: slow and obvious.

A token that leaves behind layer l has d = its state there. Its logits are head(norm(d)), and d stands for its state at
the entrance of every layer that it skips, so later tokens attend to keys and values made from d (CALM, section 3.3).
Here every layer's inputs of all tokens are kept, and a layer goes through all of them for each new one. Shapes: t
tokens, h hidden, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hayless.methods.decoding.early_exit.heads import Heads, shared
from hayless.model.anatomy import Anatomy
from hayless.train.blocks import Forward, wrapped


@torch.inference_mode()
def read(
    model: PreTrainedModel,
    tokens: Sequence[int],
    prompt: int,
    leaves: Callable[[int, Tensor, Tensor], bool],
    heads: Heads = shared,
) -> tuple[Tensor, list[int]]:
    """Logits (t, v) after each of the t tokens behind the first `prompt`, and the layers that each went through.

    `leaves` says whether a token leaves behind a number of layers, with its state (h,) there and the one before;
    `heads` what the head is shown then.
    """
    blocks = list(Anatomy.of(model).blocks)
    numbers = {block: number for number, block in enumerate(blocks, 1)}
    entered: dict[int, Tensor] = {}
    layers: list[int] = []

    def reading(block: nn.Module, forward: Forward) -> Forward:
        number = numbers[block]

        def run(x_1th: Tensor, *inputs: Any, **options: Any) -> Tensor:
            if layers:
                # Nothing of earlier tokens is taken from this pass, in which they did not leave.
                x_1th = torch.cat([entered[number], x_1th[:, -1:]], 1)
            entered[number] = x_1th
            if layers and layers[-1] < number:
                if number < len(blocks):
                    return x_1th
                return torch.cat([x_1th[:, :-1], heads(layers[-1], x_1th[0, -1:])[None]], 1)
            out_1th: Tensor = forward(x_1th, *inputs, **options)
            if layers and number < len(blocks) and leaves(number, out_1th[0, -1], x_1th[0, -1]):
                layers[-1] = number
            return out_1th

        return run

    def last_logits(end: int) -> Tensor:
        ids = torch.tensor([tokens[:end]], device=model.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, -1]
        return logits.float()

    found = []
    with wrapped(blocks, reading):
        last_logits(prompt)
        for end in range(prompt + 1, len(tokens) + 1):
            layers.append(len(blocks))
            found.append(last_logits(end))
    return torch.stack(found), layers
