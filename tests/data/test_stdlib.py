"""The demo's corpus, on a handful of modules laid out like a library."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from hayless.core.errors import RequestError
from hayless.data import stdlib
from hayless.data.split import position

MODULES = ("textwrap.py", "bisect.py", "json/decoder.py", "test/__init__.py", "idlelib/__init__.py", "this.py")


@pytest.fixture
def places(tmp_path) -> stdlib.Places:
    """A small library: real modules, topics, a Latin-1 module, undecodable and generated files, one header."""
    real = Path(sysconfig.get_paths()["stdlib"])
    library = tmp_path / "lib"
    for name in MODULES:
        target = library / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (real / name).exists():
            shutil.copy(real / name, target)
        else:
            target.write_text('"""Nothing."""\n')
    (library / "latin.py").write_bytes('# -*- coding: latin-1 -*-\nname = "Müller"\n'.encode("latin-1"))
    (library / "broken.py").write_bytes(b"# no coding\nx = '\xff\xfe'\n")
    (library / "old_syntax.py").write_text("print 'a statement'\n")
    (library / "_sysconfigdata__linux.py").write_text("build_time_vars = {'prefix': '/somewhere'}\n")
    (library / "site-packages" / "other").mkdir(parents=True)
    (library / "site-packages" / "other" / "x.py").write_text("x = 1\n")
    (library / "pydoc_data").mkdir()
    (library / "pydoc_data" / "topics.py").write_text("topics = {'b': 'About b.\\n', 'a': 'About ' 'a.\\n'}\n")
    headers = tmp_path / "include"
    headers.mkdir()
    (headers / "object.h").write_text("typedef struct _object PyObject;\n")
    (headers / "pyconfig.h").write_text("#define HAVE_EVERYTHING 1\n")
    substitute = tmp_path / "numpy" / "include"
    substitute.mkdir(parents=True)
    (substitute / "arrayobject.h").write_text("int PyArray;\n")
    return stdlib.Places(library, headers, (("numpy", substitute),))


def test_three_domains_with_names_that_hold_no_machine_path(places, tmp_path):
    found = stdlib.read(places)
    by_domain = {}
    for document in found.documents:
        by_domain.setdefault(document.domain, []).append(document.id)
    assert by_domain["python"] == [
        "lib/bisect.py",
        "lib/json/decoder.py",
        "lib/latin.py",
        "lib/old_syntax.py",
        "lib/textwrap.py",
        "lib/this.py",
    ]
    assert by_domain["english"][:2] == ["topics#a", "topics#b"]
    assert "lib/textwrap.py#docstrings" in by_domain["english"]
    assert by_domain["c"] == ["include/object.h"]
    assert str(tmp_path) not in "".join(document.id for document in found.documents) + found.description
    assert "python 6 documents" in found.description and "the interpreter's headers" in found.description
    texts = {document.id: document.text for document in found.documents}
    assert texts["topics#a"] == "About a.\n" and "Müller" in texts["lib/latin.py"]


def test_it_is_the_same_every_time_and_changes_with_a_file(places):
    assert stdlib.read(places) == stdlib.read(places)
    before = stdlib.fingerprint(places)
    assert stdlib.fingerprint(places) == before
    (places.library / "this.py").write_text("that = 1\n")
    assert stdlib.fingerprint(places) != before


def test_without_headers_a_substitute_is_stated(places):
    shutil.rmtree(places.headers)
    found = stdlib.read(places)
    assert [document.id for document in found.documents if document.domain == "c"] == ["numpy/arrayobject.h"]
    assert "headers of numpy instead" in found.description
    bare = stdlib.read(stdlib.Places(places.library, places.headers, ()))
    assert not [document for document in bare.documents if document.domain == "c"]
    assert "there is no substitute" in bare.description


def test_an_interpreter_without_source_files_is_an_error(tmp_path):
    with pytest.raises(RequestError, match="no library as source files"):
        stdlib.read(stdlib.Places(tmp_path, tmp_path, ()))


def test_docstrings_are_found_without_importing():
    body = "word " * 60
    source = (
        f'raise SystemExit\n"""not a docstring {body}"""\n'
        f'class A:\n    """Of A: {body}\n\n    Indented."""\n'
        f'    async def f(self):\n        """{body}f."""\n    def g(self):\n        "short"\n'
    )
    found = stdlib.long_docstrings(source)
    assert len(found) == 2
    assert found[0].startswith("Of A:") and found[0].endswith("\n\nIndented.")
    assert stdlib.long_docstrings("def broken(:") == []


def test_docstrings_are_held_out_with_their_module():
    assert position("lib/textwrap.py#docstrings") == position("lib/textwrap.py")


def test_the_running_interpreter_has_places():
    where = stdlib.places()
    assert (where.library / "textwrap.py").is_file()
    assert {name for name, _ in where.substitutes} == {"numpy", "torch"}
    assert all(any(folder.rglob("*.h")) for _, folder in where.substitutes)
