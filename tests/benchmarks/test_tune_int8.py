"""The sweep of the integer product's tiles, as far as it goes without a GPU."""

from __future__ import annotations

import pytest
import torch

from hayless.kernels.int8 import plain
from hayless.kernels.int8.tiles import candidates

tune_int8 = pytest.importorskip("benchmarks.tune_int8", reason="benchmarks are not part of this distribution")


def test_it_says_that_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune_int8.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_inputs_have_outliers_and_candidates_fit():
    x = tune_int8.with_outliers(50, 300, "cpu")
    assert int(plain.outlying_columns(x.float(), tune_int8.THRESHOLD).sum()) == 3
    weight, scale = tune_int8.made(8, 300, "cpu")
    assert plain.product(x, weight, scale, None, tune_int8.THRESHOLD).isfinite().all()
    for tokens in (1, 64, 4096):
        found = candidates(tokens)
        assert 20 < len(found) == len(set(found)) < 150
        assert all((one.rows + one.tokens) * one.columns * one.stages <= 227 * 1024 for one in found)
