"""Every technique, by name. Cards import no torch; parts are imported when used."""

CATALOGUE = {
    "lm": "hayless.methods.objectives.lm",
    "sft": "hayless.methods.objectives.sft",
    "reward": "hayless.methods.objectives.reward",
    "layerskip": "hayless.methods.objectives.layerskip",
    "adamw": "hayless.methods.optimizers.adamw",
    "sgd": "hayless.methods.optimizers.sgd",
    "checkpointing": "hayless.methods.memory.checkpointing",
    "offload": "hayless.methods.memory.offload",
    "fused_kernels": "hayless.methods.memory.fused_kernels",
    "float8_linears": "hayless.methods.memory.float8_linears",
    "chunked_loss": "hayless.methods.memory.chunked_loss",
    "magnitude": "hayless.methods.prune.magnitude",
    "kmeans": "hayless.methods.quantize.kmeans",
    "uniform": "hayless.methods.quantize.uniform",
    "gptq": "hayless.methods.quantize.gptq",
    "awq": "hayless.methods.quantize.awq",
    "int8": "hayless.methods.quantize.int8",
    "fp8": "hayless.methods.quantize.fp8",
    "nf4": "hayless.methods.quantize.nf4",
    "lora": "hayless.methods.adapters.lora",
    "speculative": "hayless.methods.decoding.speculative",
    "early_exit": "hayless.methods.decoding.early_exit",
}
"""Name → the module whose `METHOD` is its card."""
