"""Names and literals: what Python code means by a name, where that is certain before it runs."""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hayless.core.errors import WorkError

if TYPE_CHECKING:
    from hayless.plan.javascript.program import Program

_WORDS = """
arguments await case catch const debugger default delete do enum eval export extends function in instanceof let new null
package private protected public py static super switch this throw true typeof undefined var void
"""
_RESERVED = frozenset(_WORDS.split())
"""Words of JavaScript that are names in Python."""


class Untranslatable(WorkError):
    """Python code that has no form in JavaScript here."""


class _Unknown:
    """What is known only when the code runs."""


UNKNOWN = _Unknown()


class Names:
    """The names of one function. `known` are its globals and what it closes over, as live objects."""

    def __init__(self, program: Program, known: Mapping[str, Any], file: str) -> None:
        self.program = program
        self.file = file
        """Where the function stands."""
        self._known = known
        self.scopes: list[set[str]] = []
        """Names that are local: the function's, and those of functions, lambdas and comprehensions inside."""
        self.imports: dict[str, Any] = {}
        """What import statements inside the function bring."""
        self.temporaries = 0

    def local(self, name: str) -> bool:
        """Whether a name is a variable of the function."""
        return name not in self.imports and any(name in scope for scope in self.scopes)

    def static(self, node: ast.expr) -> Any:
        """The live object that an expression names, where that is certain before it runs."""
        if isinstance(node, ast.Name) and not self.local(node.id):
            for known in (self.imports, self._known, vars(builtins)):
                if node.id in known:
                    return known[node.id]
            raise self.refuse(node, f"the name {node.id}")
        if isinstance(node, ast.Attribute):
            owner = self.static(node.value)
            if isinstance(owner, ModuleType | type) and hasattr(owner, node.attr):
                return getattr(owner, node.attr)
        return UNKNOWN

    def temporary(self) -> str:
        """A JavaScript variable of its own."""
        self.temporaries += 1
        return f"$t{self.temporaries - 1}"

    def refuse(self, node: ast.AST, what: str) -> Untranslatable:
        """The error for code that has no form."""
        return Untranslatable(f"{self.file}:{getattr(node, 'lineno', 0)}: {what} has no form in JavaScript here.")


def signature(node: ast.FunctionDef | ast.Lambda, *, bound: bool) -> str:
    """Names of parameters as `py.call` needs them to place arguments that are given by name."""
    arguments = node.args
    names = [argument.arg for argument in [*arguments.posonlyargs, *arguments.args][bound:]]
    if not packed(arguments):
        return json.dumps(names + [argument.arg for argument in arguments.kwonlyargs])
    named = [argument.arg for argument in arguments.kwonlyargs]
    rest, others = bool(arguments.vararg), bool(arguments.kwarg)
    return f"py.packed({json.dumps(names)}, {json.dumps(named)}, {json.dumps(rest)}, {json.dumps(others)})"


def packed(arguments: ast.arguments) -> bool:
    """Whether arguments arrive as one list: JavaScript has nothing after `...rest`."""
    return bool(arguments.kwarg or (arguments.vararg and arguments.kwonlyargs))


def literal(value: Any) -> str:
    """A number, text, True, False or None in JavaScript."""
    if value is None or value is Ellipsis:
        return "null"
    if isinstance(value, bool | str):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value).replace("inf", "Infinity").replace("nan", "NaN")
    if isinstance(value, int) and abs(value) < 2**53:
        return str(value)
    raise Untranslatable(f"{value!r} is no number that JavaScript holds exactly.")


def generates(node: ast.FunctionDef) -> bool:
    """Whether a function is a generator."""
    return any(isinstance(each, ast.Yield | ast.YieldFrom) for each in _within(node.body))


def mangled(name: str) -> str:
    """A name that JavaScript takes."""
    return f"{name}$" if name in _RESERVED else name


def assigned(body: Iterable[ast.stmt]) -> set[str]:
    """Names that statements assign to, those of functions inside included, and what these assign left out."""
    found: set[str] = set()
    outer: set[str] = set()
    for node in _within(body):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ExceptHandler) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.Nonlocal):
            outer.update(node.names)
    return found - outer


def _within(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes, but of functions and comprehensions inside only what belongs to this function as well."""
    for node in body:
        yield node
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            yield from (each for each in ast.walk(node) if isinstance(each, ast.NamedExpr))
            yield from (each.target for each in ast.walk(node) if isinstance(each, ast.NamedExpr))
            continue
        yield from _within(ast.iter_child_nodes(node))
