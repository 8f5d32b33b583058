"""Every kernel equals its plain reference, in Triton's interpreter on a CPU, on a GPU also in bf16.

Outputs and everything a kernel must not read are NaN first.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels import attention, choose, linear

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 is wrong in Triton's interpreter.
DTYPES = [torch.float32, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float32, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _random(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape) * scale).to(DEVICE, dtype)


def _poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def _close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.float(), expected.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("width", "sizes", "gated"),
    [(64, (48,), False), (100, (37, 5, 9), False), (33, (1,), False), (72, (19, 19), True)],
)
@pytest.mark.parametrize(
    ("extras", "tokens"), [("none", 1), ("norm", 1), ("bias", 1), ("residual", 1), ("all", 1), ("none", 5), ("all", 3)]
)
def test_gemv(dtype, width, sizes, gated, extras, tokens):
    x = _random(tokens, width, dtype=dtype)
    weights = [_random(size, width, dtype=dtype, scale=width**-0.5) for size in sizes]
    total = sizes[0] if gated else sum(sizes)
    norm = linear.Norm(_random(width, dtype=dtype), 1e-5) if extras in ("norm", "all") else None
    biases = [_random(size, dtype=dtype) for size in sizes] if extras in ("bias", "all") else ()
    residual = _random(tokens, total, dtype=dtype) if extras in ("residual", "all") else None
    options = {"biases": biases, "norm": norm, "gated": gated, "residual": residual}
    expected = linear.gemv_reference(x, weights, **options)
    for tiles in (linear.Tiles(4, 32, 1), linear.Tiles(16, 128, 1), linear.Tiles(2, 32, 1, stages=2)):
        if tokens > 1 and width > tiles.columns:
            with pytest.raises(ValueError, match="tokens"):
                linear.gemv(x, weights, _poisoned(tokens, total, dtype=dtype), tiles=tiles, **options)
            continue
        found = linear.gemv(x, weights, _poisoned(tokens, total, dtype=dtype), tiles=tiles, **options)
        _close(found, expected, dtype)
        for token in range(tokens):
            alone = {**options, "residual": residual[token : token + 1] if residual is not None else None}
            one = linear.gemv(x[token : token + 1], weights, _poisoned(1, total, dtype=dtype), tiles=tiles, **alone)
            assert torch.equal(found[token : token + 1], one)


def test_gemv_adds_to_its_own_output_and_writes_other_dtypes():
    x, weight, residual = _random(1, 40), _random(24, 40), _random(1, 24)
    expected = linear.gemv_reference(x, [weight], residual=residual)
    _close(linear.gemv(x, [weight], residual, residual=residual), expected, torch.float32)
    half = linear.gemv(x.half(), [weight.half()], _poisoned(1, 24))
    assert half.dtype is torch.float32
    _close(half, linear.gemv_reference(x.half(), [weight.half()], out_dtype=torch.float32), torch.float16)
    with pytest.raises(ValueError, match="biases"):
        linear.gemv(x, [weight, weight], _poisoned(1, 48), biases=[residual[0], None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 64), (1, 33)])
def test_norm_and_swiglu(dtype, shape):
    x, other = _random(*shape, dtype=dtype), _random(*shape, dtype=dtype)
    norm = linear.Norm(_random(shape[1], dtype=dtype), 1e-6)
    _close(linear.rms_norm(x, norm, _poisoned(*shape, dtype=dtype)), linear.rms_norm_reference(x, norm), dtype)
    _close(linear.swiglu(x, other, _poisoned(*shape, dtype=dtype)), linear.swiglu_reference(x, other), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim", "splits", "normed", "positions"),
    [
        (2, 3, 16, 4, False, 1),
        (1, 1, 32, 1, False, 1),
        (2, 2, 24, 2, True, 1),
        (1, 4, 64, 8, True, 1),
        (2, 3, 16, 4, False, 5),
        (1, 2, 24, 1, True, 2),
        (1, 4, 64, 4, False, 9),
    ],
)
def test_attention_over_rows_of_every_length(dtype, kv_heads, group, dim, splits, normed, positions):
    lengths = [0, 1, 5, 70, 130]
    rows, capacity, heads = len(lengths), 150, kv_heads * group
    fused = _random(rows * positions, (heads + 2 * kv_heads) * dim, dtype=dtype)
    q, k, v = fused.split([heads * dim, kv_heads * dim, kv_heads * dim], 1)
    angles = torch.outer(torch.arange(capacity), 100.0 ** -(torch.arange(dim // 2) / (dim // 2))).to(DEVICE)
    cos, sin = angles.cos(), angles.sin()
    caches = [_poisoned(rows, kv_heads, capacity, dim, dtype=dtype) for _ in range(2)]
    for row, length in enumerate(lengths):
        for cache in caches:
            cache[row, :, :length] = _random(kv_heads, length, dim, dtype=dtype)
    norms = [linear.Norm(_random(dim, dtype=dtype), 1e-6) if normed else None for _ in range(2)]
    device_lengths = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    reference = [cache.clone() for cache in caches]
    expected = attention.decode_attention_reference(
        q, k, v, cos, sin, device_lengths, *reference, q_norm=norms[0], k_norm=norms[1]
    )
    scratch = attention.Scratch(rows, heads * positions, kv_heads, dim, splits, DEVICE)
    for part in (scratch.parts, scratch.maxima, scratch.sums):
        part.fill_(torch.nan)
    # Twice: the counters must be as they were.
    for offset in (0, -3):
        out = _poisoned(rows * positions, heads * dim, dtype=dtype)
        places = device_lengths - offset
        attention.decode_attention(
            q, k, v, cos, sin, places, *caches, out, scratch, q_norm=norms[0], k_norm=norms[1], offset=offset
        )
        _close(out, expected, dtype)
    for found, wanted in zip(caches, reference, strict=True):
        torch.testing.assert_close(found.float(), wanted.float(), rtol=1e-2, atol=1e-2, equal_nan=True)
    assert not scratch.done.any()


@pytest.mark.parametrize(
    ("rows", "kv_heads", "capacity", "expected"),
    [(1, 32, 4096, 8), (1, 2, 4096, 32), (1, 2, 256, 4), (32, 32, 4096, 1), (4, 8, 8192, 8), (1, 1, 48, 1)],
)
def test_splits_fill_the_processors(rows, kv_heads, capacity, expected):
    assert attention.splits_for(rows, kv_heads, capacity, 132) == expected


@pytest.mark.parametrize("entries", [7, 96, 5000])
def test_likeliest(entries):
    logits = _random(4, entries, scale=5.0)
    logits[0, entries // 2] = logits[0, 2] = 40.0
    logits[1, : entries // 2] = -torch.inf
    logits[3, 1] = torch.nan
    tokens = torch.full((4,), -1, device=DEVICE)
    logprobs = _poisoned(4)
    choose.likeliest(logits, tokens, logprobs)
    expected_tokens, expected = choose.likeliest_reference(logits)
    assert tokens[:3].tolist() == expected_tokens[:3].tolist() and tokens[0] == 2
    _close(logprobs[:3], expected[:3], torch.float32)
    assert logprobs[3].isnan() and 0 <= tokens[3] < entries

    given = _poisoned(4)
    choose.logprobs_of(logits, tokens, given)
    assert torch.equal(given[:3], logprobs[:3]) and given[3].isnan()
    other = torch.tensor([1, entries - 1, 0, 3], device=DEVICE)
    choose.logprobs_of(logits, other, given)
    _close(given[:3], logits.float().log_softmax(-1).gather(-1, other[:, None])[:3, 0], torch.float32)
