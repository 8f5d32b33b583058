"""Tables are looked at in the 80 columns of a small terminal."""

import pytest

from hayless.cli import output


@pytest.fixture(autouse=True)
def small_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.out, "width", 80)
