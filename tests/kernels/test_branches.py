"""A captured graph that goes where flags on the device say, also with a branch inside a branch."""

from __future__ import annotations

import pytest
import torch

from hayless.kernels.branches import branch, no_branches, prepare

CUDA = torch.cuda.is_available()


def step(flags: torch.Tensor, out: torch.Tensor) -> None:
    """1 where no flag of the first two is set; else 2 where the third is not; else 3."""

    def inner() -> None:
        branch(flags[2:], lambda: out.fill_(3), lambda: out.fill_(2))

    branch(flags[:2], inner, lambda: out.copy_(torch.ones_like(out) * 1))
    out[1] += 10


@pytest.mark.parametrize(("given", "wanted"), [((0, 0, 1), 1), ((0, 1, 0), 2), ((1, 0, 1), 3)])
def test_the_host_looks_where_nothing_is_captured(given, wanted):
    flags, out = torch.tensor(given, dtype=torch.int32), torch.zeros(2)
    step(flags, out)
    assert out.tolist() == [wanted, wanted + 10]


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_a_graph_goes_where_the_device_says():
    device = torch.device("cuda", 0)
    if (why := no_branches(device)) is not None:
        pytest.skip(why)
    prepare(device)
    flags, out = torch.zeros(3, dtype=torch.int32, device=device), torch.zeros(2, device=device)
    memory = torch.cuda.MemPool()
    step(flags, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.use_mem_pool(memory, device), torch.cuda.graph(graph):
        step(flags, out)
    noise = [torch.rand(1000, device=device) for _ in range(8)]  # memory of the graph's must not be anybody's
    for given, wanted in (((0, 0, 1), 1), ((1, 0, 0), 2), ((0, 1, 1), 3), ((0, 0, 0), 1), ((1, 1, 0), 2)):
        flags.copy_(torch.tensor(given, dtype=torch.int32))
        graph.replay()
        assert out.tolist() == [wanted, wanted + 10]
    assert all(float(one.max()) < 1 for one in noise)
