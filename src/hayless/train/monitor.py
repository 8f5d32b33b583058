"""What a run shows while it trains: a live line on a terminal, plain lines elsewhere, JSON lines always."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hayless.core.errors import MissingExtra
from hayless.core.units import format_bytes, format_count, format_seconds
from hayless.measure.memory import peak_bytes
from hayless.train.metrics import Kind, MetricsLog

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_LONG_WAIT = 0.02
"""The share of the time spent waiting for batches from which on it is shown."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One update: its own figures, and the run's counts so far.

    `loss` is in nats a unit; `tokens` are input tokens (padding not counted), `trained_tokens` those with a target,
    `padded_tokens` the rest of the batches; `seconds` of all parts of the run together, `waited` those that this update
    waited for its batch. `metrics` are means over units.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    trained_tokens: int
    padded_tokens: int
    seconds: float
    waited: float
    metrics: Mapping[str, float]


class Monitor:
    """Shows reports and writes them down. A context: the live line is there while it is open.

    The run has done `start` steps and seen `tokens` before. `flops_per_token` and `device_rate` (FLOP/s) give
    utilisation where both are known. MissingExtra where TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        log: MetricsLog,
        *,
        total: int,
        every: int,
        start: int,
        tokens: int,
        device: torch.device,
        flops_per_token: float | None,
        device_rate: float | None,
        console: Console,
        tensorboard: Path | None,
    ) -> None:
        self.log = log
        self._total = total
        self._every = every
        self._device = device
        self._flops_per_token = flops_per_token
        self._device_rate = device_rate
        self._console = console
        self._writer = _writer(tensorboard, purge_step=start + 1) if tensorboard else None
        self._mark = (time.perf_counter(), start, tokens)
        self._waited = 0.0
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=12), TextColumn("{task.fields[line]}"))
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=total, completed=start, line="")

    def __enter__(self) -> Self:
        self._mark = (time.perf_counter(), *self._mark[1:])
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._writer:
            self._writer.close()

    def step(self, report: StepReport) -> None:
        """Show one update; every n-th and the last are written down."""
        self._progress.update(self._task, completed=report.step)
        self._waited += report.waited
        if report.step % self._every and report.step != self._total:
            return
        now = time.perf_counter()
        before, steps_before, tokens_before = self._mark
        elapsed = max(now - before, 1e-9)
        rate = (report.tokens - tokens_before) / elapsed
        eta = elapsed / max(1, report.step - steps_before) * (self._total - report.step)
        waiting = self._waited / elapsed
        self._mark, self._waited = (now, report.step, report.tokens), 0.0
        fields = {
            "loss": report.loss,
            **report.metrics,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "tokens": report.tokens,
            "trained_tokens": report.trained_tokens,
            "padded_tokens": report.padded_tokens,
            "tokens_per_second": rate,
            "data_wait_share": waiting,
            "peak_bytes": peak_bytes(self._device),
            "mfu": self._utilisation(rate),
            "seconds": report.seconds,
            "eta_seconds": eta,
        }
        self._write("train", report.step, fields)
        line = self._line(fields)
        if self._console.is_terminal:
            self._progress.update(self._task, line=line)
        else:
            self.say(f"step {report.step}/{self._total}  {line}")

    def validation(self, step: int, fields: Mapping[str, Any], *, best: bool) -> None:
        """Show and write one validation."""
        self._write("validation", step, {**fields, "best": best})
        figures = "  ".join(f"{name} {value:.4f}" for name, value in fields.items() if isinstance(value, float))
        self.say(f"step {step}  held-out {figures}{'  (best)' if best else ''}")

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Show and write what the model makes of a fixed prompt."""
        self._write("sample", step, {"prompt": prompt, "text": text})
        self._console.print(f"[dim]step {step}[/dim]  [bold]{escape(prompt)}[/bold]{escape(text)}", highlight=False)

    def event(self, step: int, message: str) -> None:
        """Show and write that something happened."""
        self._write("event", step, {"message": message})
        self.say(message)

    def say(self, message: str) -> None:
        """Print a plain line above the live one."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _write(self, kind: Kind, step: int, fields: Mapping[str, Any]) -> None:
        self.log.write(kind, step, fields)
        if self._writer:
            for name, value in fields.items():
                if isinstance(value, float | int) and not isinstance(value, bool):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)
                elif kind == "sample" and name == "text":
                    self._writer.add_text(str(fields["prompt"]), str(value), step)

    def _utilisation(self, tokens_per_second: float) -> float | None:
        if self._flops_per_token is None or self._device_rate is None:
            return None
        return tokens_per_second * self._flops_per_token / self._device_rate

    def _line(self, fields: Mapping[str, Any]) -> str:
        parts = [
            f"loss {fields['loss']:.4f}",
            f"lr {fields['learning_rate']:.2e}",
            f"norm {fields['gradient_norm']:.2f}",
            f"{format_count(fields['tokens_per_second'])} tok/s",
            f"{format_count(fields['trained_tokens'])} trained, {format_count(fields['padded_tokens'])} padded",
            f"peak {format_bytes(fields['peak_bytes'])}",
        ]
        if fields["data_wait_share"] > _LONG_WAIT:
            parts.append(f"{fields['data_wait_share']:.0%} waiting for data")
        if fields["mfu"] is not None:
            parts.append(f"MFU {fields['mfu']:.1%}")
        return "  ".join([*parts, f"{format_seconds(fields['eta_seconds'])} left"])


def _writer(folder: Path, purge_step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", "track", "Writing TensorBoard events") from error
    return SummaryWriter(str(folder), purge_step=purge_step)
