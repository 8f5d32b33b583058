"""Grouped branches equal each row's own product, in Triton's interpreter on a CPU, on a GPU also in bf16.

What must not be read is NaN: other slots, and what lies behind a slot's rank.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels.adapter_kernels import add_by_slots
from hayless.kernels.adapters import Stack, add_branches, add_reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
# bf16 is wrong in Triton's interpreter.
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=GPU)]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
RANKS = (3, 0, 5, 1, 4)
SLOTS = [2, -1, 0, 2, 1, 3]
"""Slot 4 is nobody's; slot 1 has nothing here."""


def stack(width: int, out: int, most: int, dtype: torch.dtype) -> Stack:
    """Branches of RANKS; zero behind them."""
    a, b = torch.randn(len(RANKS), most, width) / width**0.5, torch.randn(len(RANKS), most, out)
    for slot, rank in enumerate(RANKS):
        a[slot, rank:], b[slot, rank:] = 0, 0
    scale = torch.rand(len(RANKS)) + 0.5
    return Stack(
        a.to(DEVICE, dtype),
        b.to(DEVICE, dtype),
        scale.to(DEVICE),
        torch.tensor(RANKS, dtype=torch.int32, device=DEVICE),
    )


def poisoned(whole: Stack) -> Stack:
    """The same with NaN wherever no row of SLOTS may look."""
    a, b = whole.a.clone(), whole.b.clone()
    for slot, rank in enumerate(RANKS):
        kept = rank if slot in SLOTS else 0
        a[slot, kept:], b[slot, kept:] = torch.nan, torch.nan
    return replace(whole, a=a, b=b)


def each(out: torch.Tensor, x: torch.Tensor, whole: Stack, positions: int) -> torch.Tensor:
    """What the definition says, token by token, in float64."""
    found = out.double()
    for n in range(len(x)):
        slot = SLOTS[n // positions]
        if slot >= 0:
            a, b, scale = whole.a[slot].double(), whole.b[slot].double(), whole.scale[slot].double()
            found[n] += scale * (b.T @ (a @ x[n].double()))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("width", "sizes", "positions", "most"),
    [(100, (37, 5, 9), 1, 5), (33, (70,), 3, 6), (72, (19, 600), 1, 8), (9000, (3,), 1, 5)],
)
def test_each_row_gets_its_own(dtype, width, sizes, positions, most):
    torch.manual_seed(0)
    tokens = len(SLOTS) * positions
    x = torch.randn(tokens, width).to(DEVICE, dtype)
    slots_b = torch.tensor(SLOTS, dtype=torch.int32, device=DEVICE)
    stacks = [stack(width, size, most, dtype) for size in sizes]
    # Parts of wider rows, between columns that must stay as they are.
    before = torch.randn(tokens, sum(sizes) + 2).to(DEVICE, dtype)
    wide = before.clone()
    add_by_slots(wide[:, 1:-1].split(list(sizes), 1), x, [poisoned(one) for one in stacks], slots_b)
    plain = [part.clone() for part in before[:, 1:-1].split(list(sizes), 1)]
    for found, out, part, one in zip(
        wide[:, 1:-1].split(list(sizes), 1), plain, range(len(sizes)), stacks, strict=True
    ):
        expected = each(out, x, one, positions)
        add_reference(out, x, one, slots_b)
        for result in (found, out):
            close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * 2}
            torch.testing.assert_close(
                result.double(), expected, msg=lambda said, part=part: f"{part}: {said}", **close
            )
    nobody = [n for n in range(tokens) if SLOTS[n // positions] == -1]
    assert torch.equal(wide[nobody], before[nobody])
    assert torch.equal(wide[:, [0, -1]], before[:, [0, -1]])


def test_a_row_s_bits_are_its_own():
    torch.manual_seed(0)
    x, one = torch.randn(len(SLOTS), 700, device=DEVICE), stack(700, 40, 5, torch.float32)
    slots_b = torch.tensor(SLOTS, dtype=torch.int32, device=DEVICE)
    together = torch.zeros(len(SLOTS), 40, device=DEVICE)
    add_by_slots([together], x, [one], slots_b)
    for row in range(len(SLOTS)):
        alone = torch.zeros(1, 40, device=DEVICE)
        add_by_slots([alone], x[row : row + 1], [one], slots_b[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_what_is_not_finite_stays_with_its_rows():
    one = stack(8, 6, 5, torch.float32)
    one.a[0] = torch.inf
    out = torch.ones(2, 3, 6, device=DEVICE)
    add_branches([out], torch.ones(2, 3, 8, device=DEVICE), [one], torch.tensor([-1, 0], device=DEVICE))
    assert torch.equal(out[0], torch.ones(3, 6, device=DEVICE)) and not out[1].isfinite().any()
    for x in (torch.ones(1, 6, 8, device=DEVICE), torch.ones(3, 8, device=DEVICE)):
        with pytest.raises(ValueError, match="not 2 rows"):
            add_branches([out], x, [one], torch.tensor([-1, 0], device=DEVICE))
    with pytest.raises(ValueError, match="4 at once"):
        add_by_slots([out] * 4, out[0], [one] * 4, torch.tensor([0], device=DEVICE))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_graph_follows_the_slots():
    torch.manual_seed(0)
    x, one = torch.randn(len(SLOTS), 256, device=DEVICE), stack(256, 64, 5, torch.float32)
    slots_b = torch.full((len(SLOTS),), -1, dtype=torch.int32, device=DEVICE)
    out = torch.zeros(len(SLOTS), 64, device=DEVICE)
    add_branches([out], x, [one], slots_b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        add_branches([out], x, [one], slots_b)
    graph.replay()
    assert not out.any()
    slots_b.copy_(torch.tensor(SLOTS, dtype=torch.int32))
    graph.replay()
    expected = torch.zeros_like(out)
    add_reference(expected, x, one, slots_b)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
