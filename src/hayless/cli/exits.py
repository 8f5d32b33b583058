"""What the verbs that make text ask for about early exits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hayless.cli.inputs import picture_form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hayless.methods.decoding.early_exit.config import EarlyExitConfig
    from hayless.methods.decoding.early_exit.part import EarlyExit

Exit = typer.Option(
    None, "--exit", help="Let tokens leave early, by softmax, state, classifier or schedule; this changes the text."
)
ExitThreshold = typer.Option(
    None, "--exit-threshold", help="Leave where confidence is at least this; 0.9 if not given."
)
ExitRisk = typer.Option(
    None, "--exit-risk", help="Or find it: at most this share of tokens differs; needs --exit-text."
)
ExitText = typer.Option(
    None, "--exit-text", help="Text to find it on, a file or folder; classifier learns from it, too."
)
ExitLayers = typer.Option(None, "--exit-layers", help="Layers that every token goes through; a quarter if not given.")
ExitHeads = typer.Option(
    "shared", "--exit-heads", help="learnt: before the model's head, a map for each layer, fitted to --exit-text."
)
ExitTrace = typer.Option(None, "--exit-trace", help="Draw the layer each token left at into this .svg or .png file.")


def early_exit(
    confidence: str | None,
    threshold: float | None,
    risk: float | None,
    text: str | None,
    layers: int | None,
    heads: str,
    trace: Path | None,
) -> EarlyExitConfig | None:
    """What was asked for; None where there are no exits. RequestError for what does not go together."""
    from hayless.core.errors import RequestError
    from hayless.core.options import checked
    from hayless.methods.decoding.early_exit.config import EarlyExitConfig

    wanted = {"threshold": threshold, "risk": risk, "text": text, "least": layers, "heads": heads}
    given = {name: value for name, value in wanted.items() if value not in (None, "shared")}
    names = {name: f"--exit-{name}" for name in wanted} | {"confidence": "--exit", "least": "--exit-layers"}
    if confidence is None:
        for option in [names[name] for name in given] + (["--exit-trace"] if trace else []):
            raise RequestError(f"{option} is given without --exit.", hint="Add --exit softmax, or another confidence.")
        return None
    if threshold is not None and risk is not None:
        raise RequestError("--exit-threshold and --exit-risk exclude each other.", hint="Give one of them.")
    picture_form(trace, option="--exit-trace")
    return checked(EarlyExitConfig, {"confidence": confidence, **given}, names)


def draw_trace(leaving: EarlyExit, tokens: Sequence[str], target: Path) -> None:
    """Draw behind which layer each token of the last text left."""
    from hayless.core import atomic
    from hayless.methods.decoding.early_exit.picture import draw

    layers = leaving.traces[-1][: len(tokens)]
    atomic.write_bytes(target, draw(layers, tokens, leaving.layers, str(leaving), picture_form(target)))
