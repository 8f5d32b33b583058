"""A program in JavaScript from live Python functions: whatever they reach, and nothing else.

Functions and classes are translated from their source; everything else that they name is a value of a module, which is
written down as it is now. So what Python makes while it imports (tables, cards, defaults) needs no translation. Methods
of classes come along once some translated code uses an attribute of that name.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import json
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pydantic import BaseModel

from hayless.plan.javascript.classes import Class
from hayless.plan.javascript.names import Untranslatable, generates, literal, signature
from hayless.plan.javascript.statements import Function

_SAME_NAME: tuple[Any, ...] = (
    *(abs, all, any, bool, dict, divmod, enumerate, filter, float, frozenset, getattr, hasattr, int, iter, len, list),
    *(map, max, min, next, range, repr, reversed, round, set, sorted, str, sum, tuple, zip),
    *(Exception, ArithmeticError, IndexError, KeyError, StopIteration, TypeError, ValueError, ZeroDivisionError),
    *(math.ceil, math.exp, math.floor, math.gcd, math.isclose, math.isfinite, math.log, math.log2, math.log10),
    *(math.prod, math.sqrt, itertools.accumulate, itertools.chain, itertools.combinations, get_close_matches),
    *(dataclasses.fields, dataclasses.replace, importlib.import_module, Counter),
    functools.partial,
)
_RUNTIME: dict[Any, str] = {
    **{each: each.__name__ for each in _SAME_NAME},
    dict.fromkeys: "fromkeys",
    itertools.chain.from_iterable: "flattened",
    Mapping: "dict",
    Sequence: "list",
    Callable: "callable",
}
"""What the runtime has of Python's own."""
_RUNTIME_PARTS = ("values", "text", "objects", "functions")

_ALWAYS = ("__init__", "__post_init__", "__add__", "__iter__", "__len__", "__contains__", "__bool__", "__str__")
"""Methods that no code has to name."""


class Program:
    """JavaScript of everything that was asked for by `reference`.

    `instead`: live objects → others that are meant wherever the first are named. `missing` has what could not be
    translated and why; in the program it throws that reason when it is called.
    """

    def __init__(self, instead: Mapping[Any, Any] | None = None) -> None:
        self.missing: dict[str, str] = {}
        self._instead = {id(old): new for old, new in (instead or {}).items()}
        self._names: dict[int, str] = {}
        self._named: list[Any] = []  # what has a name stays alive, so that its id stays its own
        self._functions: dict[str, str] = {}
        self._classes: dict[str, Class] = {}
        self._values: dict[str, str] = {}
        self._modules: dict[str, dict[str, str]] = {}
        self._used: set[str] = set(_ALWAYS)
        self._waiting: deque[Callable[[], None]] = deque()

    def reference(self, value: Any, name: str) -> str:
        """A JavaScript expression for a live object, which becomes part of the program."""
        value = self._instead.get(id(value), value)
        if isinstance(value, Enum):
            return f"{self.reference(type(value), type(value).__name__)}.{value.name}"
        if value is None or isinstance(value, bool | int | float | str):
            return literal(value)
        if callable(value) and getattr(type(value), "__hash__", None) and value in _RUNTIME:
            return f"py.{_RUNTIME[value]}"
        if id(value) not in self._names:
            try:
                self._define(value, name)
            except Untranslatable:
                self._names.pop(id(value), None)
                raise
        return self._names[id(value)]

    def offer(self, module: str, *attributes: str) -> None:
        """Let `import_module(module)` find these attributes."""
        live = importlib.import_module(module)
        held = self._modules.setdefault(module, {})
        held.update({name: self.reference(getattr(live, name), name) for name in attributes})

    def use(self, attribute: str) -> None:
        """Note that some code uses an attribute of this name: methods of this name come along."""
        if attribute not in self._used:
            self._used.add(attribute)
            for each in self._classes.values():
                self._waiting.append(functools.partial(each.add, attribute))

    def source(self, function: FunctionType) -> tuple[ast.FunctionDef | ast.Lambda, Function]:
        """A function's tree, and what translates it."""
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        known = {**function.__globals__, **{name: cell.cell_contents for name, cell in cells}}
        file = inspect.getsourcefile(function) or ""
        return _tree(file, function), Function(self, known, "/".join(Path(file).parts[-2:]))

    def text(self) -> str:
        """The program, whole. `runtime()` comes before it."""
        while self._waiting:
            self._waiting.popleft()()
        methods = {name for each in self._classes.values() for name in each.methods}
        bases = {each.base for each in self._classes.values()}
        parts = [each.text(extended=each.kind in bases) for each in self._classes.values()]
        parts += [*self._functions.values(), *self._values.values()]
        for module, held in self._modules.items():
            attributes = ", ".join(f"{name}: {form}" for name, form in held.items())
            parts.append(f"py.modules[{json.dumps(module)}] = {{{attributes}}};\n")
        # An attribute that may be a method is loaded bound to its owner.
        text = re.sub("\x01(\\w+)\x02", lambda found: "py.load(" if found[1] in methods else "", "".join(parts))
        return re.sub(
            "\x03(\\w+)\x02", lambda found: f', "{found[1]}")' if found[1] in methods else f".{found[1]}", text
        )

    def _define(self, value: Any, name: str) -> None:
        function = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value
        if isinstance(value, ModuleType):
            raise Untranslatable(f"The module {value.__name__} stands for a value.")
        if isinstance(value, type):
            given = self._name(value, f"{_room(value)}${value.__qualname__}")
            found = Class(self, given, value)
            self._classes[given] = found
            for attribute in vars(value):
                if attribute in self._used:
                    self._waiting.append(functools.partial(found.add, attribute))
        elif isinstance(function, FunctionType):
            given = self._name(value, f"{_room(function)}${function.__qualname__}")
            self._waiting.append(lambda: self._functions.update({given: self._function(given, function)}))
        else:
            given = self._name(value, f"{type(value).__name__}${name}")
            self._values[given] = f"const {given} = {self._value(value)};\n"  # after what it is made of

    def _name(self, value: Any, wish: str) -> str:
        wish = re.sub(r"[^\w$]", "_", wish.replace(".", "$").replace("<", "").replace(">", ""))
        taken = set(self._names.values())
        wishes = itertools.chain([wish], (f"{wish}{n}" for n in itertools.count(2)))
        self._names[id(value)] = next(each for each in wishes if each not in taken)
        self._named.append(value)
        return self._names[id(value)]

    def _function(self, name: str, function: FunctionType) -> str:
        try:
            node, translator = self.source(function)
            if isinstance(node, ast.Lambda):
                form = translator.lambda_form(node)
                if translator.temporaries:
                    names = ", ".join(f"$t{n}" for n in range(translator.temporaries))
                    form = f"(() => {{ let {names}; return {form}; }})()"
                form = f"const {name} = {form};\n"
            else:
                form = f"function{'*' if generates(node) else ''} {name}{translator.form(node, bound=False)}\n"
            return f"{form}{name}.$signature = {signature(node, bound=False)};\n"
        except Untranslatable as error:
            self.missing[name] = error.message
            return f"function {name}() {{ throw new py.Missing({json.dumps(error.message)}); }}\n"

    def _value(self, value: Any) -> str:
        """How a value is written down; functions, classes and members of enumerations are named."""

        def part(of: Any) -> str:
            named = of is None or callable(of) or isinstance(of, bool | int | float | str | Enum)
            return self.reference(of, "value") if named else self._value(of)

        if isinstance(value, Mapping):
            return f"new py.Dict([{', '.join(f'[{part(key)}, {part(held)}]' for key, held in value.items())}])"
        if isinstance(value, list | tuple):
            return f"[{', '.join(part(each) for each in value)}]"
        if isinstance(value, set | frozenset):
            return f"new py.PySet([{', '.join(sorted(part(each) for each in value))}])"
        if isinstance(value, functools.partial):
            named = ", ".join(f"{json.dumps(name)}: {part(each)}" for name, each in value.keywords.items())
            first = ", ".join([part(value.func), *(part(each) for each in value.args)])
            return f"py.partial({first}, new py.Named({{{named}}}))"
        kind = type(value)
        if isinstance(value, BaseModel):
            names = list(kind.model_fields)
        elif dataclasses.is_dataclass(value):
            names = [each.name for each in dataclasses.fields(value)]
        else:
            raise Untranslatable(f"A value of the type {kind.__qualname__} has no form in JavaScript here.")
        parts = ", ".join(f"{name}: {part(getattr(value, name))}" for name in names)
        return f"py.make({self.reference(kind, kind.__name__)}, {{{parts}}})"


def runtime() -> str:
    """What every program needs before it: Python's meaning of operations, types and functions."""
    folder = files("hayless.plan.javascript") / "runtime"
    return "\n".join((folder / f"{part}.js").read_text(encoding="utf-8") for part in _RUNTIME_PARTS)


def _room(value: Any) -> str:
    return "_".join(value.__module__.split(".")[-2:])


@cache
def _trees(file: str) -> dict[tuple[int, str], list[ast.FunctionDef | ast.Lambda]]:
    """Functions of a file by first line and name."""
    found: dict[tuple[int, str], list[ast.FunctionDef | ast.Lambda]] = {}
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            line = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            found.setdefault((line, node.name), []).append(node)
        elif isinstance(node, ast.Lambda):
            found.setdefault((node.lineno, "<lambda>"), []).append(node)
    return found


def _tree(file: str, function: FunctionType) -> ast.FunctionDef | ast.Lambda:
    code = function.__code__
    found = _trees(file).get((code.co_firstlineno, code.co_name), [])
    if len(found) != 1:
        raise Untranslatable(f"{file}:{code.co_firstlineno}: {code.co_name} is there {len(found)} times.")
    return found[0]
