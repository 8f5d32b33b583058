"""Tasks made of the running interpreter's own library: instructions to tune on and pairs of answers to rank.

Each public function, method and class with a docstring gives one instruction: its signature in, the first paragraph of
its docstring out. Each pair has that paragraph as the preferred answer, and the same words in another order as the
other one, so that a reward model can learn to tell a sentence from a heap of words. Ids carry the module's name before
a `#`, so that what belongs to a module is held out with it.
"""

from __future__ import annotations

import ast
import inspect
import random
from collections.abc import Iterator
from dataclasses import dataclass

from hayless.core.errors import RequestError
from hayless.data import stdlib
from hayless.data.examples import Example, Preference, instruction
from hayless.data.stdlib import Places

QUESTION = "Say what this part of Python's standard library does."
_SHORTEST, _LONGEST = 24, 200
"""Characters of a summary."""
_LONGEST_SIGNATURE = 120
"""Characters of a signature: with short summaries, nearly all tasks fit the 128 tokens of a small model."""
_FEWEST_WORDS = 5

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Described:
    """One definition: the id of its task, its signature, and the first paragraph of its docstring."""

    id: str
    signature: str
    summary: str

    @property
    def prompt(self) -> str:
        """The instruction in the one template that every set of instructions is put in."""
        return instruction(QUESTION, self.signature)


def instructions(where: Places | None = None) -> list[Example]:
    """An instruction for each described definition. RequestError where the library has no sources."""
    return [Example(each.id, "stdlib_instructions", each.prompt, each.summary) for each in _all(where)]


def preferences(where: Places | None = None) -> list[Preference]:
    """A pair for each described definition of enough words. RequestError where the library has no sources."""
    found = []
    for each in _all(where):
        words = each.summary.split()
        if len(words) >= _FEWEST_WORDS:
            mixed = _mixed(words, each.id)
            if mixed != words:
                found.append(Preference(each.id, "stdlib_preferences", each.prompt, " ".join(words), " ".join(mixed)))
    return found


def _all(where: Places | None) -> list[Described]:
    where = where or stdlib.places()
    found: dict[tuple[str, str], Described] = {}
    for name, path in stdlib.modules(where.library):
        source = stdlib.decoded(path)
        tree = stdlib.parsed(source) if source else None
        if tree is not None:
            module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for each in _described(tree, module, f"lib/{name}"):
                # Classes of one module often share a method's signature and docstring.
                found.setdefault((each.signature, each.summary), each)
    if not found:
        raise RequestError(f"This interpreter has no library as source files (looked in {where.library}).")
    return list(found.values())


def _described(tree: ast.Module, module: str, id: str) -> Iterator[Described]:
    seen: set[str] = set()
    for path, node in _definitions(tree, ""):
        text = ast.get_docstring(node, clean=False)
        summary = " ".join(inspect.cleandoc(text).split("\n\n")[0].split()) if text else ""
        signature = f"# {module}\n{_signature(node)}"
        fits = _SHORTEST <= len(summary) <= _LONGEST and len(signature) <= _LONGEST_SIGNATURE
        if fits and path not in seen:
            seen.add(path)
            yield Described(f"{id}#{path}", signature, summary)


def _definitions(node: ast.Module | ast.ClassDef, before: str) -> Iterator[tuple[str, Definition]]:
    """Public definitions of a module and of its public classes, with their dotted names."""
    for child in node.body:
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield before + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from _definitions(child, f"{before}{child.name}.")


def _signature(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{kind} {node.name}({ast.unparse(node.args)}){returns}:"


def _mixed(words: list[str], key: str) -> list[str]:
    """The words in an order that depends on `key` alone."""
    return random.Random(key).sample(words, len(words))
