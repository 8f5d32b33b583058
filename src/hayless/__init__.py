"""hayless: make language models cheaper to train, fine-tune, compress and run, and measure what every saving costs.

The Python API is what the command line uses: `load` a model, `apply` methods to it, `save` it, `run` a recipe,
`compare` the rows of a study. Each is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hayless.model import registration
from hayless.version import __version__

if TYPE_CHECKING:
    from hayless.api import apply, compare, load, load_and_pack, load_tokenizer, method, run, save

__all__ = ["__version__", "apply", "compare", "load", "load_and_pack", "load_tokenizer", "method", "run", "save"]

registration.install()


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("hayless.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
