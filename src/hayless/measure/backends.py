"""Which ways of computing work on this machine, which do not and why, and what is missing for more."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hayless.core.units import format_bytes
from hayless.measure import energy, machine

EXTRAS = {
    "serve": ("an OpenAI-compatible server", ("fastapi", "uvicorn")),
    "eval": ("the benchmarks of lm-eval", ("lm-eval",)),
    "track": ("TensorBoard events while training", ("tensorboard",)),
    "energy": ("joules of NVIDIA GPUs", ("nvidia-ml-py",)),
    "fit": ("scaling laws fitted to runs", ("scipy",)),
    "hub": ("weights of modules found without gradients", ("nevergrad",)),
    "sentences": ("modules found by a sentence encoder", ("sentence-transformers",)),
    "peers": ("studies that run transformers' Trainer and PEFT beside hayless", ("accelerate", "peft")),
}
"""Optional extra → what it is for, the packages it brings."""

_DISK_BYTES = 3 * 10**9
_MEMORY_BYTES = 3 * 10**9
_TESTED_TRANSFORMERS = ((5, 17), (6, 0))
_TESTED_TORCH = (2, 11)
_BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Backend:
    """A way of computing or recording. `reason` says why it is not usable, or what to know about it."""

    name: str
    usable: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Extra:
    """An optional extra of this package: the versions of its packages, None where one is missing."""

    name: str
    purpose: str
    packages: dict[str, str | None]

    @property
    def installed(self) -> bool:
        """Whether all its packages are there."""
        return all(self.packages.values())


@dataclass(frozen=True, slots=True)
class Problem:
    """Something to mend, and how."""

    what: str
    todo: str


def backends() -> list[Backend]:
    """Every backend, usable or not."""
    return [
        Backend("plain PyTorch", True, f"torch {torch.__version__}, on every device"),
        _cuda(),
        _triton_gpu(),
        _triton_interpreter(),
        _compile(),
        _mps(),
        _package("TensorBoard", "tensorboard", "track"),
        _nvml(),
    ]


def extras() -> list[Extra]:
    """Every optional extra."""
    return [
        Extra(name, purpose, {package: machine.version(package) for package in packages})
        for name, (purpose, packages) in EXTRAS.items()
    ]


def free_disk_bytes(folder: Path) -> int:
    """Bytes that can be written under `folder`, or where it would be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free


def problems(folders: Sequence[Path]) -> list[Problem]:
    """What stands in the way of ordinary work; `folders` are those that will be written to."""
    found = [
        Problem(f"{folder} has {format_bytes(free)} of free disk.", "Free some space: a demo needs 3 GB.")
        for folder in folders
        if (free := free_disk_bytes(folder)) < _DISK_BYTES
    ]
    found += [
        Problem(f"{folder} cannot be written to.", "Change its owner or its permissions, or work elsewhere.")
        for folder in folders
        if folder.is_dir() and not os.access(folder, os.W_OK)
    ]
    free = machine.resources().memory_bytes
    if free < _MEMORY_BYTES:
        found.append(Problem(f"{format_bytes(free)} of memory are free.", "Close other programs: a demo needs 3 GB."))
    return found + _wrong_versions() + _unused_gpu()


def _wrong_versions() -> list[Problem]:
    found = []
    torch_version, transformers = machine.version("torch"), machine.version("transformers")
    if torch_version and _numbers(torch_version) < _TESTED_TORCH:
        found.append(Problem(f"torch {torch_version} is older than what is tested.", 'pip install "torch>=2.11"'))
    if transformers is None:
        found.append(Problem("transformers is not installed.", "Install hayless again with pip."))
    elif not _TESTED_TRANSFORMERS[0] <= _numbers(transformers) < _TESTED_TRANSFORMERS[1]:
        todo = 'pip install "transformers>=5.17,<6"'
        found.append(Problem(f"transformers {transformers} is not a version that is tested.", todo))
    return found


def _unused_gpu() -> list[Problem]:
    """A GPU that is there and cannot be used, or only in part."""
    if torch.cuda.is_available():
        old = [
            torch.cuda.get_device_name(number)
            for number in range(torch.cuda.device_count())
            if torch.cuda.get_device_capability(number) < _BF16_CAPABILITY
        ]
        return [Problem(f"{name} has no bf16 arithmetic.", "Use precision fp16 or fp32.") for name in old]
    if torch.version.cuda:
        todo = "Look at CUDA_VISIBLE_DEVICES, and at nvidia-smi: the driver may be missing or too old."
        return [Problem(f"torch is built for CUDA {torch.version.cuda}, but sees no CUDA device.", todo)]
    if shutil.which("nvidia-smi") and not torch.version.hip:
        todo = "Install a CUDA build of torch: see pytorch.org/get-started."
        return [Problem("There is an NVIDIA driver, but torch is built without CUDA.", todo)]
    return []


def _cuda() -> Backend:
    if torch.version.hip:
        count = torch.cuda.device_count()
        return Backend("CUDA", count > 0, f"ROCm {torch.version.hip} through torch's CUDA interface: untested")
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
        return Backend("CUDA", True, f"CUDA {torch.version.cuda}: {', '.join(sorted(names))}")
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    return Backend("CUDA", False, f"{built}, and sees no CUDA device" if torch.version.cuda else built)


def _triton_gpu() -> Backend:
    found = machine.version("triton")
    if found is None:
        return Backend("Triton on GPUs", False, "the package triton is not installed (CUDA builds of torch bring it)")
    if not torch.cuda.is_available():
        return Backend("Triton on GPUs", False, f"triton {found} is there, but no GPU")
    return Backend("Triton on GPUs", True, f"triton {found}")


def _triton_interpreter() -> Backend:
    found = machine.version("triton")
    if found is None:
        return Backend("Triton interpreter", False, "the package triton is not installed")
    reason = f"triton {found}: for tests of kernels on CPUs (TRITON_INTERPRET=1), slow; its bf16 is wrong"
    return Backend("Triton interpreter", True, reason)


def _compile() -> Backend:
    if torch.cuda.is_available():
        usable = machine.version("triton") is not None
        return Backend("torch.compile", usable, "" if usable else "needs triton on GPUs")
    named = os.environ.get("CXX")
    compiler = next((found for name in (named, "g++", "clang++", "cl") if name and (found := shutil.which(name))), None)
    return Backend("torch.compile", compiler is not None, compiler or "needs a C++ compiler on CPUs, and finds none")


def _mps() -> Backend:
    if torch.backends.mps.is_available():
        return Backend("MPS", True, "untested: this project's tests run on CPUs and on CUDA")
    if platform.system() != "Darwin":
        return Backend("MPS", False, "only on Macs")
    return Backend("MPS", False, "torch or macOS is too old, or this is an Intel Mac")


def _nvml() -> Backend:
    reason = energy.unavailable("cuda" if torch.cuda.is_available() else "cpu")
    return Backend("NVML (energy)", reason is None, reason or "energy counter of the GPU")


def _package(name: str, package: str, extra: str) -> Backend:
    found = machine.version(package)
    missing = f'not installed: pip install "hayless[{extra}]"'
    return Backend(name, found is not None, f"{package} {found}" if found else missing)


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` → (2, 13)."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
