"""NF4 and its kin: codes of 4 bits into 16 values, and a scale a block, itself in 8 bits; bitsandbytes' layout."""

from __future__ import annotations

from hayless.core.method import Ecosystem, Method, Paper, Part
from hayless.methods.common.packed_rows import claims, pack_rows
from hayless.methods.quantize.nf4 import bitsandbytes
from hayless.methods.quantize.nf4.config import NF4Config
from hayless.methods.quantize.nf4.form import ECOSYSTEM, form_of

METHOD = Method(
    name="nf4",
    part=Part.TRANSFORM,
    summary="Pack weights in 4 bits: the quantiles of a normal distribution, with a scale a block",
    config=NF4Config,
    implementation="hayless.methods.quantize.nf4.blocks:NF4",
    predict=lambda ledger, config: pack_rows(ledger, config, form_of),
    claims=claims,
    ecosystems=(Ecosystem(ECOSYSTEM, "bitsandbytes", bitsandbytes.write, bitsandbytes.read),),
    ladder=lambda dims: [NF4Config(double=False), NF4Config(double=True)],
    paper=Paper("QLoRA: Efficient Finetuning of Quantized LLMs", "Dettmers et al.", 2023, "2305.14314"),
)
