"""The harness itself on a GPU, by the device's clock; a few seconds."""

import torch
from parts.harness import works

from hayless.study.bench.spec import Spec

SPEC = Spec(name="harness_gpu", device="cuda", clock="device", works=works("cuda", 7168, torch.bfloat16))
