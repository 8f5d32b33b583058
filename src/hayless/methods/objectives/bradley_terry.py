"""The loss of a reward model: −log σ(r_w − r_l) for each pair of a chosen and a rejected answer.

Bradley and Terry's model of choices (1952), as Ouyang et al. (2022, arXiv:2203.02155, equation 1) train it.
Shapes: b rows (2i chosen, 2i+1 rejected).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from hayless.core.errors import RequestError
from hayless.core.method import MethodConfig
from hayless.data.batches import Batch
from hayless.data.corpus import Kind
from hayless.measure.reward import scores
from hayless.train.slots import Loss


class Reward:
    """Trains a sequence classifier with one output (`model.task: reward`)."""

    unit = "pair"
    kind: Kind = "preference"

    def __init__(self, config: MethodConfig) -> None:
        """No option of `reward` changes the loss."""

    def units(self, batch: Batch) -> int:
        """Pairs. RequestError for an odd number of rows."""
        rows = batch.input_ids.shape[0]
        if rows % 2:
            raise RequestError(
                f"A batch of {rows} sequences is not made of pairs.",
                hint="reward needs preference data (a prompt, a chosen and a rejected answer).",
            )
        return rows // 2

    def loss(self, model: PreTrainedModel, batch: Batch) -> Loss:
        """The summed loss in nats, and `pairwise_accuracy` (a tie is one half). NotSupported without a score head."""
        scores_b = scores(model, batch)
        margins = scores_b[0::2] - scores_b[1::2]
        wins = (torch.sign(margins.detach()) + 1).sum() / 2
        return Loss(-F.logsigmoid(margins).sum(), {"pairwise_accuracy": wins})
