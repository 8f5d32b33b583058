"""`hayless methods`: what is there."""

from __future__ import annotations

from typing import Any

import typer

from hayless.cli.output import Json, emit, out


def methods(name: str = typer.Argument("", help="Show one method in full."), json: bool = Json) -> None:
    """List every technique, or show one: options, paper, what it changes and what it goes with."""
    from hayless.core import registry

    found = [registry.find(name)] if name else registry.methods()
    cards = [_card(method) for method in found]
    if json:
        emit(cards[0] if name else cards)
    elif name:
        _show(cards[0])
    else:
        _list(cards)


def _card(method: Any) -> dict[str, Any]:
    from hayless.core.method import Part

    transform = method.part is Part.TRANSFORM
    default = method.config(method=method.name) if transform else None
    return {
        "name": method.name,
        "kind": method.part.kind,
        "part": method.part.value,
        "summary": method.summary,
        "paper": str(method.paper) if method.paper else None,
        "options": [
            {
                "name": field,
                "type": _type_name(info.annotation),
                "default": None if info.is_required() else info.get_default(call_default_factory=True),
                "doc": info.description or "",
            }
            for field, info in method.config.model_fields.items()
            if field != "method"
        ],
        "claims": [{"aspect": claim.aspect.value, "roles": sorted(claim.roles)} for claim in method.claims(default)]
        if transform
        else [],
        "needs": [need.value for need in method.needs],
        "composes_with": _companions(default) if default else None,
    }


def _companions(config: Any) -> dict[str, str]:
    """Every transform → in which order it goes with this one, or why it does not."""
    from hayless.core.compose import compose, conflict
    from hayless.core.method import Part
    from hayless.core.registry import methods as all_methods

    found = {}
    for other in all_methods([Part.TRANSFORM]):
        theirs = other.config(method=other.name)
        reason = conflict(config, theirs)
        found[other.name] = f"no: {reason}" if reason else " → ".join(c.method for c in compose([config, theirs]))
    return found


def _type_name(annotation: Any) -> str:
    name = getattr(annotation, "__name__", str(annotation)) if not hasattr(annotation, "__args__") else str(annotation)
    return name.replace("typing.", "").replace("hayless.core.roles.", "")


def _list(cards: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("method", "part", "what it does", "paper"):
        table.add_column(title, overflow="fold")
    for card in cards:
        table.add_row(card["name"], card["part"], card["summary"], card["paper"] or "")
    out.print(table)
    out.print("\nOptions of one: hayless methods NAME", style="dim")


def _show(card: dict[str, Any]) -> None:
    from rich.table import Table

    out.print(f"[bold]{card['name']}[/bold] ({card['part']}): {card['summary']}")
    if card["paper"]:
        out.print(card["paper"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("option", "default", "meaning"):
        table.add_column(title, overflow="fold")
    for option in card["options"]:
        default = option["default"]
        shown = ", ".join(map(str, default)) if isinstance(default, list | tuple | set | frozenset) else str(default)
        table.add_row(option["name"], shown, option["doc"])
    if card["options"]:
        out.print(table)
    for claim in card["claims"]:
        out.print(f"changes the {claim['aspect']} of {', '.join(claim['roles'])}")
    if card["needs"]:
        out.print(f"needs {', '.join(card['needs'])}")
    for other, how in (card["composes_with"] or {}).items():
        out.print(f"with {other}: {how}", style="dim")
