"""Packed folders under transformers' own names: `AutoConfig` and the Auto classes read them once hayless is imported.

`import hayless` must import neither torch nor transformers, so nothing is registered then: `install` leaves a note with
Python's import system, and the two modules of transformers that keep the tables are completed when they are imported,
whenever that is. No torch here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_TABLES = ("transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto")


def install() -> None:
    """Register packed models with transformers: at once where it is loaded, else when it is."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    for name in _TABLES:
        if name in sys.modules:
            _complete(name)
    sys.meta_path.insert(0, _Finder())


def _complete(name: str) -> None:
    from hayless.model import auto

    steps: dict[str, Callable[[], None]] = dict(zip(_TABLES, (auto.register_config, auto.register_models), strict=True))
    steps[name]()


class _Finder(MetaPathFinder):
    """Finds nothing itself: it asks the others for the two modules, and has them completed after they have run."""

    def __init__(self) -> None:
        self._asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of one of the two modules, None for any other."""
        if fullname not in _TABLES or self._asking:
            return None
        self._asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Completing(spec.loader)
        return spec


class _Completing(Loader):
    """Runs a module, then completes it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does it."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the module's own loader does it; then its tables are completed."""
        self._loader.exec_module(module)
        _complete(module.__name__)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)
