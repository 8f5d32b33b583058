"""Arrow: of each module and matrix the direction that it amplifies most, by which tokens choose modules
(Ostapenko et al., 2024, arXiv:2405.11157, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hayless.core.beside import MIXTURE, PROTOTYPES
from hayless.core.errors import NotSupported
from hayless.model.adapters import Adapter

_A, _B = ".lora_A.weight", ".lora_B.weight"


def prototype(a: Tensor, b: Tensor) -> Tensor:
    """The first right singular vector of BA, for A (r, in) and B (out, r): (in,), of length one; zero for BA = 0.

    With A = RᵀQᵀ it is Q times that of BRᵀ, which is as thin as B.
    """
    q, r = torch.linalg.qr(a.float().T)
    _, s, v = torch.linalg.svd(b.float() @ r.T, full_matrices=False)
    return q @ v[0] * (s[0] > 0)


def routed(modules: Sequence[Adapter], made: Any) -> Adapter:
    """The mixture `made`, a config of lora_moe with prototypes for a gate, of modules of one rank on the same matrices.

    Each module's scaling is taken into its B. NotSupported for modules on different matrices.
    """
    paths = [{name.removesuffix(_A) for name in module.tensors if name.endswith(_A)} for module in modules]
    if any(each != paths[0] for each in paths):
        raise NotSupported(
            "The modules are beside different matrices, and tokens cannot choose among modules that are not there.",
            hint="Mix them for a task (per: task), or keep a library for each kind of module.",
        )
    tensors: dict[str, Tensor] = {}
    for path in sorted(paths[0]):
        a = [module.tensors[path + _A].float() for module in modules]
        b = [module.config.scaling * module.tensors[path + _B].float() for module in modules]  # type: ignore[attr-defined]
        place = f"{path}.{MIXTURE}"
        tensors |= {place + _A: torch.cat(a), place + _B: torch.cat(b, 1)}
        tensors[f"{place}.{PROTOTYPES}.weight"] = torch.stack([prototype(*pair) for pair in zip(a, b, strict=True)])
    return Adapter(made, tensors)
