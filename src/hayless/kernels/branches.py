"""A captured graph that goes one way or another by what lies on the device: the driver's conditional nodes.

PyTorch captures straight lines only, so what lies between is the driver's own calls, as its manual has them (graph
management, conditional nodes; CUDA 12.8 and newer for a node with two ways). A kernel tells the node which way to go;
each way is captured into a graph of its own inside the node. What is not taken costs nothing. Nothing else may run
beside a branch in its graph, and a way may hold kernels only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hayless.kernels.driver import call

_CONDITIONAL_NODE, _IF = 13, 0
"""CU_GRAPH_NODE_TYPE_CONDITIONAL, CU_GRAPH_COND_TYPE_IF."""
_RELAXED, _SET_DEPENDENCIES = 2, 1
"""CU_STREAM_CAPTURE_MODE_RELAXED, CU_STREAM_SET_CAPTURE_DEPENDENCIES."""
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING."""
_NEEDED = 12_080

_SETTER = b"""
.version 8.3
.target sm_80
.address_size 64

.extern .func cudaGraphSetConditional (.param .b64 handle, .param .b32 value);

.visible .entry go (.param .u64 handle_p, .param .u64 flags_p, .param .u32 count_p)
{
    .reg .pred %p<2>;
    .reg .b32 %r<5>;
    .reg .b64 %d<4>;
    ld.param.u64 %d1, [handle_p];
    ld.param.u64 %d2, [flags_p];
    cvta.to.global.u64 %d2, %d2;
    ld.param.u32 %r1, [count_p];
    mov.u32 %r2, 0;
LOOP:
    ld.global.u32 %r3, [%d2];
    or.b32 %r2, %r2, %r3;
    add.u64 %d2, %d2, 4;
    sub.u32 %r1, %r1, 1;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra LOOP;
    setp.ne.u32 %p1, %r2, 0;
    selp.u32 %r4, 1, 0, %p1;
    {
        .param .b64 handle_a;
        .param .b32 value_a;
        st.param.b64 [handle_a], %d1;
        st.param.b32 [value_a], %r4;
        call.uni cudaGraphSetConditional, (handle_a, value_a);
    }
    ret;
}
"""
"""Sets a node's condition to whether one of the flags is set. The driver has the function that it calls."""


class _Conditional(ctypes.Structure):
    """CUDA_CONDITIONAL_NODE_PARAMS."""

    _fields_ = (
        ("handle", ctypes.c_uint64),
        ("type", ctypes.c_int),
        ("size", ctypes.c_uint),
        ("bodies", ctypes.POINTER(ctypes.c_void_p)),
        ("context", ctypes.c_void_p),
    )


class _Node(ctypes.Structure):
    """CUgraphNodeParams: a kind, padding, a union of 29 numbers of 64 bits, and one more."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("padding", ctypes.c_int * 3),
        ("conditional", _Conditional),
        ("rest", ctypes.c_char * (29 * 8 - ctypes.sizeof(_Conditional))),
        ("last", ctypes.c_int64),
    )


def no_branches(device: torch.device) -> str | None:
    """Why graphs cannot branch on a CUDA device, or None."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the kernels need compute capability 8.0 or newer"
    version = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(version))
    if version.value < _NEEDED:
        return f"graphs that branch need a driver of CUDA 12.8 or newer, and this one has {_named(version.value)}"
    return None


def branch(flags: Tensor, then: Callable[[], object], otherwise: Callable[[], object]) -> None:
    """Run `then` where one of `flags` (n,) int32 is not 0, else `otherwise`.

    While a graph is captured both are, and it goes one way each time it is replayed. PyTorch does not know that they
    belong to the graph: they are to be captured within `torch.cuda.use_mem_pool`, of a pool that lives as long. Without
    a capture the host looks at the flags.
    """
    if not (flags.is_cuda and torch.cuda.is_current_stream_capturing()):
        (then if bool(flags.any()) else otherwise)()
        return
    stream = torch.cuda.current_stream(flags.device)
    graph, _, _ = _captured_so_far(stream)
    context, handle = ctypes.c_void_p(), ctypes.c_uint64()
    call("cuCtxGetCurrent", ctypes.byref(context))
    call("cuGraphConditionalHandleCreate", ctypes.byref(handle), graph, context, 0, 0)
    _set(handle, flags, stream)
    graph, before, count = _captured_so_far(stream)
    given = _Node(type=_CONDITIONAL_NODE)
    given.conditional = _Conditional(handle=handle.value, type=_IF, size=2, context=context)
    node = ctypes.c_void_p()
    call("cuGraphAddNode_v2", ctypes.byref(node), graph, before, None, count, ctypes.byref(given))
    call("cuStreamUpdateCaptureDependencies_v2", _of(stream), ctypes.byref(node), None, 1, _SET_DEPENDENCIES)
    for number, way in enumerate((then, otherwise)):
        with _capturing_to(ctypes.c_void_p(given.conditional.bodies[number]), flags.device):
            way()


def _set(handle: ctypes.c_uint64, flags: Tensor, stream: torch.cuda.Stream) -> None:
    """Launch the kernel that says which way to go."""
    values = (handle, ctypes.c_uint64(flags.data_ptr()), ctypes.c_uint32(len(flags)))
    pointers = (ctypes.c_void_p * 3)(*(ctypes.addressof(value) for value in values))
    call("cuLaunchKernel", _setter(flags.device.index), 1, 1, 1, 1, 1, 1, 0, _of(stream), pointers, None)


def _captured_so_far(stream: torch.cuda.Stream) -> tuple[ctypes.c_void_p, Any, ctypes.c_size_t]:
    """The graph that is captured on a stream, and the nodes that the next one comes after, with their number."""
    status, number, count = ctypes.c_int(), ctypes.c_uint64(), ctypes.c_size_t()
    graph, nodes, edges = ctypes.c_void_p(), ctypes.POINTER(ctypes.c_void_p)(), ctypes.c_void_p()
    found = (status, number, graph, nodes, edges, count)
    call("cuStreamGetCaptureInfo_v3", _of(stream), *(ctypes.byref(one) for one in found))
    return graph, nodes, count


@contextmanager
def _capturing_to(graph: ctypes.c_void_p, device: torch.device) -> Iterator[None]:
    """What is launched inside goes into `graph`."""
    # PyTorch hands out the same few streams in turn, and so one that is captured already.
    free = _free(device.index)
    stream = free.pop() if free else _new_stream(device)
    call("cuStreamBeginCaptureToGraph", _of(stream), graph, None, None, 0, _RELAXED)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        ended = ctypes.c_void_p()
        call("cuStreamEndCapture", _of(stream), ctypes.byref(ended))
        free.append(stream)


@cache
def _free(device: int) -> list[torch.cuda.Stream]:
    """Streams of a device that nothing is captured on."""
    return []


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    found = ctypes.c_void_p()
    call("cuStreamCreate", ctypes.byref(found), _NON_BLOCKING)
    return torch.cuda.ExternalStream(found.value or 0, device)


@cache
def _setter(device: int) -> ctypes.c_void_p:
    torch.cuda.synchronize(device)  # so that there is a context
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    call("cuModuleLoadData", ctypes.byref(module), _SETTER)
    call("cuModuleGetFunction", ctypes.byref(function), module, b"go")
    return function


def prepare(device: torch.device) -> None:
    """Load what a branch needs on a CUDA device, which cannot be done while a graph is captured."""
    if device.type == "cuda":
        _setter(device.index)


def _of(stream: torch.cuda.Stream) -> ctypes.c_void_p:
    return ctypes.c_void_p(stream.cuda_stream)


def _named(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
