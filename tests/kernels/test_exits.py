"""Kernels of tokens that leave early, against plain PyTorch; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from hayless.methods.decoding.early_exit.confidence import Classifier, softmax_gap, state_cosine

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels.exits import Leaving, Line, hold, look
from hayless.kernels.linear import Norm, rms_norm_reference
from hayless.kernels.skipped import Keys, keep, keep_reference, table_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, WIDTH, ENTRIES = 3, 40, 5000


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float32).to(DEVICE, dtype)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["softmax", "state", "classifier"])
def test_rows_leave_where_the_confidence_is_enough_and_once(kind, dtype):
    x, shown, before = (random(ROWS, WIDTH, dtype=dtype) for _ in range(3))
    before[1] = x[1] * 2
    logits = random(ROWS, ENTRIES)
    logits[:, 4321] += torch.tensor([0.0, 9.0, 5.5], device=DEVICE)
    norm = Norm(1 + random(WIDTH, dtype=dtype), 1e-5)
    line = Line(random(WIDTH), torch.tensor(0.3, device=DEVICE), norm)
    sure = {
        "softmax": softmax_gap(logits),
        "state": state_cosine(x, before),
        "classifier": Classifier(line.weight, line.bias)(rms_norm_reference(shown, norm)),
    }[kind]
    leaving = Leaving(ROWS, 2, WIDTH, dtype, torch.device(DEVICE))
    leaving.left_b.fill_(7), leaving.going_nb.fill_(9)  # the first exit must not read what is there
    active = torch.tensor([1, 1, 0], dtype=torch.int32, device=DEVICE)
    layers = torch.zeros(ROWS, dtype=torch.int32, device=DEVICE)
    given = {"softmax": {"logits": logits}, "state": {"before": before}, "classifier": {"line": line}}[kind]
    highest, second, lowest = sure.sort(descending=True).values.tolist()
    look(kind, 2, 0, x, shown, leaving, active, layers, (highest + second) / 2, depth=5, **given)
    first = sure >= (highest + second) / 2
    assert layers.tolist() == torch.where(first, 2, 5).tolist() and leaving.left_b.tolist() == first.int().tolist()
    assert leaving.going_nb[0].tolist() == (~first & (active == 1)).int().tolist()
    assert torch.equal(leaving.kept_bh, x) and torch.equal(leaving.shown_bh, shown)
    look(kind, 4, 1, x, shown, leaving, active, layers, (second + lowest) / 2, depth=5, **given)
    then = sure >= (second + lowest) / 2
    assert layers.tolist() == torch.where(first, 2, torch.where(then, 4, 5)).tolist()
    assert leaving.left_b.tolist() == then.int().tolist()
    assert leaving.going_nb[1].tolist() == (~then & (active == 1)).int().tolist()


def test_what_is_not_a_number_does_not_leave():
    leaving = Leaving(1, 1, WIDTH, torch.float32, torch.device(DEVICE))
    layers, x = torch.zeros(1, dtype=torch.int32, device=DEVICE), random(1, WIDTH)
    logits = torch.full((1, 20), float("nan"), device=DEVICE)
    look("softmax", 2, 0, x, x, leaving, torch.ones_like(layers), layers, 0.0, depth=5, logits=logits)
    assert layers.tolist() == [5] and leaving.going_nb.tolist() == [[1]]


def test_rows_that_left_are_held_back():
    x, kept = random(ROWS, WIDTH), random(ROWS, WIDTH)
    left = torch.tensor([0, 1, 1], dtype=torch.int32, device=DEVICE)
    wanted = torch.where(left[:, None] == 1, kept, x)
    hold(x, kept, left)
    assert torch.equal(x, wanted)


@pytest.mark.parametrize(
    ("dtype", "width", "dim", "bias", "k_norm"),
    [
        (torch.float32, 40, 16, False, False),
        (torch.bfloat16, 600, 24, True, False),
        (torch.float32, 24, 20, False, True),
        (torch.bfloat16, 64, 32, True, True),
    ],
)
def test_keys_and_values_of_skipped_layers(dtype, width, dim, bias, k_norm):
    count, heads, capacity, first, eps = 3, 2, 9, 1, 1e-5

    def tensor(*shape):
        return random(*shape, dtype=dtype)

    layers = [
        Keys(
            1 + tensor(width) / 4,
            tensor(heads * dim, width) / width**0.5,
            tensor(heads * dim, width) / width**0.5,
            tensor(heads * dim) if bias else None,
            tensor(heads * dim) if bias else None,
            1 + tensor(dim) / 4 if k_norm else None,
        )
        for _ in range(count)
    ]
    x, angles = tensor(ROWS, width), random(capacity, dim // 2)
    cos, sin = angles.cos(), angles.sin()
    lengths = torch.tensor([4, 0, 8], dtype=torch.int32, device=DEVICE)
    k_cache, v_cache = (torch.full((count, ROWS, heads, capacity, dim), 7.0, device=DEVICE, dtype=dtype) for _ in "kv")
    k_wanted, v_wanted = k_cache.clone(), v_cache.clone()
    table = table_of(layers, torch.device(DEVICE))
    keep(x, table, first, cos, sin, lengths, k_cache, v_cache, eps=eps, bias=bias, k_norm=k_norm)
    keep_reference(x, layers, first, cos, sin, lengths, k_wanted, v_wanted, eps=eps)
    off = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(k_cache, k_wanted, **off)
    torch.testing.assert_close(v_cache, v_wanted, **off)
    assert (k_cache[:first] == 7).all() and (v_cache[first:, 0, :, 5:] == 7).all()
