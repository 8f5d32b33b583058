"""Expressions of Python in JavaScript.

Every operation whose meaning differs between the languages becomes a call of the runtime (`py.add`, `py.truth`,
`py.item`, …), so that lists add, empty lists are false and −1 is the last place there as well.
"""

from __future__ import annotations

import ast
import json
import typing
from collections import Counter
from enum import Enum
from typing import Any

from hayless.plan.javascript.names import UNKNOWN, Names, literal, mangled

_BINARY = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
    ast.LShift: "shl",
    ast.RShift: "shr",
    ast.BitOr: "or",
    ast.BitAnd: "and",
}
_COMPARE = {
    ast.Eq: "py.eq({}, {})",
    ast.NotEq: "!py.eq({}, {})",
    ast.Lt: "py.lt({}, {})",
    ast.LtE: "py.le({}, {})",
    ast.Gt: "py.lt({1}, {0})",
    ast.GtE: "py.le({1}, {0})",
    ast.In: "py.contains({1}, {0})",
    ast.NotIn: "!py.contains({1}, {0})",
    ast.Is: "({} === {})",
    ast.IsNot: "({} !== {})",
}
_TRUE_OR_FALSE = frozenset({"isinstance", "any", "all", "hasattr", "bool"})
_OF_BUILTINS = frozenset(
    name for kind in (str, list, dict, set, frozenset, tuple, int, float) for name in dir(kind) if name[0] != "_"
)
"""Methods that Python's own types have: the runtime looks at what it was given."""


class Expressions(Names):
    """Translates expressions. One method for each kind, by the name of its class in `ast`."""

    def expression(self, node: ast.expr) -> str:
        """Any expression."""
        found = getattr(self, f"_{type(node).__name__.lower()}", None)
        if found is None:
            raise self.refuse(node, type(node).__name__)
        return str(found(node))

    def condition(self, node: ast.expr) -> str:
        """An expression of which only the truth is asked."""
        if isinstance(node, ast.BoolOp):
            operator = " && " if isinstance(node.op, ast.And) else " || "
            return f"({operator.join(self.condition(each) for each in node.values)})"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return f"!({self.condition(node.operand)})"
        sure = isinstance(node, ast.Compare) or (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _TRUE_OR_FALSE
        )
        return self.expression(node) if sure else f"py.truth({self.expression(node)})"

    def _constant(self, node: ast.Constant) -> str:
        return literal(node.value)

    def _name(self, node: ast.Name) -> str:
        if self.local(node.id):
            return mangled(node.id)
        return self.program.reference(self.static(node), node.id)

    def _attribute(self, node: ast.Attribute) -> str:
        found = self.static(node)
        if found is not UNKNOWN:
            return self.program.reference(found, node.attr)
        if node.attr.startswith("__"):
            raise self.refuse(node, node.attr)
        self.program.use(node.attr)
        # Whether this may be a method, which must then be bound, is known when the program is whole.
        return f"\x01{node.attr}\x02{self.expression(node.value)}\x03{node.attr}\x02"

    def _boolop(self, node: ast.BoolOp) -> str:
        found = self.expression(node.values[-1])
        for value in reversed(node.values[:-1]):
            held = self.temporary()
            test = f"py.truth({held} = {self.expression(value)})"
            found = f"({test} ? {found} : {held})" if isinstance(node.op, ast.And) else f"({test} ? {held} : {found})"
        return found

    def _unaryop(self, node: ast.UnaryOp) -> str:
        if isinstance(node.op, ast.Not):
            return self.condition(node)
        if isinstance(node.op, ast.USub):
            return f"(-{self.expression(node.operand)})"
        raise self.refuse(node, type(node.op).__name__)

    def _binop(self, node: ast.BinOp) -> str:
        name = self.operator(node, node.op)
        return f"py.{name}({self.expression(node.left)}, {self.expression(node.right)})"

    def _compare(self, node: ast.Compare) -> str:
        left, parts = self.expression(node.left), []
        for operator, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.expression(right_node)
            held = right
            if right_node is not node.comparators[-1] and not isinstance(right_node, ast.Name | ast.Constant):
                # It is compared twice, and computed once.
                held = self.temporary()
                right = f"({held} = {right})"
            equality = "==" if isinstance(operator, ast.Is) else "!="
            if isinstance(operator, ast.Is | ast.IsNot) and right == "null":
                parts.append(f"({left} {equality} null)")
            else:
                parts.append(_COMPARE[type(operator)].format(left, right))
            left = held
        return parts[0] if len(parts) == 1 else f"({' && '.join(parts)})"

    def _ifexp(self, node: ast.IfExp) -> str:
        return f"({self.condition(node.test)} ? {self.expression(node.body)} : {self.expression(node.orelse)})"

    def _namedexpr(self, node: ast.NamedExpr) -> str:
        return f"({mangled(node.target.id)} = {self.expression(node.value)})"

    def _tuple(self, node: ast.Tuple | ast.List) -> str:
        return f"[{', '.join(self.expression(each) for each in node.elts)}]"

    _list = _tuple

    def _starred(self, node: ast.Starred) -> str:
        return f"...{self.expression(node.value)}"

    def _set(self, node: ast.Set) -> str:
        return f"new py.PySet([{', '.join(self.expression(each) for each in node.elts)}])"

    def _dict(self, node: ast.Dict) -> str:
        pairs = [
            f"[{self.expression(key)}, {self.expression(value)}]" if key else f"...py.items({self.expression(value)})"
            for key, value in zip(node.keys, node.values, strict=True)
        ]
        return f"new py.Dict([{', '.join(pairs)}])"

    def _subscript(self, node: ast.Subscript) -> str:
        owner = self.expression(node.value)
        if isinstance(node.slice, ast.Slice):
            ends = (node.slice.lower, node.slice.upper, node.slice.step)
            return f"py.slice({owner}, {', '.join(self.expression(end) if end else 'null' for end in ends)})"
        return f"py.item({owner}, {self.expression(node.slice)})"

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        parts = ['""', *(self.expression(each) for each in node.values)]
        return f"({' + '.join(parts)})"

    def _formattedvalue(self, node: ast.FormattedValue) -> str:
        value = self.expression(node.value)
        if node.conversion == ord("r"):
            value = f"py.repr({value})"
        return f"py.format({value}, {self.expression(node.format_spec)})" if node.format_spec else f"py.str({value})"

    def _yield(self, node: ast.Yield) -> str:
        return f"(yield {self.expression(node.value) if node.value else 'null'})"

    def _yieldfrom(self, node: ast.YieldFrom) -> str:
        return f"(yield* {self.expression(node.value)})"

    def _listcomp(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp) -> str:
        return self._comprehension(node.generators, [node.elt])

    def _generatorexp(self, node: ast.GeneratorExp) -> str:
        """Made at once: expressions here have no effects, so when they are computed makes no difference."""
        return f"{self._listcomp(node)}.values()"

    def _setcomp(self, node: ast.SetComp) -> str:
        return f"new py.PySet({self._listcomp(node)})"

    def _dictcomp(self, node: ast.DictComp) -> str:
        return f"new py.Dict({self._comprehension(node.generators, [node.key, node.value])})"

    def _comprehension(self, loops: list[ast.comprehension], made: list[ast.expr]) -> str:
        """An array of one expression, or of pairs."""
        text, scopes = "", len(self.scopes)
        for loop in loops:
            over = self.expression(loop.iter)
            self.scopes.append({each.id for each in ast.walk(loop.target) if isinstance(each, ast.Name)})
            text += f"for (const {self.target(loop.target)} of {over}) "
            text += "".join(f"if ({self.condition(test)}) " for test in loop.ifs)
        parts = [self.expression(each) for each in made]
        del self.scopes[scopes:]
        pushed = parts[0] if len(parts) == 1 else f"[{parts[0]}, {parts[1]}]"
        return f"(() => {{ const $made = []; {text}$made.push({pushed}); return $made; }})()"

    # Calls

    def _call(self, node: ast.Call) -> str:
        if isinstance(node.func, ast.Attribute) and _is_super(node.func.value):
            name = "$init" if node.func.attr == "__init__" else node.func.attr
            return self._called(f"super.{name}", node, owner="this")
        found = self.static(node.func)
        if found is isinstance:
            return f"py.isinstance({self.expression(node.args[0])}, {self._kinds(node.args[1])})"
        if found is typing.cast:
            return self.expression(node.args[1])
        if found is object.__setattr__:
            owner, field, value = node.args
            return f"({self.expression(owner)}.{ast.literal_eval(field)} = {self.expression(value)})"
        if found is not UNKNOWN:
            return self._called_by_name(found, node)
        if isinstance(node.func, ast.Attribute):
            self.program.use(node.func.attr)
            owner_form = self.expression(node.func.value)
            name, positional = json.dumps(node.func.attr), ", ".join(self._positional(node))
            if node.keywords:
                return f"py.invoke({owner_form}, {name}, [{positional}], {self._named(node)})"
            starred = any(isinstance(each, ast.Starred) for each in node.args)
            if node.func.attr in _OF_BUILTINS and len(node.args) <= 3 and not starred:
                return f"py.method({', '.join([owner_form, name, *self._positional(node)])})"
            return f"{owner_form}.{node.func.attr}({positional})"
        return self._called(self.expression(node.func), node)

    def _called_by_name(self, found: Any, node: ast.Call) -> str:
        """A call of a function or class that is known now."""
        owner = self.static(node.func.value) if isinstance(node.func, ast.Attribute) else None
        if isinstance(owner, type) and owner.__module__ != "builtins" and not isinstance(found, type):
            assert isinstance(node.func, ast.Attribute)
            self.program.use(node.func.attr)
            kind = self.program.reference(owner, owner.__name__)
            return self._called(f"{kind}.{node.func.attr}", node, owner=kind)
        form = self.program.reference(found, ast.unparse(node.func))
        made = isinstance(found, type) and issubclass(found, BaseException | Counter)
        if form.startswith("py.") and not made:
            return f"{form}({', '.join(self._arguments(node))})"
        if not isinstance(found, type):
            return self._called(form, node)
        if issubclass(found, Enum):
            return f"{form}.of({', '.join(self._positional(node))})"
        if node.keywords:
            return f"py.create({form}, [{', '.join(self._positional(node))}], {self._named(node)})"
        return f"new {form}({', '.join(self._positional(node))})"

    def _called(self, form: str, node: ast.Call, owner: str = "null") -> str:
        positional = ", ".join(self._positional(node))
        if not node.keywords:
            return f"{form}({positional})"
        return f"py.call({form}, [{positional}], {self._named(node)}, {owner})"

    def _positional(self, node: ast.Call) -> list[str]:
        return [self.expression(each) for each in node.args]

    def _arguments(self, node: ast.Call) -> list[str]:
        """For functions of the runtime: what is given by name comes last, as one object."""
        named = [f"new py.Named({self._named(node)})"] if node.keywords else []
        return [*self._positional(node), *named]

    def _named(self, node: ast.Call) -> str:
        parts = [
            f"{json.dumps(each.arg)}: {self.expression(each.value)}"
            if each.arg
            else f"...py.named({self.expression(each.value)})"
            for each in node.keywords
        ]
        return f"{{{', '.join(parts)}}}"

    def _kinds(self, node: ast.expr) -> str:
        """The second argument of isinstance."""
        if isinstance(node, ast.BinOp):
            return f"[{self._kinds(node.left)}, {self._kinds(node.right)}]"
        return f"[{self.expression(node)}]"

    def lambda_form(self, node: ast.Lambda) -> str:
        """`(a) => …`."""
        defaults = self.defaults(node.args)
        names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if node.args.kwarg:
            raise self.refuse(node, "a lambda with **")
        heads = [mangled(name) + (f" = {defaults[name]}" if name in defaults else "") for name in names]
        if node.args.vararg:
            names.append(node.args.vararg.arg)
            heads.append(f"...{mangled(node.args.vararg.arg)}")
        self.scopes.append(set(names))
        body = self.expression(node.body)
        self.scopes.pop()
        return f"(({', '.join(heads)}) => ({body}))"

    _lambda = lambda_form

    def defaults(self, arguments: ast.arguments) -> dict[str, str]:
        """Parameter → its default."""
        positional = [*arguments.posonlyargs, *arguments.args]
        tail = positional[len(positional) - len(arguments.defaults) :]
        pairs = [*zip(tail, arguments.defaults, strict=True)]
        pairs += [
            (each, value) for each, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value
        ]
        before = self.temporaries
        found = {each.arg: self.expression(value) for each, value in pairs}
        if self.temporaries != before:
            raise self.refuse(pairs[0][1], "a default that needs variables of its own")
        return found

    def operator(self, node: ast.AST, operator: ast.operator) -> str:
        """The runtime's name of a binary operation."""
        if type(operator) not in _BINARY:
            raise self.refuse(node, type(operator).__name__)
        return _BINARY[type(operator)]

    def target(self, node: ast.expr) -> str:
        """What an assignment or a loop assigns to."""
        if isinstance(node, ast.Name):
            return mangled(node.id)
        if isinstance(node, ast.Attribute):
            return f"{self.expression(node.value)}.{node.attr}"
        if isinstance(node, ast.Starred):
            return f"...{self.target(node.value)}"
        if isinstance(node, ast.Tuple | ast.List):
            return f"[{', '.join(self.target(each) for each in node.elts)}]"
        raise self.refuse(node, "this target of an assignment")


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
