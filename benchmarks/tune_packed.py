"""Time the candidates of `hayless.kernels.packed.tiles` on this GPU and print the best of each as JSON lines; what is
printed goes into the tables of that file. Some minutes; with `--seconds` what there is by then:

    python benchmarks/tune_packed.py [--designs streamed,tensor_cores,gemv,gemm] [--forms int4,int4/64,int8,nf4]
        [--tokens 1,16,64] [--shapes 4096x4096,28672x8192] [--seconds 500]

Weights are random, and enough are multiplied in turn, in a captured graph, that none is found in the L2 cache. A
candidate that is off the plain reference, or does not compile, is told and left out. Needs torch and triton only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hayless.kernels.packed import streamed, tiles
from hayless.kernels.packed.formats import Integers, Packed, Palette, Product, Table, dequantize_reference
from hayless.kernels.packed.gemm import gemm
from hayless.kernels.packed.gemv import gemv
from hayless.kernels.packed.tensor_cores import definitions, fits, multiply, unsupported
from hayless.kernels.packed.tiles import RowTiles, StreamTiles

SHAPES = "12288x4096,4096x4096,22016x4096,4096x11008,28672x8192"
_CACHE = 120e6
"""Bytes of weights in turn: twice the largest L2 cache."""
_NEAR = 0.02
"""Of the largest magnitude: how far a result may be from the reference."""


def main(arguments: list[str] | None = None) -> int:
    """Sweep and print; 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--designs", default="streamed,tensor_cores,gemv,gemm")
    parser.add_argument("--forms", default="int4,int4/64,nf4,int8")
    parser.add_argument("--tokens", default="1,16,64")
    parser.add_argument("--shapes", default=SHAPES, help="out x in, separated by commas")
    parser.add_argument("--seconds", type=float, default=500)
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("there is no CUDA device", file=sys.stderr)
        return 1
    ends = time.monotonic() + chosen.seconds
    shapes = [(int(rows), int(width)) for rows, width in (one.split("x") for one in chosen.shapes.split(","))]
    for tokens in map(int, chosen.tokens.split(",")):
        for form in chosen.forms.split(","):
            for rows, width in shapes:
                for design in chosen.designs.split(","):
                    found = sweep(design, form, rows, width, tokens, ends)
                    if found:
                        print(json.dumps(found), flush=True)
    return 0


def sweep(design: str, form: str, rows: int, width: int, tokens: int, ends: float) -> dict[str, Any]:
    """The three fastest candidates of a design; empty where it cannot do this, or time is over."""
    torch.manual_seed(0)
    weight = made(form, rows, width)
    x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
    run, candidates = _design(design, x, weight)
    if not candidates:
        return {}
    copies = [weight, *[made(form, rows, width) for _ in range(1 + int(_CACHE / _size(weight)))]]
    out = torch.empty(tokens, rows, device="cuda", dtype=torch.bfloat16)
    wanted = x.float() @ dequantize_reference(weight, torch.float32).T
    with ThreadPoolExecutor() as pool:  # compiles side by side; what does not is told below
        list(pool.map(lambda one: _tried(lambda: run(x, weight, None, torch.empty_like(out), tiles=one)), candidates))
    torch.cuda.synchronize()
    times: list[tuple[float, Any]] = []
    for candidate in candidates:
        if time.monotonic() > ends:
            print(f"{design}, {form}, {rows}x{width}, {tokens}: time is over", file=sys.stderr)
            break
        try:
            off = (run(x, weight, None, out.fill_(torch.nan), tiles=candidate).float() - wanted).abs().max()
            if not off <= _NEAR * wanted.abs().max():
                raise ArithmeticError(f"off by {float(off):.3g}")
            taken = seconds(lambda: [run(x, one, None, out, tiles=candidate) for one in copies])  # noqa: B023
            times.append((taken / len(copies), candidate))
        except Exception as error:  # whatever the compiler or the device says of it
            print(f"{design}, {form}, {candidate}: {str(error).partition(chr(10))[0][:200]}", file=sys.stderr)
    times.sort(key=lambda one: one[0])
    best = [
        {"microseconds": round(taken * 1e6, 2), "TB_per_s": round(_size(weight) / taken / 1e12, 3), **asdict(one)}
        for taken, one in times[:3]
    ]
    device = torch.cuda.get_device_name()
    work = {"design": design, "form": form, "out": rows, "in": width, "tokens": tokens, "device": device}
    return {**work, "candidates": len(times), "best": best} if best else {}


def _tried(run: Callable[[], object]) -> None:
    with suppress(Exception):
        run()


def _design(name: str, x: Tensor, weight: Packed) -> tuple[Callable[..., Tensor], Sequence[Any]]:
    """A kernel and the tiles to try; none where it cannot do this."""
    tokens = x.shape[0]
    if name == "gemv":
        return gemv, tiles.VECTOR_CANDIDATES if tokens == 1 else []
    if name == "gemm":
        return gemm, tiles.MATRIX_CANDIDATES if tokens > 1 else []
    if name == "streamed":
        candidates = tiles.STREAM_CANDIDATES if tokens <= streamed.FEW else tiles.ROW_CANDIDATES
        return _streamed, [] if streamed.unsupported(x, weight) else candidates
    if unsupported(x, weight) or isinstance(weight, Palette):
        return multiply, []
    different = {tuple(definitions(x, weight, one).items()): one for one in reversed(tiles.CORE_CANDIDATES)}
    return multiply, [one for one in different.values() if fits(x, weight, one)]


def _streamed(x: Tensor, weight: Packed, bias: Tensor | None, out: Tensor, *, tiles: StreamTiles | RowTiles) -> Tensor:
    """As the other designs are called; each begins while the one before still runs."""
    assert not isinstance(weight, Palette)
    streamed.stream(x, [Product(weight, bias, out)], overlap=True, tiles=tiles)
    return out


def made(form: str, rows: int, width: int) -> Packed:
    """A random weight: integers in groups of 128, or as many as `int4/64` says (of 8 bits: by rows), nf4-like tables in
    blocks of 64."""

    def codes(*shape: int) -> Tensor:
        return torch.randint(256, shape, device="cuda", dtype=torch.uint8)

    if form == "nf4":
        values = torch.linspace(-1, 1, 16, device="cuda")
        return Table(codes(rows * width // 2, 1), torch.rand(rows * width // 64, device="cuda"), values, (rows, width))
    name, _, group = form.partition("/")
    bits = int(name.removeprefix("int"))
    groups = 1 if bits == 8 else width // int(group or 128)
    scale = torch.rand(rows, groups, device="cuda", dtype=torch.bfloat16)
    return Integers(codes(rows, width * bits // 8), scale, bits)


def _size(weight: Packed) -> int:
    """Bytes that are read of it."""
    assert isinstance(weight, Integers | Table)
    return weight.codes.nbytes + (weight.scale if isinstance(weight, Integers) else weight.absmax).nbytes


def seconds(run: Callable[[], object]) -> float:
    """The median of some replays of `run`, captured."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()
    taken = []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    del kept
    return median(taken[2:])


if __name__ == "__main__":
    sys.exit(main())
