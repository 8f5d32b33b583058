"""Time the candidates of `hayless.kernels.int8.tiles` on this GPU and print the best of each shape as JSON lines; what
is printed goes into `tiles_for` there. Some minutes; with `--seconds` what there is by then. From the root of the
project:

    python -m benchmarks.tune_int8 [--tokens 1,16,64,4096] [--shapes 16384x4096,28672x8192] [--seconds 500]

Times are those of the whole product of LLM.int8() with 1% of columns outlying, quantization included, in a captured
graph; weights are taken in turn, more than the L2 cache holds. A candidate that is off the plain product, or does not
compile, is told and left out. Needs torch and triton only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from benchmarks.tune_packed import seconds
from torch import Tensor

from hayless.kernels.int8 import plain
from hayless.kernels.int8.tiles import Tiles, candidates, tiles_for

SHAPES = "16384x4096,28672x8192,4096x4096,4096x11008"
THRESHOLD = 6.0
_CACHE = 120e6
"""Bytes of weights in turn: twice the largest L2 cache."""
_NEAR = 0.01
"""Of the largest magnitude: how far a result may be from the plain product."""


def main(arguments: list[str] | None = None) -> int:
    """Sweep and print; 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,16,64,4096")
    parser.add_argument("--shapes", default=SHAPES, help="out x in, separated by commas")
    parser.add_argument("--seconds", type=float, default=500)
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("there is no CUDA device", file=sys.stderr)
        return 1
    ends = time.monotonic() + chosen.seconds
    for tokens in map(int, chosen.tokens.split(",")):
        for shape in chosen.shapes.split(","):
            rows, width = map(int, shape.split("x"))
            print(json.dumps(sweep(tokens, rows, width, ends)), flush=True)
    return 0


def sweep(tokens: int, rows: int, width: int, ends: float) -> dict[str, Any]:
    """The three fastest candidates, and what is in use now."""
    torch.manual_seed(0)
    x = with_outliers(tokens, width)
    copies = [made(rows, width) for _ in range(1 + int(_CACHE / (rows * width)))]
    weight, scale = copies[0]
    wanted = plain.product(x[:64], weight, scale, None, THRESHOLD).float()
    times: list[tuple[float, Tiles]] = []
    for tiles in dict.fromkeys([tiles_for(tokens, rows), *candidates(tokens)]):
        if time.monotonic() > ends:
            print(f"{tokens} tokens, {rows}x{width}: time is over", file=sys.stderr)
            break
        try:
            taken = _timed(x, copies, tiles, wanted)
        except Exception as error:  # whatever the compiler or the device says of it
            print(f"{tokens} tokens, {rows}x{width}, {tiles}: {str(error).splitlines()[:1]}", file=sys.stderr)
        else:
            times.append((taken, tiles))
    now = [_row(*one, tokens, rows, width) for one in times if one[1] == tiles_for(tokens, rows)]
    times.sort(key=lambda one: one[0])
    best = [_row(*one, tokens, rows, width) for one in times[:3]]
    work = {"tokens": tokens, "out": rows, "in": width, "device": torch.cuda.get_device_name()}
    return {**work, "candidates": len(times), "now": now, "best": best}


def _timed(x: Tensor, copies: list[tuple[Tensor, Tensor]], tiles: Tiles, wanted: Tensor) -> float:
    """Seconds of one product. ArithmeticError where it is off the plain one."""
    from hayless.kernels.int8.product import product

    found = product(x, *copies[0], None, THRESHOLD, tiles=tiles)[: len(wanted)].float()
    off = (found - wanted).abs().max()
    if not off <= _NEAR * wanted.abs().max():
        raise ArithmeticError(f"off by {float(off):.3g}")
    return seconds(lambda: [product(x, *one, None, THRESHOLD, tiles=tiles) for one in copies]) / len(copies)


def _row(taken: float, tiles: Tiles, tokens: int, rows: int, width: int) -> dict[str, Any]:
    rates = {"TOP_per_s": 2e-12 * tokens * rows * width / taken, "TB_per_s": 1e-12 * rows * width / taken}
    rounded = {name: float(f"{rate:.3g}") for name, rate in rates.items()}
    return {"microseconds": round(taken * 1e6, 2), **rounded, **asdict(tiles)}


def with_outliers(tokens: int, width: int, device: str = "cuda") -> Tensor:
    """fp16 (tokens, width), normal numbers below the threshold, and a column in a hundred that is twenty times that."""
    x = torch.randn(tokens, width, device=device).clamp(-5.5, 5.5)
    x[:, torch.randperm(width, device=device)[: max(1, width // 100)]] *= 20
    return x.half()


def made(rows: int, width: int, device: str = "cuda") -> tuple[Tensor, Tensor]:
    """Random codes and scales."""
    codes = torch.randint(-127, 128, (rows, width), dtype=torch.int8, device=device)
    return codes, torch.rand(rows, device=device) + 0.5


if __name__ == "__main__":
    sys.exit(main())
