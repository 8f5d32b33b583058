"""Generating text with a causal language model.

Requests run side by side. The way a model is run is chosen once (`Engine.path`): a decode program in CUDA graphs, the
same program in plain PyTorch, or transformers' own modules, which take any model and whatever methods did to it. All
give the same tokens, to rounding, alone and in any batch. A request that ends leaves the batch.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import NotSupported, RequestError, bad_value, unknown
from hayless.decode.bank import AdapterBank
from hayless.decode.eager import Beside, EagerBatch
from hayless.decode.options import SamplingOptions
from hayless.decode.program import Program, Unplanned, plan
from hayless.decode.readers import ModuleReader, ProgramReader, Reader, RowReader
from hayless.decode.request import Batch, Finish, Generation, Piece, Request
from hayless.decode.running import Running
from hayless.decode.slots import CachePart, DraftPart, ExitPart, Target

if TYPE_CHECKING:
    from hayless.decode.graphs import Graphs

__all__ = ["Backend", "Engine", "Finish", "Generation", "Path", "Piece", "Prompt", "check_causal", "evaluating"]

Prompt = str | Sequence[int]
"""Text, or token ids (taken as they are: nothing is put before them)."""

Backend = Literal["modules", "program", "graphs"]
"""How a model is run; see `Engine`."""


_TOKENS = 4096
"""Room of a request in `open` for models that do not say how long a context they know."""


@dataclass(frozen=True, slots=True)
class Path:
    """How a model is run, and why so."""

    backend: Backend
    reason: str


class Engine:
    """Generates with `model`, on the device and in the dtype it has. Without a tokenizer, prompts are token ids.

    `backend` is how: "modules" runs transformers' own modules, "program" the model's weights in plain PyTorch (for
    Llama's layout), "graphs" the same in Triton kernels and a captured CUDA graph; "auto" takes the last of these that
    the model and the device allow, and `path` says which and why. `draft` fills the slot for methods that give several
    tokens a pass of the model, `exit` the one for methods that let tokens leave it early, `cache` the one for methods
    that hold keys and values in another form; one of the three at most is given. With
    `deterministic` a request gets the same tokens, to the bit, alone and in any batch: rows go through the model one by
    one, and in graphs through kernels that cut up sums in one way, whatever the shape. `adapters` is a bank from which
    each request can have one; another bank may take its place while nothing runs.

    NotSupported for a model that is no causal language model, and for a backend that cannot run it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        backend: Backend | Literal["auto"] = "auto",
        draft: DraftPart | None = None,
        exit: ExitPart | None = None,
        cache: CachePart | None = None,
        deterministic: bool = False,
        adapters: AdapterBank | None = None,
    ) -> None:
        check_causal(model)
        if draft is not None and exit is not None:
            raise NotSupported(
                "A draft and early exits exclude each other: what checks drafts is the whole model.",
                hint="Give one; a model's own first layers draft for it without changing what it says.",
            )
        if cache is not None and (draft is not None or exit is not None):
            raise NotSupported(
                "A cache in another form excludes drafts and early exits: what it has quantized cannot be cut back, and"
                " skipped layers have keys of their own.",
                hint="Give one of them.",
            )
        if deterministic and (draft is not None or exit is not None):
            raise NotSupported(
                "deterministic excludes drafts and early exits: they take rows through the model side by side.",
                hint="Leave one of them out.",
            )
        if adapters is not None and (draft is not None or exit is not None):
            raise NotSupported(
                "Adapters that differ by row exclude drafts and early exits, which know one model.",
                hint="Leave one of them out, or put one adapter on the model.",
            )
        if backend not in ("auto", *get_args(Backend)):
            raise bad_value("backend", backend, allowed=f"auto, {', '.join(get_args(Backend))}")
        self.model = model
        self.tokenizer = tokenizer
        self.backend = backend
        self.draft = draft
        self.exit = exit
        self.cache = cache
        self.deterministic = deterministic
        self.adapters = adapters
        self._planned_with: AdapterBank | None = None
        self._program: Program | None = None
        self._graphs: Graphs | None = None
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        self.end_tokens = _end_tokens(model, tokenizer)

    @property
    def path(self) -> Path:
        """How the model would be run now."""
        return self._chosen()[0]

    def step_bytes(self, held: int, rows: int = 1) -> int | None:
        """Bytes that a step of `rows` rows with `held` tokens each in the cache must read; None for models without a
        program."""
        program = self._chosen()[1]
        if program is None:
            return None
        cached = held * program.token_bytes if self.cache is None else self.cache.row_bytes(program.dims, held)
        return program.weight_bytes + rows * cached

    def stream(self, prompt: Prompt, options: SamplingOptions | None = None, *, adapter: str = "") -> Iterator[Piece]:
        """The continuation of `prompt`, token by token. RequestError for a prompt that does not fit the context."""
        request = self.request(prompt, options or SamplingOptions(), adapter)
        return self._stream(request)

    def generate(
        self,
        prompts: Sequence[Prompt],
        options: SamplingOptions | Sequence[SamplingOptions] | None = None,
        *,
        batch_size: int = 16,
        adapters: str | Sequence[str] = "",
    ) -> list[Generation]:
        """The continuation of each prompt, in order, `batch_size` at a time.

        `options` is one for all or one a prompt, and so is `adapters`: names in the bank, "" for none. A request's
        draws are a function of its own seed: equal prompts with equal options get equal texts. RequestError, before
        anything is computed, for a prompt that cannot be continued.
        """
        if isinstance(prompts, str):
            raise RequestError("generate takes a list of prompts, not one text.", hint="Give [text], or use stream.")
        if batch_size < 1:
            raise RequestError(f"batch_size = {batch_size} is not possible; allowed: 1 or more.")
        each = _one_each(options, len(prompts))
        named = [adapters] * len(prompts) if isinstance(adapters, str) else list(adapters)
        if len(named) != len(prompts):
            raise RequestError(f"There are {len(named)} adapters for {len(prompts)} prompts.", hint="Give one each.")
        requests = [self.request(*one) for one in zip(prompts, each, named, strict=True)]
        with evaluating(self.model):
            for start in range(0, len(requests), batch_size):
                for _ in self._steps(requests[start : start + batch_size]):
                    pass
        return [request.generation() for request in requests]

    def open(self, rows: int, tokens: int | None = None) -> Running:
        """A batch that requests join and leave while it runs, at most `rows` at once.

        A request has at most `tokens` tokens, prompt and continuation together (the model's context, if None). The
        model is put into evaluation mode.
        """
        if rows < 1:
            raise bad_value("rows", rows, allowed="1 or more")
        tokens = min(tokens or self.context or _TOKENS, self.context or _TOKENS)
        self.model.eval()
        if self._part is not None:
            return Running(self._part.open(self._target(), rows, tokens), rows, tokens)
        path, program = self._chosen()
        batch = self._graphs_of(program).open(rows, tokens) if program and path.backend == "graphs" else self._plain([])
        return Running(batch, rows, tokens)

    def _stream(self, request: Request) -> Iterator[Piece]:
        with evaluating(self.model):
            yield from self._steps([request])

    def request(self, prompt: Prompt, options: SamplingOptions, adapter: str = "") -> Request:
        """A request that `open`'s batch takes, with an adapter of the bank, or none.

        RequestError for a prompt that cannot be continued and for an adapter that is not there.
        """
        ids = self.encode(prompt)
        limit = self.context
        if limit is not None and len(ids) >= limit:
            raise RequestError(
                f"The prompt has {len(ids)} tokens; the model's context holds {limit}, what is generated included.",
                hint="Shorten the prompt.",
            )
        if options.stop and self.tokenizer is None:
            raise RequestError("Stop strings need a tokenizer.", hint="Give the engine the model's tokenizer.")
        request = Request(ids, options, self.tokenizer, self.end_tokens, limit)
        if adapter:
            if self.adapters is None:
                raise unknown("adapter", adapter, ())
            self.adapters.assign(request, adapter)
        return request

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; an empty one becomes the begin token (or the end token where there is no other).

        RequestError for a text without a tokenizer, and for tokens that the model does not have.
        """
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("A text prompt needs a tokenizer.", hint="Give the engine one, or give token ids.")
            ids = list(self.tokenizer(prompt)["input_ids"])
        else:
            ids = list(prompt)
        ids = ids or [self._begin_token()]
        entries = self.model.config.vocab_size
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < entries:
                raise RequestError(
                    f"Token {token!r} of the prompt is not one of the model's {entries} (0 to {entries - 1}).",
                    hint="Does the tokenizer belong to this model?",
                )
        return ids

    def _begin_token(self) -> int:
        owners = [owner for owner in (self.tokenizer, self.model.config) if owner is not None]
        for name in ("bos_token_id", "eos_token_id"):
            for owner in owners:
                token = getattr(owner, name, None)
                if isinstance(token, int):
                    return token
        raise RequestError("The prompt is empty, and the model has no begin or end token to start from.")

    def _steps(self, requests: Sequence[Request]) -> Iterator[Piece]:
        """Run requests side by side until all have ended; yields every piece as it is made."""
        if self._part is not None:
            self._part.prepare(self._target(), requests)
        start = time.perf_counter()
        batch = self._begin(requests)
        # Those that have yet to join a batch in graphs are not active before its first step.
        while any(request.finish is None for request in requests):
            chosen = batch.next()
            elapsed = time.perf_counter() - start
            for request, tokens in zip(list(batch.active), chosen, strict=True):
                for token in tokens:
                    yield request.take(token, elapsed)
                    if request.finish is not None:
                        break
            batch.drop_ended()

    def _begin(self, requests: Sequence[Request]) -> Batch:
        return self._plain(requests) if self._part is None else self._part.begin(self._target(), requests)

    @property
    def _part(self) -> DraftPart | ExitPart | None:
        return self.exit if self.draft is None else self.draft

    def _target(self) -> Target:
        path, program = self._chosen()
        return Target(self.model, program, path.backend == "graphs", path.reason, self.context, self._plain)

    def _plain(self, requests: Sequence[Request]) -> Batch:
        path, program = self._chosen()
        if path.backend == "graphs":
            assert program is not None
            return self._graphs_of(program).begin(requests)
        return EagerBatch(self._reader(program), requests, self._beside(program))

    def _reader(self, program: Program | None) -> Reader:
        rows = None if self.adapters is None else self.adapters.branches.rows

        def reader() -> Reader:
            if self.cache is not None:
                return self.cache.reader(program, rows)
            return ModuleReader(self.model) if program is None else ProgramReader(program)

        return RowReader(reader, rows) if self.deterministic else reader()

    def _beside(self, program: Program | None) -> Beside | None:
        if self.adapters is None:
            return None
        return self.adapters.on_modules if program is None else self.adapters.on_program

    def _graphs_of(self, program: Program) -> Graphs:
        if self._graphs is None:
            from hayless.decode.graphs import Graphs

            self._graphs = Graphs(program, invariant=self.deterministic, held=self.cache)
        return self._graphs

    def _chosen(self) -> tuple[Path, Program | None]:
        """The path for the model as it is now, planned again where it has changed."""
        if self.backend == "modules":
            return Path("modules", "asked for"), None
        bank = self.adapters
        if self._program is None or bank is not self._planned_with or not self._program.fits(self.model):
            self._graphs = None
            self._planned_with = bank
            found = plan(self.model, None if bank is None else bank.branches)
            if isinstance(found, Unplanned):
                self._program = None
                if self.backend != "auto":
                    raise NotSupported(
                        f"backend = {self.backend!r} cannot run this {type(self.model).__name__}: {found.reason}.",
                        hint="Use backend 'modules' or 'auto'.",
                    )
                return Path("modules", found.reason), None
            self._program = found
        if self.backend == "program":
            return Path("program", "asked for"), self._program
        early = self.exit.no_graphs(self._program) if self.exit is not None else None
        held = self.cache.no_kernels(self._program) if self.cache is not None else None
        packed = "packed weights have no kernels whose rows are their own" if self._program.packed else None
        missing = held or _no_graphs(self._program) or early or (packed if self.deterministic else None)
        if missing is None:
            return Path("graphs", "a CUDA device with Triton"), self._program
        if self.backend == "graphs":
            raise NotSupported(
                f"backend = 'graphs' cannot be used: {missing}.", hint="Use backend 'auto' or 'program'."
            )
        return Path("program", missing), self._program


def check_causal(model: PreTrainedModel) -> None:
    """NotSupported for a model that is no causal language model."""
    if model.config.is_encoder_decoder or not model.can_generate():
        raise NotSupported(
            f"{type(model).__name__} does not continue text; only causal language models do.",
            hint="Load the model as a causal language model.",
        )


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, so that dropout is off; each gets its own mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _one_each(options: SamplingOptions | Sequence[SamplingOptions] | None, count: int) -> Sequence[SamplingOptions]:
    if options is None or isinstance(options, SamplingOptions):
        return [options or SamplingOptions()] * count
    if len(options) != count:
        raise RequestError(
            f"There are {len(options)} sets of options for {count} prompts.", hint="Give one, or one each."
        )
    return options


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """The tokens that end a text, by the generation config (or the config), and by the tokenizer."""
    generation = getattr(model, "generation_config", None)
    named = generation.eos_token_id if generation is not None and generation.eos_token_id is not None else None
    named = model.config.eos_token_id if named is None else named
    found = set(named) if isinstance(named, list | tuple) else {named}
    found.add(getattr(tokenizer, "eos_token_id", None))
    return frozenset(int(token) for token in found if token is not None)


def _no_graphs(program: Program) -> str | None:
    """Why a program cannot run in graphs here, or None."""
    if program.device.type != "cuda":
        return f"the model is on {program.device.type}"
    if torch.version.hip is not None or torch.cuda.get_device_capability(program.device) < (8, 0):
        return "the kernels need an NVIDIA GPU of compute capability 8.0 or newer"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None
