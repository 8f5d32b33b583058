"""The drawn picture at few colours."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np

from hayless.methods.quantize.kmeans import picture


def test_fewer_colours_make_a_larger_error() -> None:
    drawn = picture.landscape(90, 60)
    assert drawn.shape == (60, 90, 3) and drawn.dtype == np.uint8
    found = [picture.palettize(drawn, colours, iterations=10) for colours in picture.COLOURS]
    for item in found:
        assert len(np.unique(item.pixels.reshape(-1, 3), axis=0)) <= item.colours
        error = item.pixels.astype(float) - drawn
        assert item.mean_squared_error == (error**2).mean()
        assert item.histogram.sum() == drawn.size
    assert [item.bits for item in found] == [8, 4, 2]
    errors = [item.mean_squared_error for item in found]
    assert errors[0] < errors[1] < errors[2]


def test_a_picture_of_few_colours_is_kept() -> None:
    flat = np.zeros((4, 5, 3), np.uint8)
    flat[2:, :, 1] = 200
    assert np.array_equal(picture.palettize(flat, 4).pixels, flat)


def test_the_page_gets_a_picture_file(tmp_path: Path) -> None:
    picture.draw(tmp_path / "deep" / "horse.png")
    assert matplotlib.image.imread(tmp_path / "deep" / "horse.png").shape[2] == 4
