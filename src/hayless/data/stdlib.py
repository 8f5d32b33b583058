"""The demo's corpus: what comes with the running interpreter. Nothing is downloaded and nothing is imported.

Three domains, in a fixed order:

- `python`: the source of the standard library's modules. Left out are tests, vendored and installed packages, IDLE,
  lib2to3, the tables of character sets, the text of `pydoc_data` and files generated for this machine.
- `english`: the language documentation in `pydoc_data/topics`, one document a topic, and for each module its docstrings
  of at least `DOCSTRING_BYTES`, found in the syntax tree. Its docstrings carry the module's name before a `#`, so that
  they are held out together with the module; the topics, some of which hold others word for word, stay together too.
- `c`: the interpreter's headers, where they are installed; otherwise the headers that numpy (C) and torch's c10 (C++)
  bring along, and the description says so.

Ids are names inside the library, the same on every machine.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import io
import os
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hayless.core.errors import RequestError
from hayless.core.units import format_bytes
from hayless.data.documents import Document

DOCSTRING_BYTES = 200
LARGEST_BYTES = 262_144
"""Larger files are data in the shape of source, such as generated tables."""

_LEFT_OUT = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "pydoc_data"}
    | {"ensurepip", "encodings", "__pycache__", "_vendor", "__phello__"}
)
_GENERATED = ("_sysconfigdata_", "__hello__")


@dataclass(frozen=True, slots=True)
class Library:
    """The documents, and what they are in words."""

    documents: list[Document]
    description: str


@dataclass(frozen=True, slots=True)
class Places:
    """Where an interpreter keeps its library and its headers; `substitutes` are used where there are no headers."""

    library: Path
    headers: Path
    substitutes: tuple[tuple[str, Path], ...]


def places() -> Places:
    """The places of the running interpreter."""
    packages = (("numpy", "_core/include"), ("torch", "include/c10"))
    found = []
    for package, folder in packages:
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            found.append((package, Path(spec.submodule_search_locations[0]) / folder))
    paths = sysconfig.get_paths()
    return Places(Path(paths["stdlib"]), Path(paths["include"]), tuple(found))


def fingerprint(where: Places | None = None) -> str:
    """A name for exactly this library: the interpreter's version, and every file's name and SHA-256."""
    where = where or places()
    digest = hashlib.sha256(sys.version.encode())
    for name, path in [*modules(where.library), *_topics(where.library), *_headers(where)[0]]:
        digest.update(f"\0{name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read(where: Places | None = None) -> Library:
    """All documents of the three domains. RequestError where the interpreter has no library as source files."""
    where = where or places()
    python, english = [], list(_topic_documents(where.library))
    for name, path in modules(where.library):
        source = decoded(path)
        if source is None or not source.strip():
            continue
        python.append(Document(f"lib/{name}", "python", source))
        prose = "\n\n".join(long_docstrings(source))
        if prose:
            english.append(Document(f"lib/{name}#docstrings", "english", prose + "\n"))
    if not python:
        raise RequestError(
            f"This interpreter has no library as source files (looked in {where.library}).",
            hint="Give data.sources a path instead of builtin: stdlib.",
        )
    headers, origin = _headers(where)
    c = [Document(name, "c", text) for name, path in headers if (text := decoded(path)) and text.strip()]
    version = ".".join(map(str, sys.version_info[:3]))
    parts = [_sized("python", python), _sized("english", english), f"{_sized('c', c)} ({origin})"]
    return Library([*python, *english, *c], f"Python {version}'s own library: " + "; ".join(parts))


def long_docstrings(source: str) -> list[str]:
    """The docstrings of a module, its classes and functions that have at least `DOCSTRING_BYTES` bytes, dedented."""
    tree = parsed(source)
    found = []
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text and len(text.encode("utf-8", "ignore")) >= DOCSTRING_BYTES:
                found.append(inspect.cleandoc(text))
    return found


def modules(library: Path) -> list[tuple[str, Path]]:
    """Names inside the library and paths of its modules, in the order of their names."""
    return [(name, path) for name, path in _files(library, ".py") if not path.name.startswith(_GENERATED)]


def _topics(library: Path) -> list[tuple[str, Path]]:
    path = library / "pydoc_data" / "topics.py"
    return [("pydoc_data/topics.py", path)] if path.is_file() else []


def _topic_documents(library: Path) -> Iterator[Document]:
    for _, path in _topics(library):
        tree = parsed(decoded(path) or "")
        for node in tree.body if tree else ():
            value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            if isinstance(value, ast.Dict):
                topics = ast.literal_eval(value)
                for name in sorted(topics):
                    if topics[name].strip():
                        yield Document(f"topics#{name}", "english", topics[name])


def _headers(where: Places) -> tuple[list[tuple[str, Path]], str]:
    """Named headers and where they come from."""
    own = [(f"include/{name}", path) for name, path in _files(where.headers, ".h") if path.name != "pyconfig.h"]
    if own:
        return own, "the interpreter's headers"
    others = [
        (f"{package}/{name}", path) for package, folder in where.substitutes for name, path in _files(folder, ".h")
    ]
    names = " and ".join(package for package, folder in where.substitutes if folder.is_dir())
    if not others:
        return [], "the interpreter's headers are not installed, and there is no substitute"
    return others, f"headers of {names} instead: the interpreter's own are not installed"


def _files(root: Path, suffix: str) -> list[tuple[str, Path]]:
    """Files below `root` by name, in the order of their names; none where `root` is not there."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith("config-")]
        for name in names:
            path = Path(folder, name)
            if path.suffix == suffix and path.is_file() and path.stat().st_size <= LARGEST_BYTES:
                found.append((path.relative_to(root).as_posix(), path))
    return sorted(found)


def decoded(path: Path) -> str | None:
    """A source file's text by its own declaration (PEP 263), or None where it is not in it."""
    content = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
        text.encode()
    except (SyntaxError, UnicodeError):
        return None
    return text


def parsed(source: str) -> ast.Module | None:
    """The syntax tree of a source, or None where it is not Python (templates, examples of errors)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return None


def _sized(domain: str, documents: Iterable[Document]) -> str:
    sizes = [len(document.text.encode()) for document in documents]
    return f"{domain} {len(sizes):,} documents, {format_bytes(sum(sizes))}"
