"""Models that methods make train under transformers.Trainer as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hayless.core.method import MethodConfig
from hayless.core.registry import configure
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import lora_of, predicted


def methods_of(name: str) -> dict[str, list[MethodConfig]]:
    return {
        "kmeans": [configure("kmeans", bits=3)],
        "magnitude": [configure("magnitude", sparsity=0.7)],
        "lora": [lora_of(name)],
        "all": [configure("magnitude", sparsity=0.7), configure("kmeans", bits=3), lora_of(name)],
    }


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("which", ["kmeans", "magnitude", "lora", "all"])
def test_two_steps(name: str, which: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    configs = methods_of(name)[which]
    apply(model, configs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(dict(model.named_parameters())[key].numel() for key in trained) == predicted(model, configs).trainable
    ids = torch.randint(3, 96, (4, 8), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids]).train()
    after = model.state_dict()
    for key, value in before.items():
        if key not in trained and key != "lm_head.weight":
            assert torch.equal(after[key], value), key
    assert any(not torch.equal(after[key], before[key]) for key in trained)
    if which == "magnitude":
        assert sum(int(torch.count_nonzero(value)) for value in model.parameters()) <= predicted(model, configs).nonzero
