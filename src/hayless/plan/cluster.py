"""Training on many GPUs, on paper: how a model and a batch are split, what that sends, and how long an update takes.

Nothing here is measured, unless `hayless.plan.cluster_tables` compares it with a published run. The formulas:

- Data parallelism and ZeRO (Rajbhandari et al., 2020, arXiv:1910.02054): of d ranks each sends (d−1)/d of the gradients
  twice (a reduce-scatter and a gather); stage 3 gathers the weights for the forward and for the backward pass instead.
- Tensor parallelism (Narayanan et al., 2021, arXiv:2104.04473, section 3.2): 2 sums of a layer's output over t ranks
  forward and 2 backward, each sending 2·(t−1)/t of it, and 2 more where the layer is computed again. What lies between
  them is split along the sequence (Korthikanti et al., 2022, arXiv:2205.05198), so that activations are split by t.
- Pipelines (the same, section 2.2): p stages stand still for (p−1)/m of the time that m micro-batches take. The first
  stage keeps p micro-batches of its share of the layers (one forward, one backward).
- A ring over n ranks sends (n−1)/n of the bytes to gather or to reduce-scatter.

Traffic of data parallelism is hidden behind the pass it belongs to, as far as that is long enough; traffic of tensors
and between stages is not hidden. Latency, uneven stages other than by whole layers, and stragglers are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from hayless.core.cost import Bytes, Cost, TrainShape, training_cost, weight_bytes
from hayless.core.flops import attention_flops, backward_flops, forward_flops
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.core.registry import configure, method_of
from hayless.core.units import format_bytes
from hayless.plan.links import Cluster
from hayless.plan.memory import needed
from hayless.plan.table import whole
from hayless.plan.zero import STAGES

LARGEST_MICRO_BATCH = 64
"""Rows beyond which a GPU computes no faster."""


@dataclass(frozen=True, slots=True)
class Split:
    """How many ranks split the data, each tensor and the layers; ZeRO's `stage` (0: every data rank holds everything).

    `recompute`: the share of the blocks' forward arithmetic that is done again backward (1: checkpointing).
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    stage: int = 0
    micro_batch: int = 1
    recompute: float = 0.0

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.data * self.tensor * self.pipeline

    @property
    def name(self) -> str:
        """`data 8 × tensor 2, stage 3`."""
        parts = [f"{kind} {getattr(self, kind)}" for kind in ("data", "tensor", "pipeline") if getattr(self, kind) > 1]
        return (" × ".join(parts) or "one GPU") + (f", stage {self.stage}" if self.stage else "")


@dataclass(frozen=True, eq=False)
class Job:
    """A model that is trained by updates of `batch` rows of `sequence` tokens, all ranks together.

    `reduced_bytes`: bytes of an element of the gradients that are summed. `narrow`: how many times faster than 16 bits
    the matrices (not attention) are multiplied, 1 or, in 8-bit floats, 2.
    """

    ledger: Ledger
    batch: int
    sequence: int
    precision: str = "master"
    optimizer: MethodConfig = field(default_factory=lambda: configure("adamw"))
    reduced_bytes: int = 2
    narrow: float = 1.0

    def __post_init__(self) -> None:
        whole("batch", self.batch)
        whole("sequence", self.sequence)

    def shape(self, micro_batch: int, again: bool) -> TrainShape:
        """One rank's micro-batches, with or without checkpointing."""
        shape = TrainShape(micro_batch, self.sequence, accumulation=2, precision=self.precision)
        for config in (configure("lm"), self.optimizer):
            shape = method_of(config).predict_training(shape, config)
        return replace(shape, checkpoint_every=int(again))

    @property
    def flops(self) -> float:
        """Arithmetic of an update's forward and backward passes, nothing computed again."""
        return self.batch * sum(_passes(self, 1)[:2])


@dataclass(frozen=True, slots=True)
class Prediction:
    """An update by `split`: bytes that a rank holds at the peak and sends, and seconds by what takes them.

    `sent` has `gradients`, `weights` (gathered), `tensors` (sums between their parts) and `stages` (activations and
    their gradients). Of the seconds `compute` is arithmetic, `bubble` waiting for other stages, `exposed` traffic that
    nothing hides, `update` moving the weights. `efficiency`: the share of what all GPUs could compute in that time that
    the model needs, nothing computed again.
    """

    split: Split
    held: Bytes
    sent: dict[str, float]
    seconds: dict[str, float]
    efficiency: float
    tokens: int

    @property
    def step_seconds(self) -> float:
        """Of an update."""
        return sum(self.seconds.values())

    @property
    def rate(self) -> float:
        """Tokens a second of all GPUs together."""
        return self.tokens / self.step_seconds

    @property
    def needed_bytes(self) -> int:
        """Bytes a rank needs, allowances included."""
        return needed(self.held)["total"]


def predict(job: Job, split: Split, cluster: Cluster) -> Prediction:
    """An update of `job` by `split` on `cluster`. RequestError for numbers below 1."""
    for name in ("data", "tensor", "pipeline", "micro_batch"):
        whole(name, getattr(split, name))
    d, t, p = split.data, split.tensor, split.pipeline
    micros = -(-job.batch // (d * split.micro_batch))
    layers = _layers(job, split)
    speed = cluster.flops_per_second("bfloat16")
    # The stage with most layers is the one that the others wait for.
    share = layers / job.ledger.dims.num_layers / t
    forward, backward, again = (share * flops / speed for flops in _passes(job, split.micro_batch))
    backward += split.recompute * again
    output = 2.0 * split.micro_batch * job.sequence * job.ledger.dims.hidden_size
    tensors = layers * (4 + 2 * split.recompute) * 2 * (t - 1) / t * output
    stages = 2 * output / t if p > 1 else 0.0
    unhidden = tensors / cluster.bytes_per_second(t, 1) + stages / cluster.bytes_per_second(2, d * t)
    sent = {"gradients": 0.0, "weights": 0.0, "tensors": micros * tensors, "stages": micros * stages}
    late = 0.0
    for way in _data_traffic(job, split, micros):
        behind = forward if way.behind == "forward" else backward
        late += way.times * max(0.0, (way.gradients + way.weights) / cluster.bytes_per_second(d, t) - behind)
        sent["gradients"] += way.times * way.gradients
        sent["weights"] += way.times * way.weights
    cost = _cost(job, split.micro_batch, split.recompute > 0)
    states = t * p * (d if split.stage else 1)
    seconds = {
        "compute": micros * (forward + backward),
        "bubble": (p - 1) * (forward + backward + unhidden),
        "exposed": micros * unhidden + late,
        "update": cost.work["step"].moved_bytes / states / cluster.device.bytes_per_second,
    }
    efficiency = job.flops / (split.ranks * speed * sum(seconds.values()))
    return Prediction(split, _held(job, split, cost, micros), sent, seconds, efficiency, job.batch * job.sequence)


def search(job: Job, cluster: Cluster) -> tuple[list[Prediction], dict[str, str]]:
    """Every way to split `job` over all GPUs, the fastest that fits of each, best first; and the others: why not."""
    fitting: list[Prediction] = []
    failing: dict[str, str] = {}
    for split in _splits(cluster.gpus):
        reason = _impossible(job, split)
        if reason:
            failing[split.name] = reason
            continue
        found = [predict(job, each, cluster) for each in _settings(job, split)]
        fits = [each for each in found if each.needed_bytes <= cluster.device.memory_bytes]
        if fits:
            fitting.append(max(fits, key=lambda each: each.rate))
        else:
            least = min(found, key=lambda each: each.needed_bytes)
            failing[split.name] = (
                f"needs {format_bytes(least.needed_bytes)} a GPU, at ZeRO stage {least.split.stage} with checkpointing:"
                f" more than its {format_bytes(cluster.device.memory_bytes)}"
            )
    return sorted(fitting, key=lambda each: -each.rate), failing


@dataclass(frozen=True, slots=True)
class _Traffic:
    """What a data rank sends behind one pass, and how many times an update."""

    times: int
    behind: Literal["forward", "backward"]
    gradients: float = 0.0
    weights: float = 0.0


def _data_traffic(job: Job, split: Split, micros: int) -> list[_Traffic]:
    """What data parallelism sends, by ZeRO's stage. Stages 2 and 3 keep no whole gradients between micro-batches, and 3
    no whole weights, so that they send them for each."""
    ring = (split.data - 1) / split.data / (split.tensor * split.pipeline)
    gradients, changed, weights = (ring * size for size in _sizes(job))
    if split.stage == 3:
        return [_Traffic(micros, "forward", 0.0, weights), _Traffic(micros, "backward", gradients, weights)]
    if split.stage:
        times = micros if split.stage == 2 else 1
        return [_Traffic(times, "backward", gradients), _Traffic(1, "forward", 0.0, changed)]
    return [_Traffic(1, "backward", 2 * gradients)]


def _held(job: Job, split: Split, cost: Cost, micros: int) -> Bytes:
    """Bytes of the rank that holds most: one of the first stage, with the loss of the last one beside it."""
    held, d, t, p = cost.peak, split.data, split.tensor, split.pipeline
    flying = min(p, micros) * _layers(job, split) / job.ledger.dims.num_layers
    whole_weights, whole_gradients = (-(-size // (t * p)) for size in (held.weights, held.gradients))
    # Two blocks' weights are there whole, the one that runs and the next, and one block's gradients.
    blocks = _layers(job, split)
    passing = 2 * whole_weights // blocks * (split.stage == 3) + whole_gradients // blocks * (split.stage >= 2)
    return Bytes(
        weights=whole_weights // (d if split.stage == 3 else 1),
        gradients=whole_gradients // (d if split.stage >= 2 else 1),
        optimizer=held.optimizer // (t * p * (d if split.stage else 1)),
        master=held.master // (t * p * (d if split.stage else 1)),
        activations=round(held.activations * flying / t),
        loss=held.loss // t,
        temporary=held.temporary // t + passing * (d > 1),
    )


def _impossible(job: Job, split: Split) -> str:
    """Why a model or a batch cannot be split so; empty where it can."""
    dims = job.ledger.dims
    if split.pipeline > dims.num_layers:
        return f"{dims.num_layers} layers make no {split.pipeline} stages"
    if dims.num_kv_heads % split.tensor:
        return f"{dims.num_kv_heads} key-value heads are not shared out evenly by {split.tensor}"
    if split.data > job.batch:
        return f"{job.batch} rows of an update are too few for {split.data} data ranks"
    return ""


def _splits(gpus: int) -> Iterator[Split]:
    for tensor in range(1, gpus + 1):
        for pipeline in range(1, gpus // tensor + 1):
            if gpus % (tensor * pipeline) == 0:
                yield Split(gpus // (tensor * pipeline), tensor, pipeline)


def _settings(job: Job, split: Split) -> Iterator[Split]:
    """The same split at each stage of ZeRO, with micro-batches of powers of two, with and without checkpointing."""
    rows = -(-job.batch // split.data)
    for stage in (0, *STAGES) if split.data > 1 else (0,):
        for power in range(min(rows, LARGEST_MICRO_BATCH).bit_length()):
            for recompute in (0.0, 1.0):
                yield replace(split, stage=stage, micro_batch=1 << power, recompute=recompute)


def _layers(job: Job, split: Split) -> int:
    """Layers of the longest stage."""
    return -(-job.ledger.dims.num_layers // split.pipeline)


@cache
def _cost(job: Job, micro_batch: int, again: bool) -> Cost:
    return training_cost(job.ledger, job.shape(micro_batch, again))


@cache
def _sizes(job: Job) -> tuple[int, int, int]:
    """Bytes of the gradients as they are summed, of the weights that change, and of all weights."""
    dtype = job.shape(1, False).dtype
    changed, weights = (weight_bytes(job.ledger, dtype, trained=trained) for trained in (True, False))
    return job.ledger.trainable * job.reduced_bytes, changed, weights


@cache
def _passes(job: Job, micro_batch: int) -> tuple[float, float, float]:
    """FLOPs of a micro-batch's forward pass, of its backward pass, and of all blocks computed again; those of narrow
    matrices counted as so many fewer."""
    ledger, rows = job.ledger, (micro_batch, job.sequence)
    attended = attention_flops(ledger.dims, *rows)
    forward, backward = forward_flops(ledger, *rows), backward_flops(ledger, job.shape(micro_batch, False))
    again = backward_flops(ledger, job.shape(micro_batch, True)) - backward
    pairs = ((forward, attended), (backward, 2 * attended), (again, attended))
    found = [(flops - attention) / job.narrow + attention for flops, attention in pairs]
    return found[0], found[1], found[2]
