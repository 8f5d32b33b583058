"""`hayless plan scaling fit` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hayless.core.errors import RequestError
from tests.cli.test_plan import document, run
from tests.plan import sweeps


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of four sizes and three lengths."""
    folder = tmp_path_factory.mktemp("study")
    for width in sweeps.WIDTHS[:4]:
        for tokens in sweeps.TOKENS[:3]:
            parameters = 30 * width**2 + 1024 * width
            name = f"{width}-{tokens}"
            sweeps.run(folder / name, sweeps.config(width), tokens, sweeps.LAW.loss(parameters, tokens))
    return folder


def test_a_law_is_fitted_told_and_drawn(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "law.png"
    law, runs, held_out, optimum = document("scaling", "fit", study, "--flops", "1e15", "--out", out)["tables"]
    assert out.read_bytes().startswith(b"\x89PNG")
    assert law["rows"][0]["alpha_low"] <= law["rows"][0]["alpha"] <= law["rows"][0]["alpha_high"]
    assert len(runs["rows"]) == 11 and held_out["rows"][0]["run"] == "96-1200000"
    assert abs(held_out["rows"][0]["off_ratio"]) < 0.01
    assert [row["flops"] for row in optimum["rows"]] == [1e15]
    text = run("scaling", "fit", study, "--count", "non-embedding", "--held-out", "none").stdout
    assert "as Kaplan's does" in text and "held out" not in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "name a study's folder"),
        (("--count", "all", "x"), "total or non-embedding"),
        (("--out", "law.pdf", "x"), ".png or .svg"),
    ],
)
def test_wrong_options_leave_with_2(options: tuple[str, ...], words: str) -> None:
    assert words in run("scaling", "fit", *options, code=2).stderr


def test_wrong_requests_say_what_is_possible(study: Path) -> None:
    for options, words in (
        ((study, "--flops", "much"), "flops = 'much'"),
        ((study, "--held-out", "64"), "Unknown run '64'"),
        ((study / "32-300000",), "Too few runs"),
        ((study / "nowhere",), "There is no folder"),
    ):
        with pytest.raises(RequestError, match=words):
            run("scaling", "fit", *options)
