"""The model card that a receipt stands in: Markdown with a header of metadata that hubs read. No torch.

What people wrote into a card is kept, in the header and below it; only the receipt's own section is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hayless.core import atomic
from hayless.core.errors import FileDamaged

_SECTION = re.compile(r"\n*<!-- hayless receipt -->.*?<!-- /hayless receipt -->\n?", re.DOTALL)
_HEADER = re.compile(r"---\n.*?\n---\n", re.DOTALL)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def with_section(card: str, section: str, name: str) -> str:
    """A model card with `section` as its receipt: the old receipt replaced, everything else kept."""
    block = f"<!-- hayless receipt -->\n{section}<!-- /hayless receipt -->\n"
    if _SECTION.search(card):
        return _SECTION.sub(lambda match: f"\n\n{block}", card, count=1).lstrip("\n")
    header = _HEADER.match(card)
    if card[header.end() :].strip() if header else card.strip():
        return f"{card.rstrip()}\n\n{block}"
    return f"{header[0] if header else ''}\n# {plain(name)}\n\n{block}".lstrip("\n")


def with_metadata(card: str, *, library: str, tags: Sequence[str] = (), base_model: str | None = None) -> str:
    """A model card whose header names library, tags and base model, in the form that the hub reads.

    What the header says already is kept, and tags are added to its own. A header that is no YAML mapping, or that the
    hub's own reader refuses, is left as it is.
    """
    from huggingface_hub import ModelCard, ModelCardData
    from yaml import YAMLError

    if not _HEADER.match(card):
        found = ModelCardData(library_name=library, tags=["hayless", *tags], base_model=base_model)
        return f"---\n{found.to_yaml()}\n---\n\n{card}"
    try:
        read = ModelCard(card)
        data: Any = read.data
    except (ValueError, TypeError, YAMLError):
        return card
    own = data.tags if isinstance(data.tags, list) else []
    data.tags = list(dict.fromkeys([*own, "hayless", *tags]))
    data.library_name = data.library_name or library
    data.base_model = data.base_model or base_model
    return str(read.content)


def library_of(model: Path) -> str:
    """The library that loads a saved model: peft for an adapter, hayless for packed weights, else transformers."""
    if (model / "adapter_config.json").exists():
        return "peft"
    try:
        config = atomic.read_json(model / "config.json")
    except (FileDamaged, OSError):
        return "transformers"
    return "hayless" if isinstance(config, dict) and config.get("model_type") == "hayless" else "transformers"


def base_of(recipe: Mapping[str, Any]) -> str | None:
    """The hub's id of the model that a recipe (as plain data) starts from; None for a local folder or a new model.

    A path counts as an id when the hub's cache on this machine holds that model: the run has fetched it.
    """
    from huggingface_hub import try_to_load_from_cache

    section = recipe.get("model")
    path, revision = (section.get("path"), section.get("revision")) if isinstance(section, Mapping) else (section, None)
    if not isinstance(path, str) or not _HUB_ID.fullmatch(path) or Path(path).exists():
        return None
    cached = try_to_load_from_cache(path, "config.json", revision=revision if isinstance(revision, str) else None)
    return path if isinstance(cached, str) else None


def transforms_of(recipe: Mapping[str, Any]) -> list[str]:
    """The names of the methods that a recipe (as plain data) applies to its model, in order."""
    steps = recipe.get("steps")
    found = [step.get("apply") for step in steps if isinstance(step, Mapping)] if isinstance(steps, list) else []
    names = [config.get("method") if isinstance(config, Mapping) else config for config in found]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def plain(text: str) -> str:
    """Text for Markdown that may come from anywhere: no markup, no table breaks, no HTML."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)
