"""Replacing modules of a model by path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from hayless.core.errors import RequestError, nearest


def get(model: nn.Module, path: str) -> nn.Module:
    """The module at `path`. RequestError for a path that the model does not have."""
    try:
        found = model.get_submodule(path)
    except AttributeError:
        near = nearest(path, (name for name, _ in model.named_modules()))
        raise RequestError(
            f"This {type(model).__name__} has no module {path!r}.", hint=f"Did you mean {near!r}?" if near else None
        ) from None
    return found


def replace(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put `module` at `path`, in the training mode of the one it replaces, and return that one.

    The new module takes the place of the old one in the order of children, so nn.Sequential and ModuleList keep theirs.
    RequestError for a path that does not exist and for the model itself.
    """
    old = get(model, path)
    module.train(old.training)
    _put(model, path, module)
    return old


@contextmanager
def replaced(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside the block `modules` stand at their paths; after it, however it ends, the model is as it was before: the
    same module objects with their own hooks and training modes.

    A path may lie inside another one only where that one's replacement has it too; outer ones are replaced first.
    """
    originals: dict[str, nn.Module] = {}
    modes: list[tuple[nn.Module, bool]] = []
    try:
        for path in sorted(modules, key=lambda path: path.count(".")):
            old = get(model, path)
            modes += [(part, part.training) for part in old.modules()]
            replace(model, path, modules[path])
            originals[path] = old
        yield
    finally:
        for path, old in reversed(originals.items()):
            _put(model, path, old)
        for part, training in modes:
            part.training = training


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    if not name:
        raise RequestError("The model itself cannot be replaced.", hint="Give the path of a module inside it.")
    model.get_submodule(parent)._modules[name] = module
