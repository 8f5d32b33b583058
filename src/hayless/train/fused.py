"""Updates fused into the backward pass: each weight is moved as soon as its gradient is there, which then goes.

LOMO (Lv et al., 2023, arXiv:2306.09782, sections 3.1 and 3.3): of all gradients only those of one operation exist at a
time. What must know all of them before it moves anything, clipping by their norm and fp16's scaled losses, takes a
second backward pass over the same graph: the first only measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from hayless.core.method import MethodConfig
from hayless.core.moving import refuse_accumulation
from hayless.train.slots import FusedOptimizer, OptimizerPart, Trainable
from hayless.train.updater import Updater, check_scale, norm_of, shrink, shrinking


class FusedUpdater(Updater):
    """Moves weights during the backward pass, in every precision; in `master` their fp32 masters, which are rounded
    into them at once.

    Autograd adds up the gradients of a weight that is used several times before it hands them on; a weight without a
    gradient stays. Where one pass does it all, a loss or a gradient that is not finite is seen when weights have moved.
    """

    def __init__(
        self,
        parameters: Sequence[Trainable],
        moved: Sequence[Trainable],
        part: OptimizerPart,
        config: MethodConfig,
        scaler: GradScaler | None,
    ) -> None:
        super().__init__(parameters, moved, part, config, scaler)
        (optimizer,) = self._optimizers
        assert isinstance(optimizer, FusedOptimizer)
        self._optimizer = optimizer
        self._use: Callable[[int, Tensor], None] | None = None
        self._norms: dict[int, Tensor] = {}
        self._graph: Tensor | None = None
        # The scaler looks at a gradient that stands for all of them: their norm.
        self._probe = torch.optim.SGD([nn.Parameter(torch.zeros((), device=self.device))], lr=0.0)
        self._hooks = [
            item.tensor.register_post_accumulate_grad_hook(partial(self._arrived, place))
            for place, item in enumerate(parameters)
        ]

    @property
    def moves_in_backward(self) -> bool:
        """Whether one pass is enough."""
        return self._clip_norm is None and self._scaler is None

    def begin(self, share: float, clip_norm: float | None, micro_batches: int = 1) -> None:
        """An update begins. RequestError for several micro-batches."""
        refuse_accumulation(micro_batches)
        super().begin(share, clip_norm, micro_batches)
        self._norms, self._graph = {}, None

    def backward(self, loss: Tensor) -> None:
        """Move the weights by the gradients of `loss`, or only measure these where two passes are needed."""
        if self.moves_in_backward:
            self._pass(loss, self._measure_and_move)
            return
        self._graph = self._scaler.scale(loss) if self._scaler else loss
        self._pass(self._graph, self._measure, retain_graph=True)

    def norm(self) -> Tensor:
        """The norm of all gradients that there were."""
        norm = norm_of([self._norms[place] for place in sorted(self._norms)])
        if self._scaler:
            (probe,) = self._probe.param_groups[0]["params"]
            probe.grad = norm
            self._scaler.unscale_(self._probe)
        return norm

    def step(self, norm: Tensor) -> bool:
        """Finish the update: with a second pass where one is needed, and where fp16 gradients did not overflow."""
        graph, self._graph = self._graph, None
        if graph is None:
            return True
        factor = 1.0 if self._clip_norm is None else shrinking(norm, self._clip_norm)
        if self._scaler is None:
            self._pass(graph, partial(self._move, factor=factor))
            return True
        scale, finite = self.scale(), bool(torch.isfinite(norm))
        check_scale(scale, norm)
        if finite:
            self._pass(graph, partial(self._move, factor=factor / scale))
        # The graph reads the scale, which therefore changes last.
        self._scaler.step(self._probe)
        self._scaler.update()
        return finite

    def close(self) -> None:
        """Take the hooks off the model."""
        self._graph = None
        for hook in self._hooks:
            hook.remove()
        super().close()

    def _pass(self, loss: Tensor, use: Callable[[int, Tensor], None], *, retain_graph: bool = False) -> None:
        """One backward pass, in which `use` gets each gradient with its weight's place."""
        self._use = use
        try:
            loss.backward(retain_graph=retain_graph)
        finally:
            self._use = None

    def _arrived(self, place: int, weight: Tensor) -> None:
        """Autograd's hook: the gradient of a weight is whole."""
        if self._use is not None:
            gradient, weight.grad = weight.grad, None
            assert gradient is not None
            self._use(place, gradient)

    @torch.no_grad()
    def _measure(self, place: int, gradient: Tensor) -> None:
        self._norms[place] = torch.linalg.vector_norm(gradient, dtype=torch.float32)

    def _measure_and_move(self, place: int, gradient: Tensor) -> None:
        self._measure(place, gradient)
        self._move(place, gradient)

    @torch.no_grad()
    def _move(self, place: int, gradient: Tensor, factor: float = 1.0) -> None:
        """Move one weight; `factor` is what its gradient is multiplied by before."""
        weight, moved = self._parameters[place].tensor, self._moved[place].tensor
        if moved is not weight:
            gradient = gradient.float()
        shrink([gradient], factor)
        self._optimizer.move(moved, gradient)
        if moved is not weight:
            weight.copy_(moved)
