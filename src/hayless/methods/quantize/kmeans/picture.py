"""A picture at few colours: palettization where one can see it.

The picture is drawn here (a horse that would like to eat no grass), its colours are points in three dimensions, and the
k-means that packs weights finds the palette. 256 colours take 8 bits a pixel, 16 take 4, 4 take 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, PathPatch, Polygon
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from hayless.methods.quantize.kmeans.vectors import cluster

COLOURS = (256, 16, 4)
Pixels = NDArray[np.uint8]
Corners = tuple[tuple[float, float], ...]
_BINS = 102


@dataclass(frozen=True, slots=True)
class Palettized:
    """A picture (height, width, 3) in `colours` colours.

    `mean_squared_error` is over pixels and channels, in units of a 256th of full brightness, squared. `histogram`
    counts the errors (picture less original, all channels) between the `edges`.
    """

    colours: int
    bits: int
    pixels: Pixels
    palette: Pixels
    mean_squared_error: float
    histogram: NDArray[np.int64]
    edges: NDArray[np.float64]


def palettize(picture: Pixels, colours: int, *, iterations: int = 30, seed: int = 0) -> Palettized:
    """The picture with each pixel in the nearest of `colours` colours that k-means found."""
    points = torch.from_numpy(picture.reshape(-1, 3).astype(np.float32))
    centroids, index = cluster(points, colours, iterations=iterations, seed=seed)
    palette = centroids.round().clamp(0, 255).to(torch.uint8)
    pixels: Pixels = palette[index].numpy().reshape(picture.shape)
    error = pixels.astype(np.float64) - picture
    histogram, edges = np.histogram(error, bins=_BINS, range=(-255, 255))
    return Palettized(
        colours, (colours - 1).bit_length(), pixels, palette.numpy(), float((error**2).mean()), histogram, edges
    )


def landscape(width: int = 360, height: int = 240) -> Pixels:
    """A horse on a hill in the evening, (height, width, 3)."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 3), ylim=(0, 2))
    axes.axis("off")
    axes.imshow(_sky(), extent=(0, 3, 0, 2), aspect="auto", interpolation="bilinear")
    for radius in np.linspace(0.62, 0.2, 22):
        axes.add_patch(Ellipse((2.36, 1.3), radius, radius, color="#ffe9a8", alpha=0.06, lw=0))
    axes.add_patch(Ellipse((2.36, 1.3), 0.26, 0.26, color="#fff3cf", lw=0))
    x = np.linspace(0, 3, 200)
    hills = ((0.98, 0.16, 1.1, 0.3, "#7f86ad"), (0.8, 0.13, 1.9, 1.4, "#5b7494"), (0.64, 0.09, 2.7, 2.9, "#3f6a6a"))
    for base, swing, waves, start, colour in hills:
        y = base + swing * np.sin(waves * x + start) + 0.03 * np.sin(7 * waves * x)
        axes.fill_between(x, 0, y, color=colour, lw=0)
    axes.fill_between(x, 0, _meadow(x), color="#4d7a2f", lw=0)
    _grass(axes, np.random.default_rng(5))
    _horse(axes)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw(path: Path, *, seed: int = 0) -> list[Palettized]:
    """Write a PNG with the picture at 256, 16 and 4 colours and the histogram of each one's error; return them."""
    picture = landscape()
    found = [palettize(picture, colours, seed=seed) for colours in COLOURS]
    figure = Figure(figsize=(11, 4.1), dpi=110, layout="constrained")
    grid = figure.subplots(2, len(found), height_ratios=(3, 1))
    for (above, below), item in zip(grid.T, found, strict=True):
        above.imshow(item.pixels, interpolation="nearest")
        above.set_title(f"{item.colours} colours, {item.bits} bits: MSE {item.mean_squared_error:.1f}", fontsize=10)
        above.axis("off")
        below.stairs(item.histogram, item.edges, fill=True, color="#3f6a6a")
        below.set(yscale="log", xlim=(-160, 160))
        below.set_xlabel("error of a channel (of 256)", fontsize=8)
        below.tick_params(labelsize=7)
    grid[1, 0].set_ylabel("count", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return found


def _sky() -> NDArray[np.float64]:
    """Night blue above, rose in the middle, yellow below: (rows, 1, 3), the top first."""
    stops = np.array([[0.17, 0.2, 0.42], [0.55, 0.42, 0.6], [0.95, 0.62, 0.5], [1.0, 0.86, 0.6]])
    rows = np.linspace(0, 1, 64)
    return np.stack([np.interp(rows, [0, 0.35, 0.62, 1], stops[:, channel]) for channel in range(3)], axis=-1)[:, None]


def _meadow(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.42 + 0.1 * np.sin(1.1 * x + 0.2)


def _grass(axes: Axes, random: np.random.Generator) -> None:
    """Blades from the back to the front, lighter and longer towards the viewer."""
    for near in np.linspace(0, 1, 14):
        roots = random.uniform(0, 3, 90)
        feet = _meadow(roots) * (1 - near) - 0.02
        length = random.uniform(0.04, 0.07, 90) * (1 + 1.6 * near)
        lean = random.normal(0, 0.02, 90) * (1 + near)
        colour = np.array([0.24, 0.42, 0.14]) + near * np.array([0.2, 0.26, 0.1])
        for root, foot, high, side in zip(roots, feet, length, lean, strict=True):
            shade = np.clip(colour * random.uniform(0.8, 1.15), 0, 1)
            blade = [(root - 0.008, foot), (root + 0.008, foot), (root + side, foot + high)]
            axes.add_patch(Polygon(blade, color=shade, lw=0))


_BODY: Corners = (
    (0.30, 0.86), (0.42, 0.93), (0.62, 0.90), (0.80, 0.91), (0.92, 0.98), (1.02, 1.14), (1.08, 1.25), (1.12, 1.33),
    (1.13, 1.41), (1.17, 1.34), (1.25, 1.28), (1.36, 1.17), (1.40, 1.12), (1.38, 1.07), (1.31, 1.08), (1.20, 1.15),
    (1.13, 1.12), (1.08, 0.98), (1.04, 0.84), (1.00, 0.74), (0.97, 0.66), (0.99, 0.52), (0.97, 0.34), (1.01, 0.28),
    (0.93, 0.28), (0.92, 0.36), (0.92, 0.50), (0.89, 0.62), (0.84, 0.64), (0.70, 0.61), (0.56, 0.61), (0.46, 0.65),
    (0.41, 0.56), (0.36, 0.50), (0.40, 0.36), (0.44, 0.28), (0.35, 0.28), (0.33, 0.35), (0.29, 0.50), (0.31, 0.58),
    (0.27, 0.68), (0.25, 0.78),
)  # fmt: skip
_FAR_LEGS: tuple[Corners, ...] = (
    ((0.48, 0.64), (0.47, 0.52), (0.52, 0.38), (0.56, 0.30), (0.48, 0.30), (0.46, 0.36), (0.41, 0.50), (0.38, 0.62)),
    ((0.96, 0.68), (1.06, 0.60), (1.12, 0.54), (1.07, 0.40), (1.10, 0.34), (1.02, 0.35), (1.04, 0.48), (0.98, 0.53),
     (0.88, 0.62)),
)  # fmt: skip
_MANE: Corners = (
    (1.12, 1.38), (1.05, 1.34), (0.98, 1.24), (0.90, 1.10), (0.82, 0.98), (0.78, 0.92), (0.90, 0.96), (1.00, 1.10),
    (1.07, 1.24), (1.15, 1.30),
)  # fmt: skip
_TAIL: Corners = (
    (0.32, 0.88), (0.22, 0.90), (0.14, 0.82), (0.10, 0.66), (0.11, 0.52), (0.06, 0.42), (0.17, 0.48), (0.19, 0.62),
    (0.22, 0.74), (0.27, 0.80),
)  # fmt: skip


def _horse(axes: Axes) -> None:
    shapes: list[tuple[Corners, str]] = [(leg, "#3a2114") for leg in _FAR_LEGS]
    shapes += [(_TAIL, "#1f120b"), (_BODY, "#6b3d20"), (_MANE, "#1f120b")]
    for corners, colour in shapes:
        patch = PathPatch(_smooth(np.add(corners, (0.35, 0.07))), facecolor=colour, lw=0)
        axes.add_patch(patch)
    axes.add_patch(Ellipse((1.575, 1.305), 0.022, 0.026, color="#120a06", lw=0))


def _smooth(corners: NDArray[np.float64]) -> Outline:
    """A closed curve that bends at each corner: quadratic pieces from midpoint to midpoint."""
    middles = (corners + np.roll(corners, -1, axis=0)) / 2
    points, codes = [middles[-1]], [Outline.MOVETO]
    for corner, middle in zip(corners, middles, strict=True):
        points += [corner, middle]
        codes += [Outline.CURVE3, Outline.CURVE3]
    return Outline(np.array(points), codes)
