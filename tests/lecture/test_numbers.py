"""Published counts and sizes, computed from configs: parameters, adapters, optimizer states, palettes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hayless.core.compose import predict
from hayless.core.cost import TrainShape, gradient_bytes, optimizer_bytes, weight_bytes
from hayless.core.families import dims_of, ledger_of
from hayless.core.ledger import Ledger
from hayless.core.registry import configure
from hayless.core.roles import BLOCK_LINEARS
from hayless.kernels.packed.bits import pack
from hayless.methods.optimizers.adamw import state_bytes
from hayless.methods.quantize.kmeans.clustering import palettize


def opt(layers: int, heads: int, width: int, **more: Any) -> Ledger:
    return ledger_of(
        dims_of(
            {
                "model_type": "opt",
                "vocab_size": 50272,
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "ffn_dim": 4 * width,
                "max_position_embeddings": 2048,
                "dtype": "float16",
                **more,
            }
        )
    )


def llama(layers: int, heads: int, width: int, wide: int) -> Ledger:
    return ledger_of(
        dims_of(
            {
                "model_type": "llama",
                "vocab_size": 32000,
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "intermediate_size": wide,
                "max_position_embeddings": 2048,
                "dtype": "float16",
            }
        )
    )


LLAMA_7B = (32, 32, 4096, 11008)
GPT2_XL = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 1600,
    "n_layer": 48,
    "n_head": 25,
    "n_positions": 1024,
    "dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("name", "shape", "millions"),
    [
        ("125M", (12, 12, 768), 125),
        ("350M", (24, 16, 1024), 331),
        ("1.3B", (24, 32, 2048), 1_316),
        ("2.7B", (32, 32, 2560), 2_652),
        ("6.7B", (32, 32, 4096), 6_658),
        ("13B", (40, 40, 5120), 12_853),
        ("30B", (48, 56, 7168), 29_975),
        ("66B", (64, 72, 9216), 65_720),
        ("175B", (96, 96, 12288), 174_604),
    ],
)
def test_opt_sizes(name: str, shape: tuple[int, int, int], millions: int) -> None:
    """OPT (arXiv:2205.01068), table 1. The 350M model has 331M parameters: narrow embeddings, norms after sublayers."""
    small = {"word_embed_proj_dim": 512, "do_layer_norm_before": False} if name == "350M" else {}
    parameters = opt(*shape, **small).parameters
    assert round(parameters / 1e6) == millions
    named = float(name[:-1]) * (1e9 if name.endswith("B") else 1e6)
    assert parameters == pytest.approx(named, rel=0.06 if name == "350M" else 0.02)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (LLAMA_7B, 6_738_415_616),
        ((40, 40, 5120, 13824), 13_015_864_320),
        ((60, 52, 6656, 17920), 32_528_943_616),
        ((80, 64, 8192, 22016), 65_285_660_672),
    ],
)
def test_llama_sizes(shape: tuple[int, int, int, int], parameters: int) -> None:
    """LLaMA (arXiv:2302.13971), table 2: 6.7B, 13.0B, 32.5B, 65.2B."""
    assert llama(*shape).parameters == parameters


@pytest.mark.parametrize(("rank", "millions"), [(1, 4.7), (4, 18.9), (8, 37.7)])
def test_lora_of_gpt3(rank: int, millions: float) -> None:
    """LoRA (arXiv:2106.09685), table 4: on the queries and values of GPT-3 175B, 4.7M and 37.7M trained parameters."""
    gpt3 = opt(96, 96, 12288)
    trained = predict(gpt3, [configure("lora", rank=rank, targets=("q", "v"))]).trainable
    assert trained == 2 * 96 * 2 * 12288 * rank
    assert trained / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(("layers", "width", "millions"), [(12, 768, 0.3), (24, 1024, 0.8)])
def test_lora_of_roberta(layers: int, width: int, millions: float) -> None:
    """LoRA, table 2: 0.3M for RoBERTa base and 0.8M for large, rank 8 on queries and values."""
    ledger = ledger_of(
        dims_of(
            {
                "model_type": "bert",
                "vocab_size": 50265,
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": width // 64,
                "intermediate_size": 4 * width,
                "max_position_embeddings": 514,
            }
        )
    )
    trained = predict(ledger, [configure("lora", rank=8, targets=("q", "v"))]).trainable
    assert round(trained / 1e6, 1) == millions


def test_lora_of_llama() -> None:
    """Rank 8 on q and v is 4,194,304 of 6,742,609,920: what PEFT prints for LLaMA-7B, 0.0622%."""
    ledger = predict(llama(*LLAMA_7B), [configure("lora", rank=8, targets=("q", "v"))])
    assert (ledger.trainable, ledger.parameters) == (4_194_304, 6_742_609_920)
    assert round(100 * ledger.trainable / ledger.parameters, 4) == 0.0622
    everywhere = predict(llama(*LLAMA_7B), [configure("lora", rank=64)])
    assert everywhere.trainable == 64 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008)) == 159_907_840


def test_mixed_precision_adam() -> None:
    """2Ψ of weights, 2Ψ of gradients and 12Ψ of float32 copies and moments: 14 + 14 + 28 + 28 + 28 GB for 7B."""
    shape = TrainShape(1, 1, precision="master", state_bytes=state_bytes)
    ledger = llama(*LLAMA_7B)
    psi = ledger.parameters
    assert weight_bytes(ledger, shape.dtype) == gradient_bytes(ledger, shape) == 2 * psi
    assert optimizer_bytes(ledger, shape) == pytest.approx(8 * psi, rel=1e-6)
    rounded = 7e9 / psi
    assert weight_bytes(ledger, shape.dtype) * rounded == pytest.approx(14e9)
    assert optimizer_bytes(ledger, shape) * rounded == pytest.approx(28e9 + 28e9)


def test_mixed_precision_adam_of_gpt2() -> None:
    """GPT-2 of 1.5B parameters: 3 GB of weights need 24 GB to train (ZeRO, arXiv:1910.02054, section 3.1)."""
    ledger = ledger_of(dims_of(GPT2_XL))
    assert ledger.parameters == 1_557_611_200
    shape = TrainShape(1, 1, precision="master", state_bytes=state_bytes)
    master = 4 * ledger.trainable
    states = weight_bytes(ledger, shape.dtype) + gradient_bytes(ledger, shape) + optimizer_bytes(ledger, shape) + master
    assert states * 1.5e9 / ledger.parameters == pytest.approx(24e9, rel=1e-6)


@pytest.mark.parametrize(("bits", "colours"), [(1, 2), (2, 4), (4, 16), (8, 256)])
def test_a_palette_of_bits(bits: int, colours: int) -> None:
    """An index of n bits tells 2^n values apart, and a file of them is n/16 of one of float16."""
    plain = llama(*LLAMA_7B)
    ledger = predict(plain, [configure("kmeans", bits=bits)])
    packed = [row for row in ledger.rows if row.method == "kmeans"]
    matrices = sum(row.elements for row in plain.where(BLOCK_LINEARS))
    assert {row.held[1].shape for row in packed} == {(1, colours)}
    assert sum(row.bytes for row in packed) == matrices * bits // 8 + 224 * colours * 2
    assert ledger.file_bytes()["model"] == pytest.approx(
        2 * (plain.parameters - matrices) + matrices * bits / 8, rel=1e-3
    )


def test_deep_compressions_worked_example() -> None:
    """Figure 3 of arXiv:1510.00149: 16 float32 weights in 4 shared values, 16·32/(4·32 + 2·16) = 3.2 times smaller."""
    weights = torch.tensor(
        [
            [2.09, -0.98, 1.48, 0.09],
            [0.05, -0.14, -1.08, 2.12],
            [-0.91, 1.92, 0.0, -1.03],
            [1.87, 0.0, 1.53, 1.49],
        ]
    ).view(1, -1)
    books, codes = palettize(weights, 4, iterations=100, keep_zeros=False)
    assert [round(value, 2) for value in books[0].tolist()] == [-1.0, 0.0, 1.5, 2.0]
    assert codes.view(4, 4).tolist() == [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]
    assert weights.nbytes / (books.nbytes + pack(codes, 2).nbytes) == 3.2


@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499)])
def test_the_error_of_a_normal_variable(bits: int, error: float) -> None:
    """Max 1960, table I: the least mean squared error with 2^bits levels of a normal variable of variance 1."""
    normal = torch.distributions.Normal(0, 1).icdf((torch.arange(200_000) + 0.5).double() / 200_000).float()[None]
    books, codes = palettize(normal, 2**bits, iterations=2000, keep_zeros=True)
    assert float((books.gather(1, codes.long()) - normal).square().mean()) == pytest.approx(error, rel=0.005)
