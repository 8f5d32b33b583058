"""The kernels of a decode step on one GPU.

    python benchmarks/decode_kernels.py tune|profile [--models FOLDER]

`tune` times the matrix-vector products by tile sizes beside cuBLAS, weights rotated through more than the L2 holds;
`profile` says where a step's time goes.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
import transformers
from timing import device_time, llama_7b

from decode import planned, session_of, step_time
from hayless.decode.graphs import Session
from hayless.kernels.linear import Norm, Tiles, gemv

LAYERS = {
    "qkv": (4096, (4096, 4096, 4096), False),
    "o": (4096, (4096,), False),
    "gate_up": (4096, (11008, 11008), True),
    "down": (11008, (4096,), False),
    "head": (4096, (32000,), False),
}
SMALL_LAYERS = {
    "16M qkv": (384, (384, 128, 128), False),
    "16M gate_up": (384, (1024, 1024), True),
    "16M down": (1024, (384,), False),
    "16M head": (384, (8192,), False),
}
TILES = [
    Tiles(rows, columns, warps, stages)
    for (rows, columns, warps), stages in itertools.product(
        [(2, 1024, 4), (4, 1024, 4), (8, 512, 4), (4, 512, 4), (4, 512, 2), (8, 256, 2)], (2, 3, 4)
    )
]
SMALL_TILES = [
    Tiles(rows, columns, warps)
    for rows, columns, warps in [
        (2, 512, 1),
        (4, 512, 1),
        (4, 512, 2),
        (4, 512, 4),
        (8, 512, 4),
        (2, 1024, 4),
        (4, 1024, 4),
    ]
]


@torch.inference_mode()
def tune() -> None:
    """Microseconds of each product by tiles, fastest first; `+` marks kernels that overlap."""
    for layers, choices, count in ((LAYERS, TILES, 10), (SMALL_LAYERS, SMALL_TILES, 16)):
        for name, (width, sizes, gated) in layers.items():
            sets = [[_random(n, width) for n in sizes] for _ in range(count)]
            whole = [torch.cat(weights) for weights in sets]
            x, out = _random(1, width), _random(1, sizes[0] if gated else sum(sizes))
            norm = None if name in ("o", "down") else Norm(torch.ones_like(x[0]), 1e-6)

            def cublas(x: torch.Tensor = x, whole: list[torch.Tensor] = whole) -> None:
                for weight in whole:
                    torch.mm(x, weight.T)

            took = {}
            for tiles, overlap in itertools.product(choices, (False, True)):

                def run(tiles: Tiles = tiles, overlap: bool = overlap) -> None:
                    for weights in sets:  # noqa: B023
                        gemv(x, weights, out, norm=norm, gated=gated, tiles=tiles, overlap=overlap)  # noqa: B023

                label = f"{tiles.rows}x{tiles.columns}w{tiles.warps}s{tiles.stages}{'+' if overlap else ''}"
                took[label] = _graphed(run) / count * 1e3
            shown = "  ".join(
                f"{label} {micro:.1f}" for label, micro in sorted(took.items(), key=lambda one: one[1])[:10]
            )
            rate = whole[0].nbytes / min(took.values()) / 1e6
            print(f"{name}: cuBLAS {_graphed(cublas) / count * 1e3:.1f} us; best {rate:.2f} TB/s | {shown}", flush=True)


def profile(models: Path | None) -> None:
    """Milliseconds of steps, and the kernels they are made of."""
    program = planned(llama_7b())
    for rows, length in ((1, 512), (1, 8192), (32, 512)):
        session = session_of(program, rows, length)
        took = step_time(session)
        print(f"7B shape, {rows} rows of {length} tokens: {took.median:.3f} ms", flush=True)
        _breakdown(session)
    if models is not None:
        target = transformers.AutoModelForCausalLM.from_pretrained(models / "target", dtype=torch.bfloat16)
        session = session_of(planned(target.cuda().eval()), 1, 128)
        took = step_time(session)
        print(f"trained target, 1 row of 128 tokens: {took.median * 1e3:.1f} us")
        _breakdown(session)


def _breakdown(session: Session) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        session.replay("greedy")
        torch.cuda.synchronize()
    for one in sorted(found.key_averages(), key=lambda one: -one.device_time_total)[:9]:
        print(f"    {one.device_time_total:9.1f} us {one.count:4d} x {one.key[:90]}", flush=True)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def _graphed(run: object) -> float:
    """Milliseconds of `run` as a captured graph."""
    assert callable(run)
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return device_time(graph.replay).median


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "profile"])
    parser.add_argument("--models", type=Path, help="folder of the trained model `target`")
    chosen = parser.parse_args()
    if chosen.what == "tune":
        tune()
    else:
        profile(chosen.models)


if __name__ == "__main__":
    main()
