"""One Python function as JavaScript: a subset that pure functions get by with. Annotations are left out.

What the subset lacks raises Untranslatable with the line.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from importlib import import_module

from hayless.plan.javascript.expressions import Expressions
from hayless.plan.javascript.names import assigned, generates, mangled, packed, signature


class Function(Expressions):
    """Translates one function."""

    def form(self, node: ast.FunctionDef, *, bound: bool, arrow: bool = False) -> str:
        """`(a, b = 1) {…}`; `bound` functions have a first parameter (self) that is JavaScript's `this`."""
        arguments = node.args
        parameters = [*arguments.posonlyargs, *arguments.args]
        first, parameters = (parameters[0].arg, parameters[1:]) if bound else ("", parameters)
        defaults = self.defaults(arguments)
        given = [*parameters, *arguments.kwonlyargs]
        rest = [each for each in (arguments.vararg, arguments.kwarg) if each]
        self.scopes.append({each.arg for each in (*given, *rest)} | ({first} if first else set()))
        local = assigned(node.body) - self.scopes[-1]
        self.scopes[-1] |= local
        before, self.temporaries = self.temporaries, 0
        body = "".join(self._statement(each) for each in node.body if not _docstring(each))
        names = [mangled(name) for name in sorted(local)] + [f"$t{n}" for n in range(self.temporaries)]
        self.temporaries = before
        self.scopes.pop()
        declared = f"let {', '.join(names)};\n" if names else ""
        itself = f"const {mangled(first)} = this;\n" if first else ""
        if packed(arguments):
            places = [mangled(each.arg) for each in (*given, *rest)]
            unpacked = f"let [{', '.join(places)}] = py.unpack($all, {signature(node, bound=bound)});\n"
            filled = "".join(
                f"if ({mangled(name)} === undefined) {mangled(name)} = {value};\n" for name, value in defaults.items()
            )
            return f"(...$all) {'=> ' * arrow}{{\n{itself}{unpacked}{filled}{declared}{body}}}"
        heads = [mangled(each.arg) + (f" = {defaults[each.arg]}" if each.arg in defaults else "") for each in given]
        heads += [f"...{mangled(each.arg)}" for each in rest]
        return f"({', '.join(heads)}) {'=> ' * arrow}{{\n{itself}{declared}{body}}}"

    def _statement(self, node: ast.stmt) -> str:
        found = getattr(self, f"_{type(node).__name__.lower()}_statement", None)
        if found is None:
            raise self.refuse(node, type(node).__name__)
        return str(found(node))

    def _block(self, body: Iterable[ast.stmt]) -> str:
        return "{\n" + "".join(self._statement(each) for each in body) + "}"

    def _expr_statement(self, node: ast.Expr) -> str:
        return "" if _docstring(node) else f"{self.expression(node.value)};\n"

    def _pass_statement(self, node: ast.Pass) -> str:
        return ""

    _nonlocal_statement = _pass_statement

    def _break_statement(self, node: ast.Break) -> str:
        return "break;\n"

    def _continue_statement(self, node: ast.Continue) -> str:
        return "continue;\n"

    def _return_statement(self, node: ast.Return) -> str:
        return f"return {self.expression(node.value) if node.value else 'null'};\n"

    def _assign_statement(self, node: ast.Assign) -> str:
        value = self.expression(node.value)
        if len(node.targets) > 1:
            held = self.temporary()
            return f"{held} = {value};\n" + "".join(self._assignment(target, held) for target in node.targets)
        return self._assignment(node.targets[0], value)

    def _annassign_statement(self, node: ast.AnnAssign) -> str:
        return self._assignment(node.target, self.expression(node.value)) if node.value else ""

    def _augassign_statement(self, node: ast.AugAssign) -> str:
        name = "iadd" if isinstance(node.op, ast.Add) else self.operator(node, node.op)
        value = self.expression(node.value)
        target = node.target
        if isinstance(target, ast.Name):
            return self._assignment(target, f"py.{name}({self.expression(target)}, {value})")
        owner = self.temporary()
        before = f"{owner} = {self.expression(target.value)};\n"
        if isinstance(target, ast.Attribute):
            self.program.use(target.attr)
            return f"{before}{owner}.{target.attr} = py.{name}({owner}.{target.attr}, {value});\n"
        key = self.temporary()
        before += f"{key} = {self.expression(target.slice)};\n"
        return f"{before}py.set_item({owner}, {key}, py.{name}(py.item({owner}, {key}), {value}));\n"

    def _assignment(self, target: ast.expr, value: str) -> str:
        if isinstance(target, ast.Subscript):
            return f"py.set_item({self.expression(target.value)}, {self.expression(target.slice)}, {value});\n"
        if isinstance(target, ast.Tuple | ast.List) and any(isinstance(each, ast.Subscript) for each in target.elts):
            held = self.temporary()
            parts = (self._assignment(each, f"{held}[{place}]") for place, each in enumerate(target.elts))
            return f"{held} = [...{value}];\n" + "".join(parts)
        form = f"{self.target(target)} = {value}"
        return f"({form});\n" if isinstance(target, ast.Tuple | ast.List) else f"{form};\n"

    def _delete_statement(self, node: ast.Delete) -> str:
        found = ""
        for target in node.targets:
            if not isinstance(target, ast.Subscript):
                raise self.refuse(node, "del of a name")
            found += f"py.del_item({self.expression(target.value)}, {self.expression(target.slice)});\n"
        return found

    def _if_statement(self, node: ast.If) -> str:
        otherwise = f" else {self._block(node.orelse)}" if node.orelse else ""
        return f"if ({self.condition(node.test)}) {self._block(node.body)}{otherwise}\n"

    def _while_statement(self, node: ast.While) -> str:
        if node.orelse:
            raise self.refuse(node, "else of a loop")
        return f"while ({self.condition(node.test)}) {self._block(node.body)}\n"

    def _for_statement(self, node: ast.For) -> str:
        if node.orelse:
            raise self.refuse(node, "else of a loop")
        over = self.expression(node.iter)
        return f"for (const $each of {over}) {{\n{self._assignment(node.target, '$each')}{self._block(node.body)}}}\n"

    def _with_statement(self, node: ast.With) -> str:
        """Contexts are generators here (contextlib.contextmanager): they go on after the block, errors or not."""
        enter, leave = "", ""
        for item in node.items:
            held = self.temporary()
            entered = f"py.enter({held})"
            enter += f"{held} = {self.expression(item.context_expr)};\n"
            enter += self._assignment(item.optional_vars, entered) if item.optional_vars else f"{entered};\n"
            leave = f"py.leave({held});\n" + leave
        return f"{enter}try {self._block(node.body)} finally {{\n{leave}}}\n"

    def _raise_statement(self, node: ast.Raise) -> str:
        if node.exc is None:
            return "throw $error;\n"
        if isinstance(node.exc, ast.Name) and isinstance(self.static(node.exc), type):
            return f"throw new {self.expression(node.exc)}();\n"
        return f"throw {self.expression(node.exc)};\n"

    def _try_statement(self, node: ast.Try) -> str:
        if node.orelse:
            raise self.refuse(node, "else of try")
        found = f"try {self._block(node.body)}"
        if node.handlers:
            clauses = ""
            for handler in node.handlers:
                test = f"py.isinstance($error, {self._kinds(handler.type)})" if handler.type else "true"
                named = f"{mangled(handler.name)} = $error;\n" if handler.name else ""
                clauses += f"if ({test}) {{\n{named}{self._block(handler.body)}\n}} else "
            found += f" catch ($error) {{\n{clauses}throw $error;\n}}"
        return found + (f" finally {self._block(node.finalbody)}" if node.finalbody else "") + "\n"

    def _assert_statement(self, node: ast.Assert) -> str:
        return f'if (!({self.condition(node.test)})) throw new py.AssertionError("{self.file}:{node.lineno}");\n'

    def _functiondef_statement(self, node: ast.FunctionDef) -> str:
        if any(self.static(each) is not functools.cache for each in node.decorator_list):
            raise self.refuse(node, "a decorated function inside another")
        name, arrow = mangled(node.name), not generates(node)
        form = ("" if arrow else "function* ") + self.form(node, bound=False, arrow=arrow)
        form = f"py.cached({form})" if node.decorator_list else form
        return f"{name} = {form};\n{name}.$signature = {signature(node, bound=False)};\n"

    def _import_statement(self, node: ast.Import) -> str:
        for name in node.names:
            self.imports[name.asname or name.name] = import_module(name.name)
        return ""

    def _importfrom_statement(self, node: ast.ImportFrom) -> str:
        module = import_module(node.module or "")
        for name in node.names:
            found = getattr(module, name.name, None)
            self.imports[name.asname or name.name] = found or import_module(f"{node.module}.{name.name}")
        return ""


def _docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
