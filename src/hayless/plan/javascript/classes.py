"""One Python class as JavaScript: its constructor, and those of its methods and properties that are used."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
from collections.abc import Callable
from enum import Enum, StrEnum
from types import FunctionType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hayless.plan.javascript.names import Untranslatable, generates, literal, signature

if TYPE_CHECKING:
    from hayless.plan.javascript.program import Program

_LIBRARIES = frozenset({"builtins", "abc", "typing", "enum", "pydantic", "typing_extensions"})


class Class:
    """A class being translated. Dataclasses and pydantic's models get the constructor that their fields make."""

    def __init__(self, program: Program, name: str, kind: type) -> None:
        self._program, self.name, self.kind = program, name, kind
        self._parts: dict[str, str] = {}
        self._constructor: tuple[str, str] | None = None
        self._after = ""
        self.methods: set[str] = set()
        """Names that are methods, not properties."""
        ours = [base for base in kind.__bases__ if base.__module__.partition(".")[0] not in _LIBRARIES]
        if len(ours) > 1:
            raise Untranslatable(f"{kind.__qualname__} has several bases.")
        self.base = ours[0] if ours else None
        self._parent = self._parent_of(ours)
        if issubclass(kind, Enum):
            members = json.dumps({member.name: member.value for member in kind})
            self._after = f"py.members({name}, {members}, {json.dumps(issubclass(kind, StrEnum))});\n"
        elif issubclass(kind, BaseModel):
            fields = {field: (each.default, each.default_factory) for field, each in kind.model_fields.items()}
            self._with_fields(fields, equal=True)
        elif dataclasses.is_dataclass(kind):
            made = [each for each in dataclasses.fields(kind) if each.init]
            parameters: Any = getattr(kind, "__dataclass_params__")  # noqa: B009
            self._with_fields({each.name: (each.default, each.default_factory) for each in made}, equal=parameters.eq)

    def add(self, attribute: str) -> None:
        """Take a method, property or constant of this name along, if the class has one."""
        found = vars(self.kind).get(attribute)
        if found is None or attribute in self._parts or attribute in self._fields or isinstance(found, Enum):
            return
        self._parts[attribute] = ""
        if isinstance(found, bool | int | float | str):
            value = literal(found)
            self._parts[attribute] = f"static {attribute} = {value};\nget {attribute}() {{ return {value}; }}\n"
        elif isinstance(found, property | functools.cached_property):
            function = found.fget if isinstance(found, property) else found.func
            self._parts[attribute] = self._tried(attribute, lambda: f"get {attribute}{self._form(function, True)[1]}\n")
        elif isinstance(found, staticmethod | classmethod):
            bound = isinstance(found, classmethod)
            self._parts[attribute] = "static " + self._tried(attribute, lambda: self._method(attribute, found, bound))
        elif isinstance(found, FunctionType) and attribute == "__init__":
            if self._constructor is None:
                node, form = self._form(found, True)
                self._constructor = form, signature(node, bound=True)
        elif isinstance(inspect.unwrap(found), FunctionType):
            self._parts[attribute] = self._tried(
                attribute, lambda: self._method(attribute, inspect.unwrap(found), True)
            )

    def text(self, *, extended: bool) -> str:
        """The class, whole. One that others extend is made by a method, which theirs replaces."""
        body, after = "".join(self._parts.values()), self._after
        if self._constructor:
            form, names = self._constructor
            if self._parent or extended:
                body = f"$init{form}\n{body}"
                after += f"{self.name}.prototype.$init.$signature = {names};\n"
            else:
                body = f"constructor{form}\n{body}"
                after += f"{self.name}.$made = {names};\n"
        if extended and not self._parent:
            body = f"constructor(...all) {{ this.$init(...all); }}\n{body}"
        return f"class {self.name}{self._parent} {{\n{body}}}\n{after}"

    def _parent_of(self, ours: list[type]) -> str:
        if ours:
            return f" extends {self._program.reference(ours[0], ours[0].__name__)}"
        for base, name in ((BaseException, "Exception"), (Enum, "Enum"), (BaseModel, "Model")):
            if issubclass(self.kind, base):
                return f" extends py.{name}"
        return ""

    @property
    def _fields(self) -> Any:
        return getattr(self.kind, "model_fields", None) or getattr(self.kind, "__dataclass_fields__", {})

    def _with_fields(self, fields: dict[str, tuple[Any, Any]], *, equal: bool) -> None:
        """Field → default and what makes one."""
        heads = []
        for field, (value, factory) in fields.items():
            if factory not in (None, dataclasses.MISSING):
                heads.append(f"{field} = {self._program.reference(factory, field)}()")
            elif value is dataclasses.MISSING or value is PydanticUndefined:
                heads.append(field)
            else:
                heads.append(f"{field} = {self._program.reference(value, field)}")
        assigned = " ".join(f"this.{field} = {field};" for field in fields)
        checked = " this.__post_init__();" if hasattr(self.kind, "__post_init__") else ""
        names = json.dumps(list(fields))
        self._constructor = f"({', '.join(heads)}) {{ {assigned}{checked} }}", names
        self._after = f"{self.name}.$fields = {names};\n{self.name}.$equal = {json.dumps(equal)};\n"

    def _method(self, attribute: str, found: Any, bound: bool) -> str:
        function = found.__func__ if isinstance(found, staticmethod | classmethod) else found
        node, form = self._form(function, bound)
        self.methods.add(attribute)
        owner = self.name if isinstance(found, staticmethod | classmethod) else f"{self.name}.prototype"
        self._after += f"{owner}.{attribute}.$signature = {signature(node, bound=bound)};\n"
        return f"{'*' if generates(node) else ''}{attribute}{form}\n"

    def _form(self, function: Any, bound: bool) -> tuple[ast.FunctionDef, str]:
        node, translator = self._program.source(function)
        assert isinstance(node, ast.FunctionDef)
        return node, translator.form(node, bound=bound)

    def _tried(self, attribute: str, translate: Callable[[], str]) -> str:
        """What was translated, or a method that throws why it could not be."""
        try:
            return translate()
        except Untranslatable as error:
            self._program.missing[f"{self.name}.{attribute}"] = error.message
            return f"{attribute}() {{ throw new py.Missing({json.dumps(error.message)}); }}\n"
