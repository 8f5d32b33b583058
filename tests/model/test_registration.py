"""Packed folders under transformers' own names, once hayless is imported and not before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from hayless.core.errors import NotSupported
from hayless.core.registry import configure
from hayless.model.build import build_model
from hayless.model.load import load_tokenizer
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import logits
from tests.model.saving import check_same, tokenizer

KMEANS = configure("kmeans", bits=2, iterations=2)


def test_auto_classes(tmp_path: Path) -> None:
    model = tiny.model("llama")
    apply(model, [KMEANS])
    save_model(model, tmp_path / "model", tokenizer=tokenizer())
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.model_type == "hayless" and config.base_config["hidden_size"] == 32
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    check_same(model, back)
    assert torch.equal(logits(back), logits(model))
    narrow = AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "model"), dtype="bfloat16", attn_implementation="eager", device_map="cpu"
    )
    assert narrow.dtype == torch.bfloat16 and narrow.config._attn_implementation == "eager"
    assert len(load_tokenizer(tmp_path / "model")) == 96
    for options in ({"device_map": "auto"}, {"max_memory": {0: "1GB"}}, {"variant": "fp16"}):
        with pytest.raises(NotSupported):
            AutoModelForCausalLM.from_pretrained(tmp_path / "model", **options)


def test_reward_models(tmp_path: Path) -> None:
    model = build_model(tiny.model("llama").config.to_dict(), task="reward")
    apply(model, [KMEANS])
    save_model(model, tmp_path / "model")
    check_same(model, AutoModelForSequenceClassification.from_pretrained(tmp_path / "model"))


def test_import_brings_no_torch() -> None:
    code = "import sys, hayless; assert not {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_before_and_after(tmp_path: Path) -> None:
    """Plain transformers refuses a packed folder instead of loading noise; hayless may be imported later."""
    model = tiny.model("llama")
    apply(model, [KMEANS])
    save_model(model, tmp_path / "model")
    code = (
        "import sys, transformers\n"
        "try:\n"
        "    transformers.AutoConfig.from_pretrained(sys.argv[1])\n"
        "    sys.exit('read without hayless')\n"
        "except ValueError as error:\n"
        "    assert 'hayless' in str(error)\n"
        "import hayless\n"
        "print(type(transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "model"], capture_output=True, text=True)
    assert done.stdout == "LlamaForCausalLM\n", done.stderr
