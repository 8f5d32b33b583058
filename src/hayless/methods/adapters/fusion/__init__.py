"""AdapterFusion: attention, learnt by a task, over what modules of other tasks give."""

from __future__ import annotations

from hayless.core.method import Method, Need, Paper, Part
from hayless.methods.adapters.fusion.config import FusionConfig, claims
from hayless.methods.adapters.fusion.predict import predict

METHOD = Method(
    name="fusion",
    part=Part.TRANSFORM,
    summary="Train attention over what several frozen modules give; base and modules are frozen",
    config=FusionConfig,
    implementation="hayless.methods.adapters.fusion.transform:Fusion",
    predict=predict,
    claims=claims,
    needs=(Need.TRAINED_ADAPTER,),
    paper=Paper(
        "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", "Pfeiffer et al.", 2021, "2005.00247"
    ),
    peft_type="ADAPTER_FUSION",
    unmerged="its attention is no linear function, and weights hold only those",
)
