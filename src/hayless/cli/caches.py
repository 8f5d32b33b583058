"""Options about the cache, as the verbs that generate share them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from hayless.methods.decoding.kv.config import KVConfig

Cache = typer.Option(None, "--cache", help="Hold keys and values in 8, 4 or 2 bits: kv:8, kv:4 or kv:2.")
CacheGroup = typer.Option(None, "--cache-group", help="Numbers of the cache that share a scale; 32 if not given.")
CacheResidual = typer.Option(
    None, "--cache-residual", help="Latest tokens that stay in full precision; 128 if not given."
)


def quantized_cache(cache: str | None, group: int | None, residual: int | None) -> KVConfig | None:
    """What was asked for about the cache; None for a whole one. RequestError for what does not go together."""
    from hayless.core.errors import RequestError, bad_value
    from hayless.core.options import checked
    from hayless.methods.decoding.kv.config import KVConfig

    given = {name: value for name, value in (("group_size", group), ("residual", residual)) if value is not None}
    names = {"group_size": "--cache-group", "residual": "--cache-residual", "bits": "--cache"}
    if cache is None:
        for name in given:
            raise RequestError(f"{names[name]} is given without --cache.", hint="Add --cache kv:4.")
        return None
    method, _, bits = cache.partition(":")
    if method != "kv" or bits not in ("8", "4", "2"):
        raise bad_value("--cache", cache, allowed="kv:8, kv:4, kv:2")
    return checked(KVConfig, {"bits": int(bits), **given}, names)
