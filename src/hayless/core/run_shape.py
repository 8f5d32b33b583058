"""What a run of a model on paper (`hayless.core.forward`) depends on beside the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hayless.core.attention import Attention
from hayless.core.tape import Kept


@dataclass(frozen=True, slots=True)
class RunShape:
    """One run of a model: `batch` rows of `sequence` tokens.

    `arithmetic`: autocast's dtype, if any. `masked`: documents are packed, and kept apart by an explicit mask, or under
    `varlen` attention by their lengths.
    `checkpoint_every` n computes every n-th block again backward, of those only the first `checkpoint_blocks` if it is
    not 0; 0 none; `checkpoint_keeps` is what those keep; `offload`: what enters them lies in the host's memory.
    `loss_chunk`: tokens whose logits exist at once where it trains; 0 all of them.
    `fused_kernels`: norms, rotations and gates are one kernel each.
    `float8`: the linear layers of blocks multiply 8-bit floats.
    `logits`: positions at the end whose logits are computed; 0 all. `exits`: the states behind so many
    layers go through the head too, with a loss each.
    """

    batch: int
    sequence: int
    training: bool = True
    arithmetic: str | None = None
    attention: Attention = "sdpa"
    masked: bool = False
    checkpoint_every: int = 0
    checkpoint_blocks: int = 0
    checkpoint_keeps: Kept = "nothing"
    offload: bool = False
    loss_chunk: int = 0
    fused_kernels: bool = False
    float8: bool = False
    logits: int = 0
    exits: tuple[int, ...] = ()
    device: Literal["cuda", "cpu"] = "cuda"

    @property
    def tokens(self) -> int:
        """Tokens of the whole batch."""
        return self.batch * self.sequence

    def recomputes(self, block: int) -> bool:
        """Whether the block of this number is computed again backward."""
        every, first = self.checkpoint_every, self.checkpoint_blocks
        return every > 0 and block % every == 0 and not 0 < first <= block // every
