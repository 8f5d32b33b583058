"""Fills the draft slot: who drafts, how many tokens, and whether at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hayless.core.errors import NotSupported, RequestError
from hayless.decode.engine import check_causal
from hayless.decode.program import Program, plan
from hayless.decode.readers import ModuleReader, ProgramReader, Reader
from hayless.decode.request import Batch, Request
from hayless.decode.slots import Target
from hayless.methods.decoding.speculative.accept import Accept, accept
from hayless.methods.decoding.speculative.config import FIRST, LOOKUP, MOST, SELF, SpeculativeConfig
from hayless.methods.decoding.speculative.drafts import Draft, EarlyDraft, LookupDraft, ModelDraft
from hayless.methods.decoding.speculative.pace import Measured, Pace, Steady
from hayless.methods.decoding.speculative.preflight import TOKENS, Preflight, measure
from hayless.methods.decoding.speculative.rounds import Rounds
from hayless.methods.decoding.speculative.tally import Tally
from hayless.methods.decoding.speculative.tokenizers import check_same
from hayless.model.load import load_model, load_tokenizer

if TYPE_CHECKING:
    from hayless.methods.decoding.speculative.captured import Sessions
    from hayless.methods.decoding.speculative.captured_drafts import Source


_Key = tuple[int, bool]
"""Requests side by side, and whether all are greedy."""
_OPEN: _Key = (0, False)
"""Batches that requests join and leave."""


class Speculative:
    """Speculative sampling for one model.

    The draft that `config` names is loaded beside `model`, on its device and in its dtype, unless it is given.
    `preflights` are what was measured, by (requests side by side, whether greedy); `say` is told. RequestError for a
    draft with other tokens.
    """

    def __init__(
        self,
        config: SpeculativeConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        draft: PreTrainedModel | None = None,
        draft_tokenizer: PreTrainedTokenizerBase | None = None,
        say: Callable[[str], object] | None = None,
        rule: Accept = accept,
    ) -> None:
        self.config = config
        self._used: dict[_Key, Tally] = {}
        self._paces: dict[_Key, Pace] = {}
        self.preflights: dict[_Key, Preflight] = {}
        self._say, self._rule = say, rule
        self._draft: PreTrainedModel | None = None
        self._draft_program: Program | None = None
        self._sessions: Sessions | None = None
        if config.draft not in (LOOKUP, SELF):
            if draft is None:
                draft = load_model(config.draft, dtype=model.dtype, device=model.device)
                draft_tokenizer = draft_tokenizer or _tokenizer_of(config.draft)
            check_causal(draft)
            check_same(model, draft, tokenizer, draft_tokenizer)
            self._draft = draft.eval()

    def prepare(self, target: Target, requests: Sequence[Request]) -> None:
        """Measure whether drafts pay for requests like these, where that is not known yet."""
        key = _key(requests)
        if not self.config.preflight or key in self.preflights or min(one.budget for one in requests) < TOKENS:
            return
        wanted = None if self.config.tokens == "auto" else self.config.tokens
        found = measure(
            requests,
            target.plain,
            lambda copies, count, tally: self._batch(target, copies, tally, Steady(count)),
            wanted,
        )
        self.preflights[key] = found
        self._paces.pop(key, None)  # it begins with what was found
        self._tell(found)

    def begin(self, target: Target, requests: Sequence[Request]) -> Batch:
        """A batch of these requests, with drafts where they pay."""
        key = _key(requests)
        pace, passes = self._pace(key), max(request.budget for request in requests)
        # Graphs draft as many as they were captured for, so whether they do is decided between batches.
        if pace.rests(len(requests), passes, whole=target.graphs):
            return target.plain(requests)
        return self._batch(target, requests, self._used.setdefault(key, Tally()), pace)

    def open(self, target: Target, rows: int, tokens: int) -> Batch:
        """A batch without requests yet. In graphs it drafts as many tokens as were asked for, or 3."""
        used = self._used.setdefault(_OPEN, Tally())
        source = self._source(target)
        if source is not None and target.program is not None:
            return self._captured().open(target.program, source, rows, tokens, Steady(self._wanted), used)
        return self._batch(target, [], used, self._pace(_OPEN))

    @property
    def tally(self) -> Tally:
        """What was drafted and kept."""
        total = Tally()
        for used in self._used.values():
            total.join(used)
        return total

    def document(self) -> dict[str, Any]:
        """What was asked for, measured and counted."""
        return {
            "draft": self.config.draft,
            "tokens": self.config.tokens,
            "preflights": [asdict(found) for found in self.preflights.values()],
            "passes": self.tally.passes,
            "acceptance": self.tally.acceptance,
            "tokens_a_pass": self.tally.tokens_a_pass,
        }

    def __str__(self) -> str:
        if self.tally.tokens_a_pass is None:
            return f"{self.config.draft}: not used"
        kept = "none tested" if self.tally.acceptance is None else f"{self.tally.acceptance:.0%} kept"
        return f"{self.config.draft}: {kept}, {self.tally.tokens_a_pass:.2f} tokens a pass"

    @property
    def _wanted(self) -> int:
        """Tokens to draft a pass before anything is known."""
        return FIRST if self.config.tokens == "auto" else self.config.tokens

    def _pace(self, key: _Key) -> Pace:
        """How many tokens are drafted, by what earlier batches of this kind took as well."""
        if key not in self._paces:
            auto = self.config.tokens == "auto"
            self._paces[key] = (
                Measured(
                    self._wanted,
                    MOST if auto else self._wanted,
                    fixed=not auto,
                    preflight=self.preflights.get(key),
                    say=self._say,
                )
                if self.config.preflight
                else Steady(self._wanted)
            )
        return self._paces[key]

    def _tell(self, found: Preflight) -> None:
        if self._say is not None:
            self._say(f"Speculation is {found}.")

    def _batch(self, target: Target, requests: Sequence[Request], tally: Tally, pace: Pace) -> Batch:
        source = self._source(target)
        if source is not None and target.program is not None:
            return self._captured().begin(target.program, source, requests, pace, tally)
        reader = ProgramReader(target.program) if target.program is not None else _module_reader(target.model)
        draft, context = self._drafter(target, reader)
        limits = [one for one in (target.context, context) if one is not None]
        return Rounds(
            reader,
            draft,
            requests,
            pace,
            context=min(limits, default=None),
            device=target.model.device,
            tally=tally,
            rule=self._rule,
        )

    def _captured(self) -> Sessions:
        if self._sessions is None:
            from hayless.methods.decoding.speculative.captured import Sessions

            self._sessions = Sessions(self._rule)
        return self._sessions

    def _source(self, target: Target) -> Source | None:
        """Who drafts in a captured graph; None where there is none, or for a draft that has no program."""
        if not target.graphs or target.program is None:
            return None
        from hayless.methods.decoding.speculative.captured_drafts import FirstLayers, Ngram

        if self.config.draft == LOOKUP:
            return Ngram(self.config.ngram)
        if self.config.draft == SELF:
            return FirstLayers(self._layers(target.program))
        assert self._draft is not None
        return self._program_of(self._draft)

    def _drafter(self, target: Target, reader: Reader) -> tuple[Draft, int | None]:
        """Who drafts, and up to which length of a text."""
        device = target.model.device
        if self.config.draft == LOOKUP:
            return LookupDraft(self.config.ngram, device), None
        if self.config.draft == SELF:
            if not isinstance(reader, ProgramReader):
                raise NotSupported(
                    f"The model's own first layers cannot draft for it: {target.reason}.",
                    hint="Use the draft lookup, or a model.",
                )
            return EarlyDraft(reader, self._layers(reader.program)), None
        assert self._draft is not None
        known, entries = self._draft.config.vocab_size, target.model.config.vocab_size
        program = self._program_of(self._draft)
        if program is not None:
            return ModelDraft(ProgramReader(program), known, entries, device), None
        context = getattr(self._draft.config, "max_position_embeddings", None)
        return ModelDraft(_module_reader(self._draft), known, entries, device), context

    def _layers(self, program: Program) -> int:
        """Layers that the draft self goes through."""
        every = len(program.layers)
        layers = self.config.layers or -(-every // 4)
        if layers >= every:
            raise RequestError(
                f"speculative.layers = {layers} is not possible; allowed: fewer than the model's {every}."
            )
        return layers

    def _program_of(self, draft: PreTrainedModel) -> Program | None:
        """The draft's program, made again where the draft has changed; None where it has none."""
        if self._draft_program is None or not self._draft_program.fits(draft):
            found = plan(draft)
            self._draft_program = found if isinstance(found, Program) else None
        return self._draft_program


def _key(requests: Sequence[Request]) -> _Key:
    return len(requests), all(request.options.temperature == 0 for request in requests)


def _module_reader(model: PreTrainedModel) -> ModuleReader:
    """NotSupported for models whose layers keep a window, or states, from which nothing can be taken back."""
    reader = ModuleReader(model)
    if not reader.keeps_all:
        raise NotSupported(
            f"{type(model).__name__} does not keep the keys of all tokens, so rejected drafts cannot be undone.",
            hint="Decode without drafts.",
        )
    return reader


def _tokenizer_of(source: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a draft's folder; None where there is none to compare."""
    try:
        return load_tokenizer(source)
    except RequestError:
        return None
