"""A pass in kernels gives the hidden states' logits and the cache of the plain program, several tokens a row."""

from __future__ import annotations

import pytest
import torch

from hayless.core.registry import configure
from hayless.decode.bank import AdapterBank
from hayless.decode.cache import StaticCache
from hayless.decode.program import Program, plan
from hayless.model.transform import apply
from tests import tiny
from tests.decode.adapters import adapters, base

pytest.importorskip("triton", reason="triton is not installed")

from hayless.decode.kernel_pass import KernelPass

pytestmark = pytest.mark.usefixtures("exact_float32")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
UNEVEN = [[0, 5, 9, 30, 31], [17], [44, 45, 46]]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "cublas"])
@pytest.mark.parametrize(
    ("name", "prompts", "positions", "offset"),
    [("llama", UNEVEN, 3, 0), ("qwen3", UNEVEN[:1], 4, -1), ("llama-tied", UNEVEN, 1, 1)],
)
def test_equals_the_plain_program(name, prompts, positions, offset, fused):
    program = plan(tiny.model(name).to(DEVICE))
    rows = len(prompts)
    caches = [StaticCache(program.dims, rows, 16, program.dtype, program.device) for _ in range(2)]
    for cache in caches:
        program.prefill(prompts, cache, 16)
        for part in (cache.k, cache.v):
            for row, length in enumerate(cache.lengths):
                part[:, row, :, length:] = torch.nan
    lengths_b = torch.tensor([n - offset for n in caches[0].lengths], dtype=torch.int32, device=DEVICE)
    tokens_bs = torch.randint(96, (rows, positions), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = program.logits(program.forward(tokens_bs, caches[1]))
    run = KernelPass(program, caches[0], lengths_b, positions=positions)
    last = KernelPass(program, caches[0], lengths_b, positions=positions, last=True)
    assert run.fused and last.fused, "the model is small"
    if not fused:
        run.fused = last.fused = run.overlap = last.overlap = False
    torch.testing.assert_close(run.launch(tokens_bs.flatten(), offset), expected.flatten(0, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last.launch(tokens_bs.flatten(), offset), expected[:, -1], rtol=1e-4, atol=1e-4)
    for part in ("k", "v"):
        found, wanted = (getattr(cache, part) for cache in caches)
        for row, length in enumerate(caches[1].lengths):
            torch.testing.assert_close(found[:, row, :, :length], wanted[:, row, :, :length], rtol=1e-4, atol=1e-4)
            assert found[:, row, :, length:].isnan().all()


@pytest.mark.parametrize("method", ["kmeans", "nf4", "int8"])
def test_packed_blocks_run_in_the_program_and_give_what_their_modules_give(method):
    model = tiny.model("llama").to(DEVICE)
    apply(model, [configure(method)])
    program = plan(model)
    ids = torch.tensor([[5, 9, 30, 31]], device=DEVICE)
    with torch.no_grad():
        expected = model(ids).logits[:, -1]
    cache = StaticCache(program.dims, 1, 8, program.dtype, program.device)
    program.prefill([[5, 9, 30]], cache, 8)
    run = KernelPass(program, cache, torch.tensor([3], dtype=torch.int32, device=DEVICE))
    assert program.packed and not run.fused
    # int8 rounds each token's input, so that a last bit of it can move a code.
    close = {"rtol": 1e-4, "atol": 1e-4} if method != "int8" else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(run.launch(ids[0, -1:]), expected, **close)
    assert not program.fits(model.to(torch.bfloat16))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize(("packing", "invariant"), [(None, True), ("nf4", False)])
def test_rows_get_the_branches_of_their_slots(packing, invariant):
    model, found = base("llama", [configure(packing)] if packing else [], DEVICE.type), adapters("llama")
    bank = AdapterBank.for_adapters(model, found.values(), 4)
    slots = [bank.add(name, one) for name, one in found.items()]
    program = plan(model, bank.branches)
    assert isinstance(program, Program) and not program.plain
    rows = UNEVEN[:2]
    caches = [StaticCache(program.dims, 2, 16, program.dtype, program.device) for _ in range(2)]
    lengths_b = torch.tensor([len(row) for row in rows], dtype=torch.int32, device=DEVICE)
    run = KernelPass(program, caches[0], lengths_b, invariant=invariant)
    assert not run.fused
    tokens_b = torch.tensor([7, 8], device=DEVICE)
    # What a captured step reads is one tensor, whatever adapters rows have.
    slots_b = torch.full((2,), -1, dtype=torch.int32, device=DEVICE)
    said = []
    for chosen in ([slots[2], -1], [slots[2], slots[0]]):
        slots_b.copy_(torch.tensor(chosen))
        with program.rows.using(slots_b):
            for cache in caches:
                program.prefill(rows, cache, 16)
            expected = program.logits(program.forward(tokens_b[:, None], caches[1])[:, 0])
            said.append(run.launch(tokens_b).clone())
        torch.testing.assert_close(said[-1], expected, rtol=1e-3, atol=1e-3)
    assert torch.allclose(said[0][0], said[1][0], atol=1e-3) and not torch.allclose(said[0][1], said[1][1], atol=0.1)


def test_a_packed_table_runs_in_modules():
    model = tiny.model("llama")
    apply(model, [configure("kmeans", targets=("blocks", "embedding"))])
    assert "embed_tokens" in plan(model).reason


@pytest.mark.parametrize("name", ["llama-tied", "qwen3"])
def test_a_row_s_bits_are_its_own_where_that_is_asked_for(name):
    program = plan(tiny.model(name).to(DEVICE))
    tokens_b = torch.tensor([7, 8, 9], device=DEVICE)

    def logits(rows: list[int], capacity: int) -> torch.Tensor:
        cache = StaticCache(program.dims, len(rows), capacity, program.dtype, program.device)
        for at, row in enumerate(rows):
            program.prefill([UNEVEN[row]], cache.rows(at, at + 1), 16)
        lengths_b = torch.tensor([len(UNEVEN[row]) for row in rows], dtype=torch.int32, device=DEVICE)
        run = KernelPass(program, cache, lengths_b, invariant=True)
        return run.launch(tokens_b[rows])

    together = logits([0, 1, 2], 16)
    assert torch.equal(logits([0], 320), together[:1]) and torch.equal(logits([0, 2], 16)[:1], together[:1])
    if DEVICE.type == "cuda":  # see test_invariant
        assert torch.equal(logits([2, 0], 64), together[[2, 0]])
    plain = StaticCache(program.dims, 3, 16, program.dtype, program.device)
    program.prefill(UNEVEN, plain, 16)
    expected = program.logits(program.forward(tokens_b[:, None], plain)[:, 0])
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-4)
