"""Contenders of decoding rows that have adapters of their own: hayless's engine with a bank, and PEFT's mixed batch.

Every contender makes a few tokens of each row by itself before it is timed. They are judged by float32: by how far
their log-probabilities are from those of the same weights, with the row's own adapter beside them, and how far tokens
are from the likeliest there. So whoever leaves adapters out, or mixes them up, is not timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import transformers
from parts.decoding import Tokens, random_prompts
from parts.limits import moving
from torch import Tensor, nn
from torch.nn import functional as F

from hayless.core.bank import block_matrices
from hayless.core.families import ledger_of
from hayless.core.registry import configure
from hayless.decode.bank import AdapterBank
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.decode.program import Program, plan
from hayless.model.adapters import Adapter
from hayless.model.anatomy import dims_of_model
from hayless.study.bench.gate import ERROR, SHORTFALL, Answer
from hayless.study.bench.spec import Bound, Prepared

SCALE = 2.0
"""What branches are multiplied by."""
_CHECKED = 3
"""Tokens of each row that are made before the clock runs, the first among them."""
_JUDGED = 4
"""Rows that are computed again in float32."""


@dataclass(frozen=True)
class Mixed:
    """`rows` greedy rows, each with an adapter of `rank` of its own on every matrix of the blocks.

    A repeat is `steps` steps of all rows, with `context` tokens behind each in the middle of `repeats` of them. `model`
    makes the model, the same each time.
    """

    model: Callable[[], transformers.PreTrainedModel]
    rows: int
    context: int
    rank: int
    steps: int
    repeats: int

    def hayless(self, *, adapted: bool = True) -> Prepared:
        """The engine as a server runs it, with all adapters in its bank; without any if not `adapted`."""
        model, prompts = self.model(), self._prompts()
        bank = filled(model, self.rows, self.rank) if adapted else None
        engine = Engine(model, adapters=bank)
        options = SamplingOptions(max_tokens=self._most, ignore_end=True)
        requests = [
            engine.request(prompt, options, _name(row) if adapted else "") for row, prompt in enumerate(prompts)
        ]
        running = engine.open(self.rows, len(prompts[0]) + self._most)
        made: list[list[tuple[int, float]]] = [[] for _ in requests]
        number = {request: row for row, request in enumerate(requests)}

        def step() -> None:
            for request, piece in running.step():
                made[number[request]].append((piece.token, piece.logprob))

        def answer() -> Answer:
            for request in requests:
                running.add(request)
            # Prompts join some at a time, so that the first rows are a few tokens ahead of the last.
            while min(map(len, made)) < _CHECKED:
                step()
            return self._judged(made, adapted=adapted)

        return Prepared(partial(_times, self.steps, step), answer)

    def peft(self) -> Prepared:
        """PEFT's `adapter_names`, with adapters in the model's own dtype, token by token into transformers' cache."""
        import peft

        model = self.model()
        # Modules of its own around the same weights: PEFT puts its own in their places.
        wrapped = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
        names = [_name(row) for row in range(self.rows)]
        kinds = sorted({path.rpartition(".")[2] for path in _matrices(model)})
        config = peft.LoraConfig(r=self.rank, lora_alpha=SCALE * self.rank, target_modules=kinds)
        mixed = peft.get_peft_model(
            wrapped, config, adapter_name=names[0], autocast_adapter_dtype=False, low_cpu_mem_usage=True
        )
        # PEFT's add_adapter walks through all modules for each adapter, minutes for so many. It adds this to a layer.
        for row, name in enumerate(names):
            for path, (a, b) in matrices(model, row, self.rank).items():
                layer: Any = mixed.base_model.model.get_submodule(path)
                for field in layer.other_param_names:
                    noted = getattr(layer, field, None)
                    if isinstance(noted, dict | nn.ModuleDict) and names[0] in noted:
                        noted[name] = noted[names[0]]
                layer.lora_A[name], layer.lora_B[name] = _linear(a), _linear(b)
        mixed.eval()
        cache = transformers.DynamicCache(config=model.config)
        made: list[list[tuple[int, float]]] = [[] for _ in names]
        last: list[Tensor] = []

        @torch.inference_mode()
        def read(ids_bs: Tensor) -> None:
            out = mixed(input_ids=ids_bs, past_key_values=cache, adapter_names=names, logits_to_keep=1, use_cache=True)
            logprobs, tokens = out.logits[:, -1].float().log_softmax(-1).max(-1)
            last[:] = [tokens]
            # Tokens are of use on the host, where the engine brings them too.
            for row, chosen in enumerate(zip(tokens.tolist(), logprobs.tolist(), strict=True)):
                made[row].append(chosen)

        def step() -> None:
            read(last[0][:, None])

        def answer() -> Answer:
            read(torch.tensor(self._prompts(), device=model.device))
            _times(_CHECKED - 1, step)
            return self._judged(made, adapted=True)

        return Prepared(partial(_times, self.steps, step), answer)

    def bound(self) -> Bound:
        """A step's bytes at the rate of a device copy: every weight and every adapter once, and the cache."""
        model = self.model()
        program, bank = plan(model), filled(model, self.rows, self.rank)
        assert isinstance(program, Program), program.reason
        return moving(program.weight_bytes + bank.bytes + self.rows * self.context * program.token_bytes)

    @property
    def _most(self) -> int:
        """Tokens that a row gets at most. Rows join one or more a step, and the first are ahead of the last."""
        return _CHECKED + self.rows + self.steps * self.repeats

    def _prompts(self) -> Tokens:
        """As many tokens as leave the wanted context in the middle of what is timed."""
        length = self.context - _CHECKED - self.steps * self.repeats // 2
        return random_prompts(self.rows, length)(self.model())

    def _judged(self, made: Sequence[Sequence[tuple[int, float]]], *, adapted: bool) -> Answer:
        """The first tokens of some rows, beside what float32 says of them."""
        model, prompts = self.model(), self._prompts()
        errors, shortfalls = [], []
        for row in range(0, self.rows, max(1, self.rows // _JUDGED)):
            tokens, logprobs = zip(*made[row][:_CHECKED], strict=True)
            parts = matrices(model, row, self.rank) if adapted else {}
            judge = exact(model, parts, [*prompts[row], *tokens[:-1]])[-_CHECKED:]
            right = judge.gather(-1, torch.tensor(tokens, device=judge.device)[:, None])[:, 0].cpu()
            errors.append(torch.tensor(logprobs) - right)
            shortfalls.append(judge.amax(-1).cpu() - right)
        return {ERROR: torch.cat(errors), SHORTFALL: torch.cat(shortfalls)}


@torch.inference_mode()
def exact(model: transformers.PreTrainedModel, parts: dict[str, tuple[Tensor, Tensor]], ids: Sequence[int]) -> Tensor:
    """Log-probabilities (s, v) after each token, computed in float32 from the model's weights and an adapter's parts.

    Weights are widened one matrix at a time: there is no room for a second model beside full caches.
    """
    twin = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    twin.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.float())
    for path, module in twin.named_modules():
        if isinstance(module, nn.Linear):
            module.forward = partial(_widened, module, parts.get(path))  # type: ignore[method-assign]
    found: Tensor = twin(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0]
    return found.log_softmax(-1)


def _widened(module: nn.Linear, part: tuple[Tensor, Tensor] | None, x: Tensor) -> Tensor:
    out = F.linear(x, module.weight.float(), None if module.bias is None else module.bias.float())
    return out if part is None else out + SCALE * (x @ part[0].float().T @ part[1].float().T)


def matrices(model: transformers.PreTrainedModel, number: int, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """A (rank, in) and B (out, rank) of a random adapter by path, the same each time, on the model's device.

    What it adds is about a third in size of what the base's matrices give.
    """
    shapes = _matrices(model)
    generator = torch.Generator(model.device).manual_seed(number)
    sizes = [rank * size for shape in shapes.values() for size in shape]
    drawn = torch.randn(sum(sizes), generator=generator, device=model.device).split(sizes)
    found = {}
    for (path, (width, out)), a, b in zip(shapes.items(), drawn[::2], drawn[1::2], strict=True):
        found[path] = (
            (a.view(rank, width) * width**-0.5).to(model.dtype),
            (b.view(out, rank) * (0.2 / rank**0.5)).to(model.dtype),
        )
    return found


@lru_cache(maxsize=1)
def filled(model: transformers.PreTrainedModel, count: int, rank: int) -> AdapterBank:
    """A bank with `count` random adapters on every matrix of the blocks."""
    config = configure("lora", rank=rank, alpha=SCALE * rank, targets=("attention", "feed_forward"))
    bank = AdapterBank.for_adapters(model, (), count, rank=rank)
    for number in range(count):
        tensors = {}
        for path, pair in matrices(model, number, rank).items():
            for part, matrix in zip(("lora_A", "lora_B"), pair, strict=True):
                tensors[f"base_model.model.{path}.{part}.weight"] = matrix
        bank.add(_name(number), Adapter(config, tensors))
    return bank


@lru_cache(maxsize=1)
def _matrices(model: transformers.PreTrainedModel) -> dict[str, tuple[int, int]]:
    return block_matrices(ledger_of(dims_of_model(model)))


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


def _name(number: int) -> str:
    return f"adapter_{number}"


def _times(count: int, step: Callable[[], object]) -> None:
    for _ in range(count):
        step()
