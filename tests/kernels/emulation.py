"""CUDA C++ on a CPU: every thread is one, and single instructions are written out.

It shows that operands meet where they must, that nothing outside is read, and that every output is written; what the
instructions themselves do only a GPU shows.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from hayless.kernels import compiled

COMPILER = shutil.which("g++")
HERE = Path(__file__).parent
_BUILT: dict[str, ctypes.CDLL] = {}
_DYNAMIC = "extern __shared__ __align__(16) u8 shared[];"
NEEDS = [
    pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs g++ on Linux"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU itself runs it"),
]


def built(folder: Path, sources: Sequence[Path], defined: Mapping[str, int], beside: str) -> ctypes.CDLL:
    """A kernel compiled for the CPU, once; `beside` has what stands for its own instructions, and `run`."""
    before, shared = re.split(r"//@.*\n", (HERE / "emulated_cuda.h").read_text())
    note, own, launch = re.split(r"//@.*\n", (HERE / beside).read_text())
    defines = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    instructions = Path(compiled.__file__).with_name("instructions.cu")
    text = defines + before + _with(instructions, shared) + note
    text += "".join(_with(source, own) for source in sources).replace(_DYNAMIC, "u8* const shared = dynamic_shared;")
    text += launch
    if text not in _BUILT:
        name = f"kernel{len(_BUILT)}"
        (folder / f"{name}.cpp").write_text(text)
        command = [COMPILER, "-O1", "-w", "-shared", "-fPIC", "-pthread", f"{name}.cpp", "-o", f"{name}.so"]
        subprocess.run(command, cwd=folder, check=True)
        _BUILT[text] = ctypes.CDLL(str(folder / f"{name}.so"))
    return _BUILT[text]


def _with(source: Path, instructions: str) -> str:
    pattern = r"// -- instructions\n.*// -- end of instructions\n"
    return re.sub(pattern, lambda _: instructions, source.read_text(), flags=re.S)
