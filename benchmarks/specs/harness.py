"""The harness itself on the CPU."""

import torch
from parts.harness import works

from hayless.study.bench.spec import Spec

SPEC = Spec(name="harness", threads=1, works=works("cpu", 448, torch.float32))
