"""Translated Python computes what Python computes, construct by construct; and what has no form is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hayless.plan.javascript.names import Untranslatable
from hayless.plan.javascript.program import Program, runtime
from tests import browser as browsers
from tests.plan import samples

CALLS: list[tuple[Any, ...]] = [
    (samples.numbers, 7, 2),
    (samples.numbers, 7.5, -2),
    (samples.numbers, 2**40 + 1, 3),
    *((samples.large, 2**53 - 1, by) for by in (2, 3, 7, 2**26 + 1, 2**52 + 1)),
    (samples.wholes, 1001),
    (samples.truths, [0, 1, "", "a", None, [], [0], {}, {"a": 0}, False, 0.0]),
    *(
        (samples.compared, a, b)
        for a, b in [(1, 1), (1, True), ("1", 1), ([1, 2], [1, 2]), (None, 0), ({"a": 1}, {"a": 1})]
    ),
    *((samples.ordered, *three) for three in [(1, 2, 3), (2, 2, 1), ("a", "b", "B"), ([1, 2], [1, 3], [2])]),
    (samples.text, "abc", 1234567, 0.4561),
    (samples.text, "it's", -5, 12345.678),
    (samples.collections, ["a", "bb", "a", "c", "b"]),
    (samples.objects, 3),
    (samples.enums, "red"),
    (samples.settings, 16),
    (samples.contexts, True),
    (samples.contexts, False),
    (samples.generated, 7),
    (samples.calls, 6),
    (samples.closures, 3),
    *((samples.errors, kind) for kind in ("bad", "unknown", "division", "key", "other")),
    (samples.tables, "a"),
    (samples.tables, "b"),
]


@pytest.fixture(scope="module")
def answers() -> list[Any]:
    """What JavaScript says to all calls."""
    program = Program()
    forms = [
        f"py.toJson({program.reference(function, function.__name__)}(...py.fromJson({json.dumps(list(arguments))})))"
        for function, *arguments in CALLS
    ]
    text = runtime() + program.text() + f"JSON.stringify([{', '.join(f'() => {form}' for form in forms)}].map(said))"
    assert not program.missing
    said = "const said = (ask) => { try { return ask(); } catch (error) { return String(error.stack); } };\n"
    with browsers.started() as browser:
        page = browser.new_page()
        return json.loads(page.evaluate(f"(() => {{ {said} return eval({json.dumps(text)}); }})()"))


class TestInBrowser:
    pytestmark = browsers.NEEDED

    @pytest.mark.parametrize("place", range(len(CALLS)))
    def test_both_compute_the_same(self, answers: list[Any], place: int) -> None:
        function, *arguments = CALLS[place]
        assert answers[place] == json.loads(json.dumps(function(*arguments)))


def test_only_what_is_reached_is_translated() -> None:
    program = Program()
    program.reference(samples.type_of, "type_of")
    text = program.text()
    assert "RequestError" in text and "Point" not in text and "numbers" not in text


def test_what_has_no_form_is_refused_with_its_line() -> None:
    program = Program()
    program.reference(_uses_a_matrix_product, "tried")
    text = program.text()
    ((name, reason),) = program.missing.items()
    assert name.endswith("_uses_a_matrix_product") and "MatMult has no form in JavaScript here" in reason
    assert f"{_uses_a_matrix_product.__code__.co_firstlineno + 1}: " in reason and "py.Missing" in text
    with pytest.raises(Untranslatable, match="no number that JavaScript holds exactly"):
        program.reference({"large": 2**60}, "large")


def _uses_a_matrix_product(a: Any, b: Any) -> Any:
    return a @ b
