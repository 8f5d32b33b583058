"""Tasks made of a library: signatures in, summaries out; sentences against heaps of words."""

from __future__ import annotations

from pathlib import Path

import pytest

from hayless.core.errors import RequestError
from hayless.data import stdlib_tasks
from hayless.data.split import split
from hayless.data.stdlib import Places

SOURCE = '''
"""A module."""

async def fetch(place: str, *, tries: int = 3) -> bytes:
    """Bring what lies at a place,
    and try again when it is not there.

    More is said here.
    """

def short(x):
    """Too short."""

def _private(x):
    """Nobody is told what this function does."""

def bare(x):
    return x

class Barn(list):
    """Where hay is kept over the winter."""

    def fill(self, hay):
        """Put hay in until the barn is full."""

    def fill(self, hay, again):
        """A second definition of the same name, left out."""

class Loft:
    def fill(self, hay):
        """Put hay in until the barn is full."""
'''


def library(folder: Path) -> Places:
    (folder / "lib" / "farm").mkdir(parents=True)
    (folder / "lib" / "farm" / "barn.py").write_text(SOURCE, encoding="utf-8")
    (folder / "lib" / "broken.py").write_text("def (:", encoding="utf-8")
    (folder / "lib" / "other.py").write_text(
        'def eat():\n    """Take grass in as long as there is some."""\n', encoding="utf-8"
    )
    return Places(folder / "lib", folder / "none", ())


def test_instructions_ask_for_a_signature_and_learn_its_summary(tmp_path: Path) -> None:
    found = stdlib_tasks.instructions(library(tmp_path))
    assert {example.id: example.output for example in found} == {
        "lib/farm/barn.py#fetch": "Bring what lies at a place, and try again when it is not there.",
        "lib/farm/barn.py#Barn": "Where hay is kept over the winter.",
        "lib/farm/barn.py#Barn.fill": "Put hay in until the barn is full.",
        "lib/other.py#eat": "Take grass in as long as there is some.",
    }
    assert found[0].prompt == (
        f"### Instruction:\n{stdlib_tasks.QUESTION}\n\n### Input:\n# farm.barn\n"
        "async def fetch(place: str, *, tries: int=3) -> bytes:\n\n### Response:\n"
    )
    assert "class Barn(list):" in found[1].prompt


def test_pairs_are_the_same_words_in_another_order(tmp_path: Path) -> None:
    where = library(tmp_path)
    found = stdlib_tasks.preferences(where)
    assert len(found) == 4 and found == stdlib_tasks.preferences(where)
    for pair in found:
        assert pair.chosen != pair.rejected and sorted(pair.chosen.split()) == sorted(pair.rejected.split())


def test_what_belongs_to_a_module_is_held_out_with_it(tmp_path: Path) -> None:
    train, heldout = split(stdlib_tasks.instructions(library(tmp_path)), 0.5)
    modules = [{record.id.partition("#")[0] for record in part} for part in (train, heldout)]
    assert not modules[0] & modules[1]


def test_a_library_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no library as source files"):
        stdlib_tasks.instructions(Places(tmp_path, tmp_path, ()))
