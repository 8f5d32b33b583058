"""Options about drafts, as the verbs that generate share them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from hayless.methods.decoding.speculative.config import SpeculativeConfig

Draft = typer.Option(None, help="Draft with this model, a folder or hub id, and check several tokens at once.")
SelfDraft = typer.Option(False, "--self-draft", help="Draft with the model's own first layers.")
Lookup = typer.Option(False, "--lookup", help="Draft with what followed the same words before.")
DraftTokens = typer.Option("auto", help="Tokens drafted at a time, 1 to 16; auto measures what is fastest.")
DraftLayers = typer.Option(None, help="Layers that --self-draft goes through; a quarter if not given.")


def speculation(
    draft: str | None, self_draft: bool, lookup: bool, tokens: str, layers: int | None, preflight: bool
) -> SpeculativeConfig | None:
    """What was asked for about drafts; None where there are none."""
    from hayless.core.errors import RequestError
    from hayless.core.options import checked
    from hayless.methods.decoding.speculative.config import LOOKUP, SELF, SpeculativeConfig

    asked = [name for name in (draft, SELF if self_draft else None, LOOKUP if lookup else None) if name is not None]
    if len(asked) > 1:
        raise RequestError("--draft, --self-draft and --lookup exclude each other.", hint="Give one of them.")
    given = {"--draft-tokens": tokens != "auto", "--draft-layers": layers is not None, "--no-preflight": not preflight}
    if not asked:
        for name, there in given.items():
            if there:
                raise RequestError(f"{name} is given without a draft.", hint="Add --draft, --self-draft or --lookup.")
        return None
    if layers is not None and not self_draft:
        raise RequestError("--draft-layers goes with --self-draft.", hint="Leave it out, or draft with --self-draft.")
    values = {"draft": asked[0], "tokens": tokens, "layers": layers, "preflight": preflight}
    names = {"tokens": "--draft-tokens", "layers": "--draft-layers", "draft": "--draft"}
    return checked(SpeculativeConfig, values, names)
