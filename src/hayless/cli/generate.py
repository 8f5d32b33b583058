"""`hayless generate`: use it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hayless.cli.caches import Cache, CacheGroup, CacheResidual, quantized_cache
from hayless.cli.drafts import Draft, DraftLayers, DraftTokens, Lookup, SelfDraft, speculation
from hayless.cli.exits import (
    Exit,
    ExitHeads,
    ExitLayers,
    ExitRisk,
    ExitText,
    ExitThreshold,
    ExitTrace,
    draw_trace,
    early_exit,
)
from hayless.cli.output import Device, Dtype, Json, Model, emit, err, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hayless.decode.engine import Engine, Piece
    from hayless.decode.slots import CachePart
    from hayless.methods.decoding.early_exit.part import EarlyExit

_FINISH = {
    "stop": "a stop string",
    "length": "the number of tokens asked for",
    "end": "the model's end token",
    "context": "the end of the model's context",
    "interrupted": "Ctrl-C",
}
_INTERRUPTED = 130


def generate(
    model: str = Model,
    prompt: str = typer.Option(None, help="The text to continue; - reads standard input, as a pipe without it does."),
    prompt_file: str = typer.Option(None, help="A UTF-8 file with the text to continue, taken as it is."),
    tokens: str = typer.Option("128", help="Tokens generated at most."),
    temperature: float = typer.Option(0.0, help="0 takes the likeliest token, 1 samples from the model as it is."),
    top_p: float = typer.Option(1.0, help="Keep the fewest likeliest tokens that reach this probability."),
    top_k: int = typer.Option(0, help="Keep this many likeliest tokens; 0 keeps all."),
    min_p: float = typer.Option(0.0, help="Drop tokens below this share of the likeliest one's probability."),
    seed: int = typer.Option(0, help="Seeds the draws."),
    stop: list[str] = typer.Option(None, help="End before this text; may be repeated."),
    ignore_end: bool = typer.Option(False, "--ignore-end", help="Go on after the model's end token."),
    draft: str = Draft,
    self_draft: bool = SelfDraft,
    lookup: bool = Lookup,
    draft_tokens: str = DraftTokens,
    draft_layers: int = DraftLayers,
    preflight: bool = typer.Option(True, help="Measure first, and do not draft where that would be slower."),
    exit: str = Exit,
    exit_threshold: float = ExitThreshold,
    exit_risk: float = ExitRisk,
    exit_text: str = ExitText,
    exit_layers: int = ExitLayers,
    exit_heads: str = ExitHeads,
    exit_trace: Path = ExitTrace,
    cache: str = Cache,
    cache_group: int = CacheGroup,
    cache_residual: int = CacheResidual,
    deterministic: bool = typer.Option(
        False,
        "--deterministic",
        help="Give the tokens that the prompt gets in any batch, to the bit; slower in graphs.",
    ),
    backend: str = typer.Option("auto", help="How the model is run: auto, modules, program or graphs."),
    tokenizer: str = typer.Option(None, help="Folder or hub id of the tokenizer; the model's own if not given."),
    stats: bool = typer.Option(False, "--stats", help="Show counts and times on standard error."),
    device: str = Device,
    dtype: str = Dtype,
    json: bool = Json,
) -> None:
    """Continue a text with a model.

    What it writes, and nothing else, goes to standard output as it is made.
    """
    from hayless.core.options import checked
    from hayless.decode.options import SamplingOptions

    options = checked(
        SamplingOptions,
        {
            "max_tokens": tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "seed": seed,
            "stop": tuple(stop or ()),
            "ignore_end": ignore_end,
        },
        {name: f"--{name.replace('_', '-')}" for name in SamplingOptions.model_fields} | {"max_tokens": "--tokens"},
    )
    speculative = speculation(draft, self_draft, lookup, draft_tokens, draft_layers, preflight)
    early = early_exit(exit, exit_threshold, exit_risk, exit_text, exit_layers, exit_heads, exit_trace)
    quantized = quantized_cache(cache, cache_group, cache_residual)
    text = _prompt(prompt, prompt_file)
    from hayless.core.registry import method_of
    from hayless.decode.engine import Engine
    from hayless.measure.memory import enough_memory
    from hayless.model.load import check_tokenizer, load_model, load_tokenizer

    with enough_memory("Use a shorter prompt, fewer tokens, or another dtype."):
        words = load_tokenizer(tokenizer or model)
        loaded = load_model(model, device=device, dtype=dtype)
        check_tokenizer(loaded, words)
        part = method_of(speculative).load()(speculative, loaded, words, say=_remark) if speculative else None
        leaving: EarlyExit | None = method_of(early).load()(early, loaded, words, say=_remark) if early else None
        held: CachePart | None = method_of(quantized).load()(quantized, loaded, words) if quantized else None
        engine = Engine(
            loaded,
            words,
            backend=backend,  # type: ignore[arg-type]
            draft=part,
            exit=leaving,
            cache=held,
            deterministic=deterministic,
        )
        ids = engine.encode(text)
        path = engine.path
        made = _Made(len(ids))
        made.follow(engine.stream(ids, options), echo=not json)
    share = _share_of_limit(engine, made)
    about: dict[str, Any] = {"backend": path.backend, "reason": path.reason, "device": str(loaded.device)}
    about |= {"share_of_bandwidth_limit": share} | ({"speculation": part.document()} if part else {})
    about |= {"early_exit": leaving.document()} if leaving else {}
    about |= {"cache": quantized.model_dump(mode="json")} if quantized else {}
    if leaving and exit_trace and made.pieces:
        draw_trace(leaving, [str(words.decode([piece.token])) for piece in made.pieces], exit_trace)
    if json:
        emit({"model": model, **made.document(), **about, "options": options.model_dump(mode="json")})
    elif stats:
        prepared = "; its kernels were prepared first" if path.backend == "graphs" else ""
        rows = [] if share is None else [("limit", f"{share:.0%} of what the memory's bandwidth allows without drafts")]
        rows += [("drafts", str(part))] if part else []
        rows += [("early exit", str(leaving))] if leaving else []
        rows += [("cache", str(held))] if held else []
        rows += [("path", f"{path.backend} ({path.reason}{prepared})"), ("device", str(loaded.device))]
        table(["", ""], [*made.rows(), *rows], console=err)
    if made.finish == "interrupted":
        raise typer.Exit(_INTERRUPTED)


def _share_of_limit(engine: Engine, made: _Made) -> float | None:
    """The least time a token, all bytes of a step read once at the rate of a copy, over the time it took."""
    from hayless.core.errors import NotSupported
    from hayless.measure.machine import copy_bandwidth

    size = engine.step_bytes(made.prompt_tokens + len(made.pieces) // 2)
    each = made.seconds_per_token
    if size is None or each is None:
        return None
    try:
        return size / copy_bandwidth(engine.model.device) / each
    except NotSupported:
        return None


def _remark(text: str) -> None:
    err.print(text, style="dim", markup=False)


def _prompt(text: str | None, file: str | None) -> str:
    from hayless.core.errors import RequestError
    from hayless.data.documents import read_text

    if text is not None and file is not None:
        raise RequestError("--prompt and --prompt-file are both given.", hint="Give one of them.")
    if file is not None:
        return read_text(Path(file).expanduser())
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        raise RequestError("There is no text to continue.", hint="Give --prompt TEXT, or a text through a pipe.")
    try:
        piped = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"Standard input is not UTF-8 (at byte {error.start}).") from None
    if not piped:
        raise RequestError("Standard input is empty.", hint="Give --prompt TEXT; --prompt '' starts from nothing.")
    return piped


@dataclass(slots=True)
class _Made:
    """What was generated so far, and when; seconds count from the start."""

    prompt_tokens: int
    pieces: list[Piece] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    finish: str | None = None

    def follow(self, stream: Iterable[Piece], *, echo: bool) -> None:
        """Take pieces until the text ends or the user stops it; `echo` prints them."""
        start = time.perf_counter()
        try:
            for piece in stream:
                self.times.append(time.perf_counter() - start)
                self.pieces.append(piece)
                self.finish = piece.finish
                if echo:
                    _print(piece.text)
        except KeyboardInterrupt:
            self.finish = "interrupted"
        if echo and sys.stdout.isatty():
            _print("\n")

    @property
    def seconds_per_token(self) -> float | None:
        """Mean over the tokens after the first."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1) if len(self.times) > 1 else None

    def document(self) -> dict[str, Any]:
        """Text, tokens, figures."""
        each = self.seconds_per_token
        return {
            "text": "".join(piece.text for piece in self.pieces),
            "tokens": [piece.token for piece in self.pieces],
            "logprobs": [piece.logprob for piece in self.pieces],
            "finish": self.finish,
            "prompt_tokens": self.prompt_tokens,
            "first_token_seconds": self.times[0] if self.times else None,
            "ms_per_token": 1000 * each if each else None,
            "tokens_per_second": 1 / each if each else None,
        }

    def rows(self) -> list[tuple[str, str]]:
        """The figures in words."""
        from hayless.core.units import format_seconds
        from hayless.recipe.figures import number

        rows = [("prompt", f"{self.prompt_tokens:,} tokens"), ("generated", f"{len(self.pieces):,} tokens")]
        if self.times:
            rows.append(("first token", f"after {format_seconds(self.times[0])}"))
        if each := self.seconds_per_token:
            rows.append(("then", f"{number(1000 * each)} ms a token, {number(1 / each)} tokens/s"))
        return [*rows, ("ended by", _FINISH[self.finish or "interrupted"])]


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
