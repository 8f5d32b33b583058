"""What the formulas of published tables must fulfil for any numbers, and what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.errors import RequestError
from hayless.core.families import dims_of, ledger_of
from hayless.plan import flash, lomo, scaling, speculative, zero
from hayless.plan.presets import PRESETS, config_of
from hayless.plan.table import as_printed, significant, wholes

PARAMETERS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-65b": 65_285_660_672,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3-405b": 405_853_388_800,
    "llama-3b": 3_212_749_824,
    "llama-1b": 1_235_814_400,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
}
"""Parameters of the models as their makers released them (OPT's are in tests/lecture)."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_the_parameters_of_the_released_models(name: str) -> None:
    assert ledger_of(dims_of(config_of(name))).parameters == PARAMETERS[name]


def test_every_preset_is_counted_somewhere() -> None:
    assert {name for name in PRESETS if not name.startswith("opt-")} == set(PARAMETERS)
    with pytest.raises(RequestError, match="llama-7b"):
        config_of("llama7b")


@given(st.integers(1, 10**13), st.integers(1, 4096))
def test_later_stages_hold_less(parameters: int, ranks: int) -> None:
    held = [zero.state_bytes(parameters, ranks, stage) for stage in (3, 2, 1, 0)]
    assert held == sorted(held)
    assert held[0] * ranks == held[3] == 16 * parameters
    assert zero.sent_elements(parameters, 1, 3) == 0


@pytest.mark.parametrize(
    ("value", "cell", "how"),
    [(41.25, "41.3", "rounded"), (513.5, "513", "cut"), (513.5, "514", "rounded"), (513.5, "512", "differs")],
)
def test_how_a_cell_was_printed(value: float, cell: str, how: str) -> None:
    assert as_printed(value, cell) == how


def test_numbers_in_cells() -> None:
    assert [significant(value) for value in (0.1171875, 16000, 0, 41.25)] == ["0.117", "16,000", "0", "41.2"]
    assert wholes("ranks", "4, 1,4") == [4, 1]
    for text in ("0", "4,", "-1", "x"):
        with pytest.raises(RequestError, match="ranks"):
            wholes("ranks", text)


@given(st.integers(1, 5000), st.sampled_from([32, 64, 128]), st.integers(512, 10**6))
def test_flash_moves_less_with_more_fast_memory(tokens: int, width: int, fast: int) -> None:
    small, large = (flash.Attention(tokens, width, size) for size in (fast, 2 * fast))
    assert sum(flash.hbm_bytes(large, flash=True)) <= sum(flash.hbm_bytes(small, flash=True))
    assert small.key_blocks * small.key_block >= tokens


@pytest.mark.parametrize("change", [{"tokens": 0}, {"head_dim": -1}, {"fast_elements": 255}])
def test_impossible_attention_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=r"tokens|head_dim|4·d = 256"):
        flash.Attention(**change)


@given(st.floats(0, 1), st.integers(0, 40), st.floats(0, 2))
def test_the_best_number_of_drafts_is_the_best(acceptance: float, drafted: int, cost: float) -> None:
    best = speculative.best_drafted(acceptance, cost)
    assert speculative.speedup(acceptance, best, cost) >= speculative.speedup(acceptance, drafted, cost)
    assert 1 <= speculative.expected_tokens(acceptance, drafted) <= drafted + 1
    if acceptance < 0.99:
        closed = (1 - acceptance ** (drafted + 1)) / (1 - acceptance)
        assert speculative.expected_tokens(acceptance, drafted) == pytest.approx(closed)


def test_impossible_drafts_are_refused() -> None:
    for call in (
        lambda: speculative.speedup(1.1, 4, 0.1),
        lambda: speculative.speedup(0.5, -1, 0.1),
        lambda: speculative.speedup(0.5, 4, -0.1),
        lambda: speculative.acceptances([0.5], [0.5, 0.5]),
        lambda: speculative.acceptances([0.0], [0.5]),
    ):
        with pytest.raises(RequestError):
            call()


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 500), st.floats(0.05, 0.8), st.floats(0, 3))
def test_a_fit_finds_the_law_that_made_its_points(a: float, b: float, c: float) -> None:
    points = [(size, a / size**b + c) for size in (1e6, 1e7, 1e8, 1e9)]
    found = scaling.fit(points)
    assert found.worst < 1e-4
    assert found.loss(3e7) == pytest.approx(a / 3e7**b + c, abs=1e-3)


def test_fits_that_cannot_be_are_refused() -> None:
    with pytest.raises(RequestError, match="at least 3"):
        scaling.fit([(1e6, 4.0), (1e6, 3.9), (1e7, 3.5)])
    with pytest.raises(RequestError, match="do not bend"):
        scaling.fit([(1e6, 4.0), (1e7, 3.0), (1e8, 1.0)])
    with pytest.raises(RequestError, match="tokens"):
        scaling.losses(1e9, 0)


@given(st.floats(1e18, 1e26))
def test_the_optimum_spends_the_budget_and_is_one(compute: float) -> None:
    for law in (scaling.CHINCHILLA, scaling.REFIT):
        parameters, tokens = law.optimum(compute)
        assert scaling.flops(parameters, tokens) == pytest.approx(compute)
        best = law.loss(parameters, tokens)
        for share in (0.9, 1.1):
            assert law.loss(parameters * share, tokens / share) > best


def test_lomo_of_any_model() -> None:
    ledger = ledger_of(dims_of(config_of("gpt2")))
    table = lomo.table("gpt2", ledger, 2, 128)
    assert not table.source and "printed" not in " ".join(table.notes)
    totals = [row["total_gib"] for row in table.records]
    assert totals == sorted(totals, reverse=True)
    assert lomo.parts(ledger, "LOMO")[1] == 2 * 50257 * 768
