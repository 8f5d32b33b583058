"""The arithmetic of a token, by hand."""

import pytest
import torch

from hayless.core.registry import configure
from hayless.model.transform import apply
from hayless.train.utilisation import device_rate, flops_per_token
from tests import tiny

LENGTH = 16


def matrices(model: torch.nn.Module) -> int:
    """Weights that multiply a token: linear layers, the head among them, tied or not."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "opt", "gpt_neox"])
def test_six_for_each_weight_and_attention_without_its_mask(name: str) -> None:
    model = tiny.model(name)
    attention = 12 * model.config.num_hidden_layers * model.config.hidden_size * LENGTH
    assert flops_per_token(model, LENGTH) == pytest.approx(6 * matrices(model) + attention)


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    model = tiny.model("llama")
    base = matrices(model)
    apply(model, [configure("lora", rank=2)])
    branches = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    attention = 12 * 2 * 32 * LENGTH
    assert flops_per_token(model, LENGTH) == pytest.approx(4 * base + 6 * branches + attention)


def test_a_processor_has_no_printed_rate() -> None:
    assert device_rate(torch.device("cpu"), "bf16") is None
